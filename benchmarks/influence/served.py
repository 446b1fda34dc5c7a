"""Where precision ends the forward estimator: by torch and served by vLLM, by step and dtype, against exact scores.

    python -m benchmarks.influence.served --json FILE

The lab's target after its warm-up; candidates are scored along the gradient of the whole validation loss and of each
of its topics, without momentum. Exact are the dot products of the estimator linear by batch-1 autograd in float64. The
relative step is |h*u| over the norm of the parameters. Too large a step and the loss is no longer a parabola, too small
a one and the losses' rounding is all that is left. Of each engine, dtype and step:

    spearman        of the scores with the exact ones, the lowest of the directions
    relative_error  |scores - exact| / |exact| over candidates, the highest of the directions
    ..._vs_torch    of vLLM in float32: the same with torch's scores at the same step in place of the exact ones

vLLM runs in this process (`make setup-vllm`). Directions and adapters are those of the model in float32, whatever vLLM
serves: the dtype is that of serving alone.
"""

import argparse
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy.stats import spearmanr

from benchmarks.influence.__main__ import describe_machine
from benchmarks.influence.fidelity import BATCH_TOKENS
from benchmarks.influence.lab import BASE, Case, make_case
from rubric_influence.core.files import write_json
from rubric_influence.engines.vllm_losses import VLLMLosses, read_shape
from rubric_influence.influence.checks.reference import reference_scores
from rubric_influence.influence.directions import validation_gradients
from rubric_influence.influence.moments import match_moments
from rubric_influence.influence.scorers import RELATIVE_STEP, ForwardScorer
from rubric_influence.influence.served import ExportedScorer, ServedScorer, export_scorer, relative_errors

STEPS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
DTYPES = ("float32", "bfloat16")
CANDIDATES = 128


@dataclass(frozen=True)
class Exported:
    """Of one relative step: torch's scores [n, k], and what an engine needs to give them."""

    torch: torch.Tensor
    scorer: ExportedScorer


def make_directions(case: Case) -> torch.Tensor:
    """grad L_V of all validation questions and of each topic, [1 + topics, d]."""
    groups = (None, case.topics)
    found = [validation_gradients(case.model, case.validation, names, BATCH_TOKENS) for names in groups]
    return torch.stack([gradient for gradients in found for gradient in gradients.values()])


def agree(found: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Spearman's correlation, the lowest of the directions, and the relative error, the highest."""
    ranks = [spearmanr(*columns).statistic for columns in zip(found.T.numpy(), expected.T.numpy(), strict=True)]
    errors = relative_errors(found, expected, torch.zeros(expected.shape[1]))
    return float(min(ranks)), errors.max().item()


def export(case: Case, directions: torch.Tensor, step: float, folder: Path) -> Exported:
    settings = dict(momentum=False, batch_tokens=BATCH_TOKENS, relative_step=step)
    scorer = ForwardScorer(case.model, directions, case.moments, **settings)
    return Exported(scorer.score(case.candidates), export_scorer(scorer, folder, case.candidates[:2]))


def measure(case: Case, folder: Path) -> list[dict]:
    """An entry for each engine, dtype and step."""
    directions = make_directions(case)
    moments = match_moments(case.moments, case.model)
    settings = dict(momentum=False, normalise=False, estimator="linear")
    exact = reference_scores(case.model, case.candidates, directions, moments, **settings)
    exported = {step: export(case, directions, step, folder / f"{step:g}") for step in STEPS}
    entries = [describe("torch", "float32", step, found.torch, exact) for step, found in exported.items()]
    for dtype in DTYPES:
        shape = read_shape(BASE.path, exported[STEPS[0]].scorer.adapters[0])
        losses = VLLMLosses(BASE.model_copy(update={"dtype": dtype}), shape)
        for step, made in exported.items():
            scores = ServedScorer(made.scorer, losses, tolerance=float("inf")).score(case.candidates)
            entry = describe("vllm", dtype, step, scores, exact)
            if dtype == "float32":
                names = "spearman_vs_torch", "relative_error_vs_torch"
                entry |= dict(zip(names, agree(scores, made.torch), strict=True))
            entries.append(entry)
        del losses
    return entries


def describe(engine: str, dtype: str, step: float, scores: torch.Tensor, exact: torch.Tensor) -> dict:
    spearman, error = agree(scores, exact)
    return dict(engine=engine, dtype=dtype, relative_step=step, spearman=spearman, relative_error=error)


def tabulate(entries: list[dict]) -> str:
    """A row a step: Spearman's correlation and relative error of each engine and dtype, as in docs/influence.md."""
    kinds = [("torch", "float32"), ("vllm", "float32"), ("vllm", "bfloat16")]
    found = {(entry["engine"], entry["dtype"], entry["relative_step"]): entry for entry in entries}
    rows = ["| relative step | torch, float32 | vLLM, float32 | vLLM, bfloat16 |", "|---|---|---|---|"]
    for step in STEPS:
        cells = [found[(*kind, step)] for kind in kinds]
        shown = [f"{cell['spearman']:.4f}, {cell['relative_error']:.2g}" for cell in cells]
        rows.append(f"| {step:g} | " + " | ".join(shown) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--candidates", type=int, default=CANDIDATES)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # else processes' pace decides batches
    case = make_case(arguments.seed, candidates=arguments.candidates)
    with tempfile.TemporaryDirectory() as folder:
        entries = measure(case, Path(folder))
    settings = {"seed": arguments.seed, "candidates": len(case.candidates), "relative_step": RELATIVE_STEP}
    found = {"machine": describe_machine(threads=1), "settings": settings, "curve": entries}
    write_json(arguments.json, found)
    print(tabulate(entries))


if __name__ == "__main__":
    main()

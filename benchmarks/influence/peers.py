"""Installable peers on the same model and samples: seconds, peak memory, and what their score leaves out.

    make setup-peers
    .venv-peers/bin/python -m benchmarks.influence.peers --case DIR --peer NAME --directions K --what time --json FILE

They are run by an interpreter of their own, since their requirements are not the project's, and each measurement is a
process of its own. `cases.save_case` writes DIR; `measure_peer` starts the processes and makes an entry:

    estimator                  which of ours comes nearest to the peer's score; computes, leaves_out: in words
    seconds, ours_seconds      of a pass over all samples by the peer and by ours (the estimator adam), timed in turns
    ours_over_peer             ours_seconds / seconds: below 1, ours is faster
    peak_mib                   what a pass holds at most beyond model, moments and directions
    max_abs_difference         of the peer's scores, unit directions and unit gradients, to ours by `estimator`
    error                      in place of these: a peer that cannot score the model says why, and stops nobody else
"""

import argparse
import json
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.influence.cases import Case, load_case
from benchmarks.influence.costs import describe_measure, exact_pages, peak_while, time_alternately
from rubric_influence.influence.scorers import GradientScorer
from rubric_influence.models.examples import Example, collate
from rubric_influence.models.losses import sample_losses

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-peers/bin/python"
REPEATS = 3  # rounds, where the limit allows so many

Score = Callable[[], torch.Tensor]  # a pass: the scores [n, k]


def open_ours(case: Case, estimator: Literal["adam", "linear", "gradient"] = "adam") -> Score:
    flat = torch.cat([w.flatten(1) for w in case.directions.values()], dim=1)
    scorer = GradientScorer(
        case.load_model(), flat, case.moments, momentum=False, batch_tokens=case.batch_tokens, estimator=estimator
    )
    return lambda: scorer.score(case.examples)


def open_dattri_llm(case: Case) -> Score:
    """Its LESSAttributor over a GradientStreamer: Adam's update of every sample, dense, then its unit rows."""
    from dattri_llm import (
        AttributionArguments,
        AttributionTask,
        Gradient,
        GradientStreamer,
        HookManagerConfig,
        LESSAttributor,
    )

    model, moments = case.load_model(), case.moments
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW([parameters[name] for name in case.directions], betas=moments.betas, eps=moments.eps)
    for name in case.directions:
        second = moments.exp_avg_sq[name].to(model.device)
        state = {"step": torch.tensor(float(moments.step)), "exp_avg": torch.zeros_like(second), "exp_avg_sq": second}
        optimizer.state[parameters[name]] = state  # momentum left out, as ours leaves it

    def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return sample_losses(model, batch).sum()

    layers = {name.removesuffix(".weight"): w.flatten(1).to(model.device) for name, w in case.directions.items()}
    queries = Gradient(dict.fromkeys(layers, "materialized"), layers, dict.fromkeys(layers, "nn.Linear"))
    names = [str(row) for row in range(queries.batch_size)]
    config = HookManagerConfig(hook_types=dict.fromkeys(layers, "linear_io"))
    arguments = AttributionArguments(str(case.folder / "dattri_llm"), per_device_train_batch_size=1)
    attributor = LESSAttributor(arguments, task=AttributionTask(loss, model), optimizers=[optimizer])
    batches = [collate([case.examples[row] for row in rows]) for rows in case.batches]
    order = torch.tensor(sum(case.batches, [])).argsort()

    def score() -> torch.Tensor:
        # Its own loader takes batches of one size in samples; this one is given ours, one at a time.
        settings = {"batch_size": 1, "collate_fn": lambda given: given[0], "loss_fn": loss, "config": config}
        streamer = GradientStreamer(model, batches, arguments, optimizer=optimizer, precondition=True, **settings)
        with streamer:
            return attributor.score_sources(streamer, [(0, queries, names)])[0][order]

    return score


def open_bergson(case: Case) -> Score:
    """Its InMemoryCollector with a streaming Scorer: Adam normalisers, unit norm, no projection, loss of the mean."""
    from bergson import CollectorComputer, GradientProcessor, IndexConfig, InMemoryCollector, Scorer
    from bergson.data import allocate_batches
    from bergson.gradients import AdamNormalizer
    from bergson.score.score_writer import InMemorySequenceScoreWriter
    from bergson.utils.worker_utils import setup_model_and_peft
    from datasets import Dataset

    config = IndexConfig(
        str(case.folder / "bergson"),
        model=str(case.folder),
        precision="auto",
        model_kwargs=f"attn_implementation={case.attention}",
        loss_reduction="mean",
        token_batch_size=case.batch_tokens,
    )
    config.partial_run_path.mkdir(exist_ok=True)
    model, modules = setup_model_and_peft(config)

    def by_module(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {n.removeprefix("base_model.").removesuffix(".weight"): t.to(model.device) for n, t in tensors.items()}

    processor = GradientProcessor({name: AdamNormalizer(v) for name, v in by_module(case.moments.exp_avg_sq).items()})
    queries = {name: w.flatten(1) for name, w in by_module(case.directions).items()}
    data = Dataset.from_list([asdict(example) for example in case.examples])

    def score() -> torch.Tensor:
        writer = InMemorySequenceScoreWriter(len(data), len(next(iter(queries.values()))))
        scorer = Scorer(queries, list(queries), writer, model.device, torch.float32, unit_normalize=True)
        collector = InMemoryCollector(
            model=model.base_model, data=data, cfg=config, processor=processor, target_modules=modules, scorer=scorer
        )
        batches = allocate_batches(case.lengths, case.batch_tokens)
        CollectorComputer(model, data, collector=collector, batches=batches, cfg=config).run_with_collector_hooks()
        return collector.scores

    return score


def open_dattri(case: Case) -> Score:
    """Its TracInAttributor with normalised gradients (Grad-Cos): vmap over torch.func.grad, no projection."""
    from dattri.algorithm import TracInAttributor
    from dattri.task import AttributionTask

    model = case.load_model()

    def loss(parameters: dict[str, torch.Tensor], sample: tuple[torch.Tensor, ...]) -> torch.Tensor:
        ids, labels = sample
        # No attention mask, which vmap cannot branch on; padding is on the right of a causal model.
        inputs = {"input_ids": ids[None], "use_cache": False}
        logits = torch.func.functional_call(model, parameters, kwargs=inputs).logits
        return nn.functional.cross_entropy(logits[0, :-1].float(), labels[1:])

    # Its gradient is the direction itself, so that the peer spends next to nothing on the validation side.
    def along(parameters: dict[str, torch.Tensor], direction: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return sum((parameters[name] * w).sum() for name, w in zip(case.directions, direction, strict=True))

    task = AttributionTask(loss, model, [{}], target_func=along, checkpoints_load_func=lambda model, _: model)
    # Longest first, as ours; it takes batches of one size in samples.
    order = sorted(range(len(case.examples)), key=lambda row: -case.lengths[row])
    size = max(1, case.batch_tokens // max(case.lengths))

    def pad(examples: list[Example]) -> tuple[torch.Tensor, ...]:
        batch = collate(examples, pad_token_id=0)
        return batch["input_ids"], batch["labels"]

    samples = DataLoader([case.examples[row] for row in order], batch_size=size, collate_fn=pad)
    directions = DataLoader(TensorDataset(*case.directions.values()), batch_size=256)

    def score() -> torch.Tensor:
        attributor = TracInAttributor(task, torch.ones(1), normalized_grad=True, device=model.device)
        attributor.projector_kwargs = None  # the constructor takes None for a projection to 512
        return attributor.attribute(samples, directions)[torch.tensor(order).argsort()]

    return score


@dataclass(frozen=True)
class Peer:
    """package: on PyPI, None for ours."""

    open: Callable[[Case], Score]
    package: str | None
    estimator: Literal["adam", "linear", "gradient"]
    computes: str
    leaves_out: str


PEERS = {
    "ours": Peer(
        open_ours,
        None,
        "adam",
        "cos(w, Gamma), Adam's step with the sample's own part in v': one layer's gradients in memory at a time",
        "momentum here, as in the others",
    ),
    "dattri-llm": Peer(
        open_dattri_llm,
        "dattri-llm",
        "adam",
        "cos(w, Gamma), the same: hooks in batches, a dense copy of every sample's step until its batch is done",
        "momentum here; its LESS has cosines alone",
    ),
    "bergson": Peer(
        open_bergson,
        "bergson",
        "linear",
        "cos(w, g / (sqrt(v) + eps)): batched hooks, v frozen at the checkpoint, gradients scored as they come",
        "the sample's own part in v', bias correction, momentum",
    ),
    "dattri": Peer(
        open_dattri,
        "dattri",
        "gradient",
        "cos(w, g): Grad-Cos (TracIn with unit gradients), per-sample gradients by vmap over torch.func.grad",
        "the optimizer: Adam's two moments",
    ),
}


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"it took more than {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def time_peer(name: str, case: Case, limit: float) -> dict:
    """Seconds of a pass, ours' in the same rounds, and how far the scores differ."""
    passes = {"ours": open_ours(case), "peer": PEERS[name].open(case)}
    scores: dict[str, torch.Tensor] = {}

    def run(who: str) -> None:
        scores[who] = passes[who]()

    seconds = time_alternately({who: lambda who=who: run(who) for who in passes}, REPEATS, limit)
    estimator = PEERS[name].estimator
    same = scores["ours"] if estimator == "adam" else open_ours(case, estimator)()
    return {
        "seconds": seconds["peer"],
        "ours_seconds": seconds["ours"],
        "ours_over_peer": seconds["ours"] / seconds["peer"],
        "max_abs_difference": (scores["peer"].cpu() - same).abs().max().item(),
    }


def weigh_peer(name: str, case: Case) -> dict:
    """Peak memory of a pass."""
    return {"peak_mib": peak_while(PEERS[name].open(case)) / 2**20} if describe_measure() else {}


def run_alone(name: str, folder: Path, count: int, what: str, limit: float) -> dict:
    """What a process of the peer's interpreter finds; where it dies, the error says so."""
    with tempfile.TemporaryDirectory() as scratch, exact_pages() if what == "memory" else nullcontext():
        out = Path(scratch, "found.json")
        command = [PYTHON, "-m", "benchmarks.influence.peers", "--case", folder, "--peer", name, "--what", what]
        command += ["--directions", str(count), "--limit", str(limit), "--json", out]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if out.exists():
            return json.loads(out.read_text())
    return {"error": f"its process ended with exit code {run.returncode}: {run.stderr[-500:]}"}


def measure_peer(name: str, folder: Path, count: int, limit: float) -> dict:
    """The entry of a peer on the case in `folder`, against its first `count` directions."""
    peer = PEERS[name]
    entry = {"estimator": peer.estimator, "computes": peer.computes, "leaves_out": peer.leaves_out}
    if not PYTHON.exists():
        return entry | {"error": "not installed; run `make setup-peers`"}
    if peer.package:
        entry |= run_alone(name, folder, count, "time", limit)
    return entry if "error" in entry else entry | run_alone(name, folder, count, "memory", limit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", type=Path, required=True, help="folder that save_case wrote")
    parser.add_argument("--peer", choices=PEERS, required=True)
    parser.add_argument("--directions", type=int, default=1, help="how many of the case's; default: 1")
    parser.add_argument("--what", choices=["time", "memory"], default="time")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that measuring may take; default: 300")
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    arguments = parser.parse_args()
    name, case = arguments.peer, load_case(arguments.case, arguments.directions)
    found: dict = {}
    try:
        if package := PEERS[name].package:
            found["version"] = version(package)
        with time_limit(arguments.limit):
            found |= time_peer(name, case, arguments.limit / 2) if arguments.what == "time" else weigh_peer(name, case)
    except Exception as error:  # a finding about the peer, to be reported beside the others'
        found["error"] = f"{type(error).__name__}: {error}"
    arguments.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()

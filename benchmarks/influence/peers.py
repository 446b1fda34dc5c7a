"""Installable peers on the same model and examples: how fast they score, and what their score leaves out.

    make setup-peers
    .venv-peers/bin/python -m benchmarks.influence.peers --case DIR --json FILE

They are run by an interpreter of their own, since their requirements are not the project's. `measure_peers` writes the
case and starts it. FILE maps each peer to {"estimator", "computes", "leaves_out", "version"} and either {"seconds",
"samples_per_second", "scores"} or {"error"}: a peer that cannot score the model says why, and stops nobody else.

estimator: which of ours comes nearest to it. scores [n][k]: its own, against the same directions.
seconds: of each pass over all examples after a first one (of that one, if no other fits into the limit);
    samples_per_second is the best's. Loading is not counted.
"""

import argparse
import copy
import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoModelForCausalLM

from rubric_influence.influence.layers import scored_parameters
from rubric_influence.influence.moments import AdamMoments, match_moments
from rubric_influence.models.examples import Example, collate

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-peers/bin/python"
REPEATS = 3
LIMIT = 40.0  # seconds a peer may score for

Score = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """What every peer is given.

    folder: the adapter, its base model in base/.
    directions: the w_k, unit, by parameter name [k, *shape]; second: Adam's v by the same names, not bias-corrected.
    """

    folder: Path
    directions: dict[str, torch.Tensor]
    second: dict[str, torch.Tensor]
    examples: list[Example]
    batch_tokens: int
    attention: str

    @property
    def lengths(self) -> list[int]:
        return [len(example.input_ids) for example in self.examples]


def save_case(
    folder: Path,
    model: PeftModel,
    directions: torch.Tensor,
    moments: AdamMoments,
    examples: Sequence[Example],
    batch_tokens: int,
) -> None:
    """Write what `load_case` and PEFT read. directions [k, d] are flat, as a scorer takes them."""
    copy.deepcopy(model).unload().save_pretrained(folder / "base")
    model.save_pretrained(folder, save_embedding_layers=False)
    adapter = folder / "adapter_config.json"
    adapter.write_text(json.dumps(json.loads(adapter.read_text()) | {"base_model_name_or_path": str(folder / "base")}))
    parameters = scored_parameters(model)
    unit = nn.functional.normalize(directions.detach().float().cpu(), dim=1)
    parts = unit.split([parameter.numel() for parameter in parameters.values()], dim=1)
    named = {n: part.reshape(-1, *p.shape).contiguous() for (n, p), part in zip(parameters.items(), parts, strict=True)}
    save_file(named, folder / "directions.safetensors")
    save_file(match_moments(moments, model).exp_avg_sq, folder / "second.safetensors")
    case = {
        "examples": [asdict(example) for example in examples],
        "batch_tokens": batch_tokens,
        "attention": model.config._attn_implementation,
    }
    (folder / "case.json").write_text(json.dumps(case))


def load_case(folder: Path) -> Case:
    case = json.loads((folder / "case.json").read_text())
    return Case(
        folder,
        load_file(folder / "directions.safetensors"),
        load_file(folder / "second.safetensors"),
        [Example(**example) for example in case["examples"]],
        case["batch_tokens"],
        case["attention"],
    )


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
    config.partial_run_path.mkdir()
    model, modules = setup_model_and_peft(config)

    def by_module(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {n.removeprefix("base_model.").removesuffix(".weight"): t.to(model.device) for n, t in tensors.items()}

    processor = GradientProcessor({name: AdamNormalizer(v) for name, v in by_module(case.second).items()})
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

    base = AutoModelForCausalLM.from_pretrained(case.folder / "base", attn_implementation=case.attention, dtype="auto")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = PeftModel.from_pretrained(base, case.folder, is_trainable=True).to(device).eval()

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
        attributor = TracInAttributor(task, torch.ones(1), normalized_grad=True, device=device)
        attributor.projector_kwargs = None  # the constructor takes None for a projection to 512
        return attributor.attribute(samples, directions)[torch.tensor(order).argsort()]

    return score


@dataclass(frozen=True)
class Peer:
    open: Callable[[Case], Score]
    estimator: str
    computes: str
    leaves_out: str


PEERS = {
    "bergson": Peer(
        open_bergson,
        "linear",
        "cos(w, g / (sqrt(v) + eps)): batched hooks, v frozen at the checkpoint, gradients scored as they come",
        "the sample's own part in v', bias correction, momentum",
    ),
    "dattri": Peer(
        open_dattri,
        "gradient",
        "cos(w, g): Grad-Cos (TracIn with unit gradients), per-sample gradients by vmap over torch.func.grad",
        "the optimizer: Adam's two moments",
    ),
}


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"one pass over the examples took more than {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def measure(score: Score, samples: int, limit: float) -> dict:
    """Seconds of up to REPEATS passes after a first one, as many as the limit allows, and the scores."""
    started = time.perf_counter()
    with time_limit(limit):
        scores = score()
    first = time.perf_counter() - started
    seconds: list[float] = []
    while len(seconds) < REPEATS and time.perf_counter() - started + first < limit:
        begun = time.perf_counter()
        score()
        seconds.append(time.perf_counter() - begun)
    seconds = seconds or [first]
    return {"seconds": seconds, "samples_per_second": samples / min(seconds), "scores": scores.tolist()}


def describe(name: str) -> dict:
    return {key: getattr(PEERS[name], key) for key in ("estimator", "computes", "leaves_out")}


def measure_peer(name: str, case: Case, limit: float) -> dict:
    """One peer's entry. Whatever it raises becomes its error."""
    entry = describe(name)
    try:
        entry["version"] = version(name)
        entry |= measure(PEERS[name].open(case), len(case.examples), limit)
    except Exception as error:  # a finding about the peer, to be reported beside the other's
        entry["error"] = f"{type(error).__name__}: {error}"
    return entry


def measure_peers(
    model: PeftModel,
    directions: torch.Tensor,
    moments: AdamMoments,
    examples: Sequence[Example],
    batch_tokens: int,
    limit: float = LIMIT,
) -> dict[str, dict]:
    """Every peer's entry, measured by .venv-peers' interpreter; where that is missing or dies, the error says so."""
    if not PYTHON.exists():
        return {name: describe(name) | {"error": "not installed; run `make setup-peers`"} for name in PEERS}
    with tempfile.TemporaryDirectory() as folder:
        save_case(Path(folder), model, directions, moments, examples, batch_tokens)
        out = Path(folder, "peers.json")
        command = [PYTHON, "-m", "benchmarks.influence.peers", "--case", folder, "--json", out, "--limit", str(limit)]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        found = json.loads(out.read_text()) if out.exists() else {}
    lost = {"error": f"its process ended with exit code {run.returncode}: {run.stderr[-500:]}"}
    return {name: found.get(name, describe(name) | lost) for name in PEERS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", type=Path, required=True, help="folder that save_case wrote")
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds that each peer may score for")
    arguments = parser.parse_args()
    case = load_case(arguments.case)
    found = {}
    for name in PEERS:
        found[name] = measure_peer(name, case, arguments.limit)
        arguments.json.write_text(json.dumps(found))  # kept, should the next one take the process with it


if __name__ == "__main__":
    main()

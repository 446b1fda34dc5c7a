"""The exact influence score: how fast it is beside what it replaces, and whether it is right.

    python -m benchmarks.influence --json FILE

Prints tables and writes FILE, {"machine": ..., "speed": ..., "peers": ..., "fidelity": ...}, anew after every
measurement. Two models: one of 20 million parameters on 256-token samples (random weights), and the lab's target after
a short warm-up, whose figures end in _lab. Every pass over the samples is timed whole, from token ids to scores.
`--parts` measures some of the three and keeps the others as FILE has them; `--model DIR` adds SmolLM2-135M to the
peers', from the folder that `rubric-influence model fetch smollm2-135m DIR` wrote.

speed
    exact_over_plain_step      seconds, over a forward and backward of LoRA training on the same batches
    exact_over_batch1          samples a second, over the same score by batch-1 autograd
    exact_over_published_path  samples a second, over batch 1 and a random projection to 8192, as LESS and OptimSyn do
    forward_only_over_forward  seconds of the forward estimator along one direction, over one forward
    memory_over_plain_step     peak memory of a pass, over the plain step's
peers
    what `benchmarks.influence.peers` tells of dattri-llm, bergson, dattri and ours, by "PEER MODEL DIRECTIONS"
fidelity
    max_abs_cosine_error_vs_fp64    of fp32 scores, to batch-1 autograd in fp64
    one_step_spearman               of dot products, with what a real AdamW step on the sample does to the loss
    gain_r2                         of a set's mean score, with what training on the set gains on held-out questions
    cosine_gain_r2                  the same of the paper's cosine in place of the dot product
    embedding_gain_r2               of its mean embedding similarity with the same
    gain_r2_far                     gain_r2 where training goes far from the checkpoint

The projection and the peers need `make setup-peers`; without it their figures are null.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.influence.fidelity import measure_cosine_error, measure_gains, measure_one_step
from benchmarks.influence.lab import Case, make_case
from benchmarks.influence.published import PROJECTED
from benchmarks.influence.speed import (
    Size,
    Workload,
    build_workload,
    measure_against_peers,
    measure_exact,
    measure_forward_only,
    measure_memory,
    measure_published,
    use_case,
    use_model,
)
from rubric_influence.core.files import write_json

# (section, figure) -> (what must hold, of it and the limit).
GOALS = {
    ("speed", "exact_over_plain_step"): ("<=", 1.0),
    ("speed", "exact_over_plain_step_lab"): ("<=", 1.0),
    ("speed", "exact_over_published_path"): (">=", 10.0),
    ("speed", "exact_over_batch1_lab"): (">=", 4.0),
    ("speed", "forward_only_over_forward"): ("<=", 2.3),
    ("speed", "memory_over_plain_step"): ("<=", 1.05),
    ("fidelity", "max_abs_cosine_error_vs_fp64"): ("<=", 1e-5),
    ("fidelity", "one_step_spearman"): (">=", 0.99),
    ("fidelity", "gain_r2"): (">=", 0.57),
}
COLUMNS = 512  # of the projection's 8192 that are timed on a CPU for the larger model
PEER_LIMIT = 300.0  # seconds that each measurement of a peer may take
PARTS = ("speed", "peers", "fidelity")
Measurement = tuple[str, str, Callable[[], dict]]  # section, what the progress line says, the measurement


def list_measurements(size: Size, case: Case, seed: int, peers: bool, model: Path | None = None) -> list[Measurement]:
    """Every measurement, each independent of the others; their parts are merged by section."""
    large, lab = build_workload(size, seed), use_case(case)
    columns = PROJECTED if torch.cuda.is_available() else COLUMNS

    def against_peers(name: str, work: Workload) -> Measurement:
        what = f"dattri-llm, bergson and dattri on {name}"
        return "peers", what, lambda: measure_against_peers(work, name, seed, PEER_LIMIT)

    measurements: list[Measurement] = [
        ("speed", "exact scores, a plain step and batch 1", lambda: measure_exact(large, repeats=3)),
        ("speed", "the same on the lab's model", lambda: measure_exact(lab, repeats=5)),
        ("speed", "the forward estimator", lambda: measure_forward_only(large, repeats=3)),
        ("speed", "memory", lambda: measure_memory(size, seed)),
        ("fidelity", "cosines against fp64 autograd", lambda: measure_cosine_error(case)),
        ("fidelity", "dot products against real optimizer steps", lambda: measure_one_step(case)),
        ("fidelity", "mean scores of sets against what training on them gains", lambda: measure_gains(case)),
    ]
    if peers:
        measurements += [
            ("speed", "the published path", lambda: measure_published(large, columns)),
            ("speed", "the same on the lab's model", lambda: measure_published(lab, PROJECTED)),
            against_peers("lab", lab),
            against_peers("20M", large),
        ]
        if model:
            measurements.append(against_peers("SmolLM2-135M", use_model(model, seed)))
    return measurements


def describe_machine(threads: int) -> dict:
    """What the figures depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def list_rows(found: dict) -> list[tuple[str, str, str, str]]:
    """(quantity, value, goal, met or not): figures with a goal first, then all others."""
    figures = {(section, name): value for section in ("speed", "fidelity") for name, value in found[section].items()}
    rows = []
    for key in [*GOALS, *(key for key in figures if key not in GOALS)]:
        value = figures.get(key)
        if isinstance(value, tuple):  # an interval
            shown = f"{value[0]:.3g} to {value[1]:.3g}"
        else:
            shown = f"{value:.4g}" if isinstance(value, int | float) else value or "not measured"
        sign, limit = GOALS.get(key, ("", 0.0))
        if not sign or value is None:
            verdict = ""
        else:
            verdict = "met" if (value <= limit if sign == "<=" else value >= limit) else "NOT MET"
        rows.append((key[1], shown, f"{sign} {limit:g}" if sign else "", verdict))
    return rows


def list_peers(found: dict) -> list[str]:
    """The peers' table in Markdown, a line a row; memory is a pass's, ours below it."""
    lines = ["| peer | model | directions | seconds | ours | ours over its | MiB | ours | largest difference |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for key, entry in found["peers"].items():
        peer, model, count = key.split()
        if peer == "ours":
            continue
        ours = found["peers"].get(f"ours {model} {count}", {})
        figures = [entry.get(name) for name in ("seconds", "ours_seconds", "ours_over_peer", "peak_mib")]
        shown = ["-" if figure is None else f"{figure:.3g}" for figure in figures]
        shown += [f"{ours['peak_mib']:.3g}" if "peak_mib" in ours else "-"]
        told = entry.get("error") or f"{entry['max_abs_difference']:.1e} ({entry['estimator']})"
        lines.append("| " + " | ".join([peer, model, count, *shown, told]) + " |")
    return lines


def print_table(found: dict) -> None:
    rows = [("quantity", "value", "goal", ""), *list_rows(found)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for name, value, goal, verdict in rows:
        print(f"{name:<{widths[0]}}  {value:>{widths[1]}}  {goal:<{widths[2]}}  {verdict}".rstrip())
    print(*list_peers(found), sep="\n")
    if found["speed"].get("exact_over_published_path") is None:
        print("the published path was not measured: it needs traker; run `make setup-peers`")


def begin(path: Path, machine: dict, parts: Sequence[str]) -> dict:
    """What is not measured anew, from the file at `path`. Raises ValueError if that is of another machine."""
    found = {"machine": machine} | {part: {} for part in PARTS}
    if kept := [part for part in PARTS if part not in parts]:
        before = json.loads(path.read_text())
        if before["machine"] != machine:
            raise ValueError(f"{path} is of {before['machine']}, this machine is {machine}; measure all parts anew")
        found |= {part: before[part] for part in kept}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--seed", type=int, default=0)
    # On batches of one and on the lab's model a second thread mostly waits, so more would slow the others' side.
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    parser.add_argument("--skip-peers", action="store_true", help="leave out the peers and the published path")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure; default: all")
    parser.add_argument("--model", type=Path, help="folder of SmolLM2-135M, to compare with the peers on it too")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # the peers' process reads it
    torch.set_num_threads(arguments.threads)
    started = time.perf_counter()

    def tell(what: str) -> None:
        print(f"[{time.perf_counter() - started:4.0f} s] {what}", file=sys.stderr, flush=True)

    found = begin(arguments.json, describe_machine(arguments.threads), arguments.parts)
    tell("the lab's target: a short warm-up")
    case = make_case(arguments.seed)
    peers = not arguments.skip_peers
    for section, what, measure in list_measurements(Size(), case, arguments.seed, peers, arguments.model):
        if section not in arguments.parts:
            continue
        tell(what)
        found[section] |= measure()
        write_json(arguments.json, found)
    tell("done")
    print_table(found)


if __name__ == "__main__":
    main()

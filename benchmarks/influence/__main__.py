"""The exact influence score: how fast it is beside what it replaces, and whether it is right.

    python -m benchmarks.influence --json FILE

Prints a table and writes FILE, {"machine": ..., "speed": ..., "peers": ..., "fidelity": ...}, anew after every
measurement. Two models: one of 20 million parameters on 256-token samples (random weights), and the lab's target after
a short warm-up, whose figures end in _lab. Every pass over the samples is timed whole, from token ids to scores.

speed
    exact_over_plain_step      seconds, over a forward and backward of LoRA training on the same batches
    exact_over_batch1          samples a second, over the same score by batch-1 autograd
    exact_over_published_path  samples a second, over batch 1 and a random projection to 8192, as LESS and OptimSyn do
    forward_only_over_forward  seconds of the forward estimator along one direction, over one forward
    memory_over_plain_step     peak memory of a pass, over the plain step's
peers
    exact_over_peer            samples a second, over bergson's and dattri's nearest scores
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
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.influence.fidelity import measure_cosine_error, measure_gains, measure_one_step
from benchmarks.influence.lab import Case, make_case
from benchmarks.influence.published import PROJECTED
from benchmarks.influence.speed import (
    Size,
    build_workload,
    measure_against_peers,
    measure_exact,
    measure_forward_only,
    measure_memory,
    measure_published,
    use_case,
)
from rubric_influence.core.files import write_json

# (section, figure) -> (what must hold, of it and the limit).
GOALS = {
    ("speed", "exact_over_plain_step"): ("<=", 1.15),
    ("speed", "exact_over_published_path"): (">=", 10.0),
    ("speed", "exact_over_batch1_lab"): (">=", 4.0),
    ("speed", "forward_only_over_forward"): ("<=", 2.3),
    ("speed", "memory_over_plain_step"): ("<=", 1.2),
    ("fidelity", "max_abs_cosine_error_vs_fp64"): ("<=", 1e-5),
    ("fidelity", "one_step_spearman"): (">=", 0.99),
    ("fidelity", "gain_r2"): (">=", 0.57),
}
COLUMNS = 512  # of the projection's 8192 that are timed on a CPU for the larger model
PEER_LIMIT = 30.0  # seconds that each peer may score for
Measurement = tuple[str, str, Callable[[], dict]]  # section, what the progress line says, the measurement


def list_measurements(size: Size, case: Case, seed: int, peers: bool) -> list[Measurement]:
    """Every measurement, each independent of the others; their parts are merged by section."""
    large, lab = build_workload(size, seed), use_case(case)
    columns = PROJECTED if torch.cuda.is_available() else COLUMNS
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
            ("peers", "bergson and dattri", lambda: measure_against_peers(large, PEER_LIMIT)),
            ("peers", "the same on the lab's model", lambda: measure_against_peers(lab, PEER_LIMIT)),
        ]
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
    figures |= {("peers", f"exact_over_{name}"): entry["exact_over_peer"] for name, entry in found["peers"].items()}
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


def print_table(found: dict) -> None:
    rows = [("quantity", "value", "goal", ""), *list_rows(found)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for name, value, goal, verdict in rows:
        print(f"{name:<{widths[0]}}  {value:>{widths[1]}}  {goal:<{widths[2]}}  {verdict}".rstrip())
    for name, entry in found["peers"].items():
        told = entry.get("error") or f"computes {entry['computes']}; leaves out {entry['leaves_out']}"
        print(f"{name}: {told}")
    if found["speed"].get("exact_over_published_path") is None:
        print("the published path was not measured: it needs traker; run `make setup-peers`")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--seed", type=int, default=0)
    # On batches of one and on the lab's model a second thread mostly waits, so more would slow the others' side.
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    parser.add_argument("--skip-peers", action="store_true", help="leave out the published path, bergson and dattri")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # the peers' process reads it
    torch.set_num_threads(arguments.threads)
    started = time.perf_counter()

    def tell(what: str) -> None:
        print(f"[{time.perf_counter() - started:4.0f} s] {what}", file=sys.stderr, flush=True)

    found: dict = {"machine": describe_machine(arguments.threads), "speed": {}, "peers": {}, "fidelity": {}}
    tell("the lab's target: a short warm-up")
    case = make_case(arguments.seed)
    for section, what, measure in list_measurements(Size(), case, arguments.seed, not arguments.skip_peers):
        tell(what)
        found[section] |= measure()
        write_json(arguments.json, found)
    tell("done")
    print_table(found)


if __name__ == "__main__":
    main()

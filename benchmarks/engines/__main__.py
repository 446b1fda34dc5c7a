"""Text engines beside what one would otherwise run, and what our own code costs.

    python -m benchmarks.engines --json FILE [--parts endpoint overhead vllm]

Prints a table and merges what it measured into FILE, which keeps its other parts; each part says what machine it ran
on.

endpoint    throughput_over_bare: requests a second, over a bare asyncio load generator's at equal concurrency
overhead    own_share: part of a synthesis run's time that is not the engine's
vllm        throughput_over_transformers: tokens a second in process, over our transformers engine's
"""

import argparse
import importlib
import json
import os
from pathlib import Path

import torch

from benchmarks.influence.__main__ import describe_machine
from rubric_influence.core.files import write_json

PARTS = ("endpoint", "overhead", "vllm")
GOALS = {("endpoint", "throughput_over_bare"): (">=", 0.90), ("overhead", "own_share"): ("<=", 0.05)}
GOALS |= {("vllm", "throughput_over_transformers"): (">=", 3.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--threads", type=int, default=1, help="of torch; default: 1")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    for part in arguments.parts:
        try:
            module = importlib.import_module(f"benchmarks.engines.{part}")
        except ImportError as error:
            print(f"{part} was not measured: {error}")
            continue
        load = round(os.getloadavg()[0], 2)  # before it: what else ran
        figures = getattr(module, f"measure_{part}")()
        machine = describe_machine(arguments.threads) | {"load_before": load}
        found[part] = {"machine": machine, **figures}
        write_json(arguments.json, found)
    for (part, name), (sign, limit) in GOALS.items():
        value = found.get(part, {}).get(name)
        verdict = "not measured"
        if value is not None:
            verdict = "met" if (value >= limit if sign == ">=" else value <= limit) else "NOT MET"
        print(f"{part:<10}{name:<32}{value!s:>8}  {sign} {limit:g}  {verdict}")


if __name__ == "__main__":
    main()

"""The gate on real language: does influence predict what training gains from a textbook's pairs?

    python -m benchmarks.textbooks --profile conf/anatomy-smollm2.yaml --json FILE

The profile names the book, the target and the teacher, which must be running where it is an endpoint. FILE receives
figures only, none of the book's text; figures of other profiles in it stay. A run that is stopped goes on from
scratch/textbooks.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from benchmarks.influence.__main__ import describe_machine
from benchmarks.textbooks.gate import GAINS, POOLS, SCORES, measure_gate
from rubric_influence.core.checks import RunStopped
from rubric_influence.core.files import write_json
from rubric_influence.core.profiles import load_config


def list_rows(found: dict) -> list[str]:
    """What is printed: the mean scores of pools, and the agreement of every prediction with both gains."""
    names = [*SCORES, "similarity", "loss", "length"]
    rows = ["mean of a pool".ljust(16) + "".join(name.rjust(12) for name in names)]
    rows += [pool.ljust(16) + "".join(f"{found['pools'][pool][name]:12.4g}" for name in names) for pool in POOLS]
    for draw in ("teacher", "mixed"):
        for gain in GAINS:
            figures = found[draw][gain]
            rows += ["", f"sets of {draw} pairs, gain in {gain}: {figures['mean_gain']:+.4f} on average"]
            for name in names:
                shown = [f"{figures[name][k]:+.2f} ({figures[name][k + '_ci95'][0]:+.2f} to "
                         f"{figures[name][k + '_ci95'][1]:+.2f})" for k in ("r2", "spearman")]  # fmt: skip
                rows.append(f"  {name:<12} R2 {shown[0]}   rank correlation {shown[1]}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.profile)
        threads = config.machine.threads or torch.get_num_threads()
        torch.set_num_threads(threads)
        found = measure_gate(config)
    except (ValueError, RunStopped) as error:
        sys.exit(str(error))
    name = f"{Path(config.corpus.path).name}/{Path(config.models.target.path).name}"
    kept = json.loads(arguments.json.read_text(encoding="utf-8")) if arguments.json.is_file() else {"gate": {}}
    kept |= {"machine": describe_machine(threads=threads), "gate": kept["gate"] | {name: found}}
    write_json(arguments.json, kept)
    print("\n".join(list_rows(found)))


if __name__ == "__main__":
    main()

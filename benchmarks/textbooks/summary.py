"""What a results file of textbooks says, as tables in Markdown.

    python -m benchmarks.textbooks.summary benchmarks/results/textbooks.json

prints them, a gate's and a run's for each book and target.
"""

import argparse
import json
from pathlib import Path

from benchmarks.rubrics.summary import render
from benchmarks.textbooks.gate import DRAWS, GAINS, POOLS
from benchmarks.textbooks.runs import BASELINE, MEASURES, PASSAGE_NATS

SHOWN_KINDS = 6
SPACES = {
    "embedding_mixing": "mixing by embeddings",
    "gradient_mixing": "mixing by gradients",
    "agreement": "rank correlation of the two cosines",
}


def show(mean: float, bounds: list[float], digits: int = 2) -> str:
    low, high = bounds
    return f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def tabulate_gate(found: dict) -> list[str]:
    """R² and rank correlation of every prediction with both gains, and every prediction's mean over each pool."""
    lines, names = [], list(found["pools"][POOLS[0]])
    for draw in DRAWS:
        columns = [(gain, figure) for gain in GAINS for figure in ("r2", "spearman")]
        header = [f"{found['sets']} sets of {draw} pairs", *(f"{gain}, {figure}" for gain, figure in columns)]
        rows = [
            [name, *(show(found[draw][g][name][f], found[draw][g][name][f"{f}_ci95"]) for g, f in columns)]
            for name in names
        ]
        means = [f"{found[draw][gain]['mean_gain']:+.4f} nats" for gain, figure in columns if figure == "r2"]
        lines += [render([header, *rows]), "", f"Gains on average: {' and '.join(means)}.", ""]
    pools = [[name, *(f"{found['pools'][pool][name]:.4g}" for pool in POOLS)] for name in names]
    lines.append(render([[f"mean over {found['pairs_a_pool']} pairs", *POOLS], *pools]))
    spaces = [
        [name, *(show(found["spaces"][pool][key], found["spaces"][pool][f"{key}_ci95"]) for pool in POOLS)]
        for key, name in SPACES.items()
    ]
    return [*lines, "", render([["beside validation questions", *POOLS], *spaces])]


def tabulate_run(entry: dict) -> list[str]:
    """Every arm's measures with their gains over the baseline, and the commonest kinds of its rubrics."""
    names, rows = (*MEASURES, PASSAGE_NATS), []
    for arm, row in entry["arms"].items():
        gains = [row[f"{name}_gain_over_{BASELINE}"] for name in names]
        ends = ["" if arm == BASELINE else f", {show(gain['mean'], gain['ci95'], 3)}" for gain in gains]
        rows.append([arm, *(f"{row[name]:.3f}{end}" for name, end in zip(names, ends, strict=True))])
    lines = [render([[f"{entry['questions']} questions, {entry['seeds']} seeds", *names], *rows])]
    for arm, row in entry["arms"].items():
        if kinds := row["kinds"][0]:
            common = [f"{100 * share:.0f} % “{text}”" for text, share in list(kinds.items())[:SHOWN_KINDS]]
            lines += ["", f"Rubrics of {arm}, first seed: {'; '.join(common)}"]
    return lines


def describe(results: dict) -> str:
    """All tables of a results file."""
    lines = []
    for name in sorted({*results["gate"], *results["runs"]}):
        if name in results["gate"]:
            lines += [f"**{name}, gate**", "", *tabulate_gate(results["gate"][name]), ""]
        if name in results["runs"]:
            lines += [f"**{name}, run**", "", *tabulate_run(results["runs"][name]), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    print(describe(json.loads(parser.parse_args().file.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()

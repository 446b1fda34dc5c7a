"""What a matrix of cells says, in figures and in Markdown.

    python -m benchmarks.rubrics.summary FILE

prints the tables of what `python -m benchmarks.rubrics` wrote to FILE.
"""

import argparse
import json
from collections.abc import Sequence

from benchmarks.rubrics.arms import ARMS, ROUNDS
from rubric_influence.core.paths import UNTUNED

BASELINE = "initial"
LARGEST_FACTOR = 2.5  # by which a topic's share may exceed or fall below the mean share


def name_column(cell: dict) -> str:
    teacher = f", {cell['teacher']} teacher" if cell["teacher"] != "qwen3" else ""
    return f"{cell['field']}, {cell['target']}{teacher}"


def summarise_cells(cells: Sequence[dict]) -> dict:
    """Over all cells that have what a figure takes:

    arms: arm -> its mean accuracy, its mean gain over initial, in how many cells it ran, in how many of them the gain's
        95 % interval lies above 0 and below 0, and by how much the optimised arm is ahead of it.
    optimised_over: what the optimised arm gains over an arm of the same cells: mean, lowest, and in how many cells the
        95 % interval lies above 0 and below 0, for initial, paper_reward and privileged_rubric, and for the best
        baseline: in each cell the best of all other arms but the privileged.
    topics: topic shares of the optimised arm's rubrics over the mean share of the exam's topics, by cell and over all:
        smallest and largest, of any topic and seed, and whether all are within LARGEST_FACTOR of it.
    """
    arms = {}
    for arm in (UNTUNED, *ARMS):
        if rows := [cell[arm] for cell in cells if arm in cell]:
            gains = [row["gain_over_initial"] for row in rows]
            compared = [cell for cell in cells if arm in cell and "optimised" in cell]
            ahead = [cell["optimised"]["mean"] - cell[arm]["mean"] for cell in compared]
            arms[arm] = {
                "mean": average(row["mean"] for row in rows),
                "gain_over_initial": average(gain["mean"] for gain in gains),
                **count_cells(gains),
                "optimised_ahead": average(ahead) if ahead else None,
            }
    over = {}
    for other in (BASELINE, "paper_reward", "privileged_rubric", "best_baseline"):
        if gains := [gain for cell in cells if (gain := cell.get("optimised", {}).get(f"gain_over_{other}"))]:
            means = [gain["mean"] for gain in gains]
            over[other] = {"mean": average(means), "lowest": min(means), **count_cells(gains)}
    topics = {
        name_column(cell): bound_topics(cell["optimised"]["topics_by_seed"]) for cell in cells if "optimised" in cell
    }
    bounds = [found for found in topics.values() if found]
    overall = {
        "smallest": min((found["smallest"] for found in bounds), default=None),
        "largest": max((found["largest"] for found in bounds), default=None),
        "cells_within_factor": sum(found["within_factor"] for found in bounds),
    }
    return {"cells": len(cells), "arms": arms, "optimised_over": over, "topics": overall, "topics_by_cell": topics}


def count_cells(gains: Sequence[dict]) -> dict[str, int]:
    above, below = sum(gain["ci95"][0] > 0 for gain in gains), sum(gain["ci95"][1] < 0 for gain in gains)
    return {"cells": len(gains), "cells_above": above, "cells_below": below}


def average(values) -> float:
    values = list(values)
    return round(sum(values) / len(values), 4)


def bound_topics(shares_by_seed: Sequence[dict[str, float]]) -> dict | None:
    """The smallest and largest share of a topic over the mean share, of any seed; None where no topic was asked for."""
    ratios = []
    for shares in shares_by_seed:
        if not (mean := sum(shares.values()) / len(shares)):
            return None
        ratios += [share / mean for share in shares.values()]
    smallest, largest = round(min(ratios), 3), round(max(ratios), 3)
    within = smallest >= 1 / LARGEST_FACTOR and largest <= LARGEST_FACTOR
    return {"smallest": smallest, "largest": largest, "within_factor": within}


def find_best_baseline(cell: dict) -> str:
    """The most accurate arm of a cell beside the method's own and the privileged, which knows the exam."""
    return max(
        (arm for arm in (UNTUNED, *ARMS) if arm in cell and arm not in ("optimised", ROUNDS, "privileged_rubric")),
        key=lambda arm: cell[arm]["mean"],
    )


def tabulate_all(found: dict) -> str:
    """Everything that the JSON file says, in Markdown."""
    cells = [cell for cell in found["cells"] if "optimised" in cell]
    parts = [tabulate_cells(cells), tabulate_summary(found["summary"]), tabulate(found["cells"])]
    return "\n\n".join(parts + ([tabulate_transfer(found["transfer"])] if found["transfer"] else []))


def tabulate_cells(cells: Sequence[dict]) -> str:
    """How the optimised arm does, a row a cell, in Markdown: accuracies in %, gains in points.

    A gain has no interval where the two arms were not run together.
    """
    arms = ("initial", "paper_reward", "optimised", "privileged_rubric")
    rows = [["cell", *arms, "optimised over initial", "over the best baseline", "which is"]]
    for cell in cells:
        means = [f"{100 * cell[arm]['mean']:.1f}" if arm in cell else "" for arm in arms]
        gains = []
        for other, arm in (("initial", BASELINE), ("best_baseline", cell["best_baseline"])):
            gain = cell["optimised"].get(f"gain_over_{other}", {})
            mean = gain.get("mean", cell["optimised"]["mean"] - cell[arm]["mean"])
            interval = (" ({:+.1f} to {:+.1f})".format(*(100 * bound for bound in gain["ci95"]))) if gain else ""
            gains.append(f"{100 * mean:+.1f}{interval}")
        rows.append([name_column(cell), *means, *gains, cell["best_baseline"]])
    return render(rows)


def tabulate(cells: Sequence[dict]) -> str:
    """Accuracy by arm, a column a cell, in Markdown: % with its interval; the best arm on average first."""
    means = {arm: [cell[arm]["mean"] for cell in cells if arm in cell] for arm in (UNTUNED, *ARMS)}
    arms = sorted((arm for arm in means if means[arm]), key=lambda arm: -average(means[arm]))
    rows = [["arm", *map(name_column, cells)]]
    for arm in arms:
        row = [arm]
        for cell in cells:
            if arm in cell:
                low, high = (100 * bound for bound in cell[arm]["ci95"])
                row.append(f"{100 * cell[arm]['mean']:.1f} ({low:.1f} to {high:.1f})")
            else:
                row.append("")
        rows.append(row)
    return render(rows)


def tabulate_summary(summary: dict) -> str:
    """The gains of the optimised arm over all cells, its topics, and how every arm does, in Markdown."""
    counted = ("cells", "cells_above", "cells_below")
    rows = [["optimised over", "mean, points", "lowest", "cells", "interval above 0", "interval below 0"]]
    for other, found in summary["optimised_over"].items():
        gains = [f"{100 * found[key]:+.1f}" for key in ("mean", "lowest")]
        rows.append([other, *gains, *(str(found[key]) for key in counted)])
    arms = [["arm", "accuracy", "over initial", "cells", "interval above 0", "interval below 0", "optimised ahead by"]]
    for arm, found in sorted(summary["arms"].items(), key=lambda row: -row[1]["mean"]):
        ahead = "" if found["optimised_ahead"] is None else f"{100 * found['optimised_ahead']:+.1f}"
        gain = f"{100 * found['gain_over_initial']:+.1f}"
        arms.append([arm, f"{100 * found['mean']:.1f}", gain, *(str(found[key]) for key in counted), ahead])
    topics = summary["topics"]
    return (
        f"{render(rows)}\n\n{render(arms)}\n\nShare of a topic over the mean share, optimised: {topics['smallest']} to "
        f"{topics['largest']}; within a factor of {LARGEST_FACTOR} in {topics['cells_within_factor']} of "
        f"{summary['cells']} cells"
    )


def tabulate_transfer(transfer: Sequence[dict]) -> str:
    """Accuracy on a target by what the generator was optimised for, a row a pair, in Markdown."""
    rows = [["field", "optimised for", "used for", "initial", "optimised for the other", "optimised for this"]]
    for entry in transfer:
        means = [f"{100 * entry[key]:.1f}" for key in ("initial_mean", "optimised_mean", "own_target_mean")]
        rows.append([entry["field"], entry["from_target"], entry["to_target"], *means])
    return render(rows)


def render(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=argparse.FileType(encoding="utf-8"), help="what benchmarks.rubrics wrote")
    print(tabulate_all(json.load(parser.parse_args().file)))

import json
from pathlib import Path

from benchmarks.rubrics.summary import (
    bound_topics,
    find_best_baseline,
    summarise_cells,
    tabulate,
    tabulate_all,
    tabulate_cells,
    tabulate_summary,
)

REPOSITORY = Path(__file__).parents[2]


def make_cell(field, teacher="qwen3", topics=None, gains=None, **means):
    rows = {
        arm: {
            "mean": mean,
            "ci95": [mean - 0.05, mean + 0.05],
            "gain_over_initial": {"mean": mean - means["initial"], "ci95": [0.0, 0.0]},
        }
        for arm, mean in means.items()
    }
    if "optimised" in rows:
        rows["optimised"]["topics_by_seed"] = topics or [{"dose": 0.3, "cost": 0.5}]
        rows["optimised"] |= {f"gain_over_{other}": gain for other, gain in (gains or {}).items()}
    return {"field": field, "target": "qwen3", "teacher": teacher, **rows}


def test_the_table_has_a_column_a_cell_and_the_best_arm_first():
    cells = [make_cell("law", initial=0.3, optimised=0.5), make_cell("art", teacher="llama", initial=0.25)]
    assert tabulate(cells).splitlines() == [
        "| arm | law, qwen3 | art, qwen3, llama teacher |",
        "| --- | --- | --- |",
        "| optimised | 50.0 (45.0 to 55.0) |  |",
        "| initial | 30.0 (25.0 to 35.0) | 25.0 (20.0 to 30.0) |",
    ]


def test_the_best_baseline_is_neither_the_optimised_arm_nor_one_that_knows_the_exam():
    cell = make_cell("law", initial=0.3, optimised=0.6, privileged_rubric=0.7, two_rounds=0.5, dpo=0.4, untuned=0.2)
    assert find_best_baseline(cell) == "dpo"


def test_topics_are_bounded_over_all_seeds_relative_to_the_mean_share():
    # Means 0.4 and 0.3: ratios 0.75, 1.25 and 0.4, 1.6.
    found = bound_topics([{"dose": 0.3, "cost": 0.5}, {"dose": 0.12, "cost": 0.48}])
    assert found == {"smallest": 0.4, "largest": 1.6, "within_factor": True}
    assert bound_topics([{"dose": 0.1, "cost": 0.9}]) == {"smallest": 0.2, "largest": 1.8, "within_factor": False}
    assert bound_topics([{"dose": 0.0, "cost": 0.0}]) is None


def test_the_summary_is_over_the_cells_that_have_what_it_takes():
    above, across, below = ({"mean": m, "ci95": [m - 0.1, m + 0.1]} for m in (0.3, 0.05, -0.2))
    cells = [
        make_cell("law", initial=0.3, optimised=0.6, paper_reward=0.3, gains={"initial": above, "paper_reward": above}),
        make_cell("art", initial=0.4, optimised=0.45, topics=[{"a": 0.1, "b": 0.9}], gains={"initial": across}),
        make_cell("war", initial=0.5, optimised=0.3, gains={"initial": below}),
    ]
    found = summarise_cells(cells)
    counted = {"cells": 3, "cells_above": 1, "cells_below": 1}
    assert found["arms"]["optimised"] == {"mean": 0.45, "gain_over_initial": 0.05, **counted, "optimised_ahead": 0.0}
    assert found["arms"]["initial"]["optimised_ahead"] == 0.05
    assert found["arms"]["paper_reward"]["cells"] == 1 and "dpo" not in found["arms"]
    over = found["optimised_over"]
    assert over["initial"] == {"mean": 0.05, "lowest": -0.2, "cells": 3, "cells_above": 1, "cells_below": 1}
    assert over["paper_reward"]["cells"] == 1 and "best_baseline" not in over
    assert found["topics"] == {"smallest": 0.2, "largest": 1.8, "cells_within_factor": 2}
    printed = tabulate_summary(found)
    assert "| initial | +5.0 | -20.0 | 3 | 1 | 1 |" in printed
    assert "| paper_reward | 30.0 | +0.0 | 1 | 0 | 0 | +30.0 |" in printed
    assert "0.2 to 1.8; within a factor of 2.5 in 2 of 3 cells" in printed


def test_a_cell_is_told_in_a_row_with_its_best_baseline():
    gains = {other: {"mean": 0.3, "ci95": [0.1, 0.5]} for other in ("initial", "best_baseline")}
    cell = make_cell("law", initial=0.3, optimised=0.6, privileged_rubric=0.7, gains=gains) | {
        "best_baseline": "initial"
    }
    gained = "+30.0 (+10.0 to +50.0)"
    assert tabulate_cells([cell]).splitlines()[2:] == [
        f"| law, qwen3 | 30.0 |  | 60.0 | 70.0 | {gained} | {gained} | initial |"
    ]


def test_the_page_shows_what_the_committed_figures_say():
    found = json.loads((REPOSITORY / "benchmarks/results/rubrics.json").read_text(encoding="utf-8"))
    page = (REPOSITORY / "docs/rubrics.md").read_text(encoding="utf-8")
    assert found["summary"] == summarise_cells(found["cells"])
    assert tabulate_all(found) in page

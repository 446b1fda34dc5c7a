import math

import pytest
import torch

from rubric_influence.core.records import QAPair, Rubric
from rubric_influence.rl.history import count_problems, tabulate_rollouts, tabulate_steps, tabulate_windows
from rubric_influence.rl.rewards import ServedDirections
from rubric_influence.rl.scores import Directions
from rubric_influence.rl.trajectories import TaughtPair, Trajectory

LEAKED = "13 words in a row are those of a validation question"


def make(step, rubric, influence, answer="5 mg", reward=1.0):
    """A trajectory with one pair: its influence along validation, two topics and guard; None: it cannot be used."""
    pair = QAPair("q", answer, "d", "r", "t", 0, 0) if influence else QAPair("", "", "d", "r", "t", 0, 0, LEAKED)
    return Trajectory(step, Rubric(rubric, "d", "g", 0, 0), [TaughtPair(pair, 5, 9, influence)], reward)


RUN = [
    make(0, "ask for the dose", [1.0, 2.0, 0.0, 3.0], answer="5 mg a day"),
    make(0, "ask for the colour", [3.0, 0.0, 2.0, 1.0], reward=3.0),
    make(1, "ask for the dose", [5.0, 9.0, -1.0, 0.5]),
    make(1, "ask for the dose", None, reward=-0.1),
    Trajectory(1, Rubric("", "d", "g", 0, 0, "no JSON object", "dose"), [], reward=-0.1),
]


def test_a_steps_row_has_its_figures_by_hand():
    table = tabulate_steps(RUN, Directions(("dose", "colour")))
    first, second = (row for _, row in table.iterrows())
    assert list(table.index) == [1, 2]
    assert first["reward"] == 2.0 and first["influence"] == 2.0 and first["guard_influence"] == 2.0
    assert first["covered_directions"] == pytest.approx(2)  # both topics have 2 of 4
    assert first["commonest_rubric"] == 0.5 and first["answer_words"] == (4 + 2) / 2
    assert second["valid"] == pytest.approx(1 / 3) and second["covered_directions"] == pytest.approx(1)
    assert second["commonest_rubric"] == pytest.approx(2 / 3) and second["answer_words"] == 2
    assert second["reward"] == pytest.approx((1 - 0.1 - 0.1) / 3)


def test_a_step_without_a_valid_pair_is_a_row_of_zeros():
    table = tabulate_steps(RUN[-2:], Directions(("dose", "colour")))
    assert table.loc[2, ["influence", "answer_words", "valid"]].tolist() == [0, 0, 0]


def test_rollouts_have_a_row_a_pair_and_tell_what_could_not_be_used():
    table = tabulate_rollouts(RUN)
    assert table["step"].tolist() == [1, 1, 2, 2, 2]
    assert table.loc[0, ["influence", "guard_influence"]].tolist() == [1.0, 3.0]
    assert table["problem"].tolist() == ["", "", "", LEAKED, "no JSON object"]
    assert table.loc[4, "rubric"] == "dose" and math.isnan(table.loc[4, "influence"])


def test_problems_of_rubrics_and_pairs_are_counted():
    assert count_problems([*RUN, *RUN[-1:]]) == {"no JSON object": 2, LEAKED: 1}


def test_a_windows_row_is_what_the_guards_judge_by():
    directions, served = Directions(("dose",), ("dev, dose",)), ServedDirections(torch.tensor([1.0]))
    influence = [[1.0, 0.0, 1.0, 5.0], [3.0, 0.0, 1.0, 5.0], [4.0, 0.0, 2.0, 5.0], [6.0, 0.0, 2.0, 1.0], [9.0] * 4]
    run = [make(step, "ask", row) for step, row in enumerate(influence)]
    table = tabulate_windows(run, directions, 2, served)
    assert list(table.index) == [2, 4]  # the third has one pair
    assert table["validation"].tolist() == [2.0, 5.0] and table["guard"].tolist() == [5.0, 3.0]
    assert table["validation_error"].tolist() == pytest.approx([1.0, 1.0])  # variance 2 over 2 pairs
    assert table["guard_error"].tolist() == pytest.approx([0.0, 2.0])  # variance 8 over 2 pairs
    assert table["dev_utility"].tolist() == pytest.approx([0.0, math.log(2)])
    assert "dev_utility" not in tabulate_windows(run, directions, 2)

import math

import pytest
import torch

from rubric_influence.core.records import QAPair, Rubric
from rubric_influence.rl.diagnostics import correlate, count_covered, describe_batch, share_between, share_within
from rubric_influence.rl.scores import Directions
from rubric_influence.rl.trajectories import TaughtPair, Trajectory


def make_row(document, rubric, *pairs):
    """A trajectory; a pair is (question, answer), or None for one that cannot be used."""
    written = [QAPair(*(pair or ("", "")), document, "", "t", 0, 0, "" if pair else "no JSON object") for pair in pairs]
    return Trajectory(0, Rubric(rubric, document, "g", 0, 0), [TaughtPair(pair, 0, 0) for pair in written])


def test_a_step_is_described_by_its_valid_pairs():
    rows = [
        make_row("d1", "ask", ("q1", "one"), ("q1", "one two")),
        make_row("d1", "ask", ("q3", "one two"), None),
        make_row("d2", "write", ("q2", "one two three"), ("q4", "one two three")),
        make_row("d2", "no"),
    ]
    # Along all validation questions, two clusters, and the guard's. What is not valid is never read.
    nan = [math.nan] * 4
    scores = Directions(("a", "b")).split_rows(
        [
            *([0.0, 0.1, 0.2, 0.2], [0.2, 0.2, -0.5, 0.0]),
            *([0.2, 0.0, 0.1, 0.1], nan),
            *([0.3, 0.3, 0.2, 0.1], [0.3, 0.0, 0.1, 0.1]),
            *(nan, nan),
        ]
    )
    valid_n = torch.tensor([True, True, True, False, True, True, False, False])
    found = describe_batch(rows, scores, valid_n)
    assert found == pytest.approx(
        {
            "valid": 5 / 8,
            "distinct_rubrics": 0.75,
            "duplicate_pairs": 0.2,  # q1 again, among five
            "influence": 0.2,
            "guard_influence": 0.1,
            "covered_directions": 2.0,  # 0.6 of positive influence each
            # About 0.2 the squares are 0.04, 0, 0, 0.01, 0.01. Documents' means: 0.4 / 3 and 0.3.
            "between_documents": (3 * (0.2 - 0.4 / 3) ** 2 + 2 * 0.1**2) / 0.06,
            "within_rubrics": 0.02 / 0.06,  # 0 and 0.2 of the first rubric, about 0.1
            # Lengths less 2.2: -1.2, -0.2, -0.2, 0.8, 0.8.
            "length_correlation": (1.2 * 0.2 + 2 * 0.8 * 0.1) / math.sqrt(2.8 * 0.06),
        },
        rel=1e-5,
    )


def test_a_step_without_a_valid_pair_is_described_by_zeros():
    rows = [make_row("d1", "no", None), make_row("d2", "no")]
    found = describe_batch(rows, Directions(("a", "b")).split(torch.zeros(2, 4)), torch.tensor([False, False]))
    assert found.pop("distinct_rubrics") == 0.5 and set(found.values()) == {0.0}


def test_without_groups_no_direction_is_covered():
    rows = [make_row("d1", "ask", ("q", "a"))]
    scores = Directions().split_rows([[0.5, 0.4]])
    assert describe_batch(rows, scores, torch.tensor([True]))["covered_directions"] == 0.0


def test_covered_directions_count_from_one_to_all():
    assert count_covered(torch.tensor([[0.2, 0.0, -1.0], [0.4, 0.0, 0.0]])) == pytest.approx(1)
    assert count_covered(torch.tensor([[0.2, 0.0], [0.0, 0.2]])) == pytest.approx(2)
    # Shares 3/4 and 1/4.
    assert count_covered(torch.tensor([[0.3, 0.1]])) == pytest.approx(4 / 3**0.75)
    assert count_covered(torch.tensor([[-0.3, -0.1]])) == 0.0


def test_variance_is_between_groups_wholly_or_not_at_all():
    assert share_between(["a", "b", "a", "b"], torch.tensor([1.0, 3.0, 1.0, 3.0])) == pytest.approx(1)
    assert share_between(["a", "b", "a", "b"], torch.tensor([1.0, 1.0, 3.0, 3.0])) == pytest.approx(0)
    assert share_between(["a", "b"], torch.tensor([2.0, 2.0])) == 0.0


def test_variance_within_groups_is_what_is_not_between_them():
    assert share_within(["a", "b", "a", "b"], torch.tensor([1.0, 3.0, 1.0, 3.0])) == pytest.approx(0)
    assert share_within(["a", "b", "a", "b"], torch.tensor([1.0, 1.0, 3.0, 3.0])) == pytest.approx(1)
    assert share_within(["a", "b"], torch.tensor([2.0, 2.0])) == share_within([], torch.zeros(0)) == 0.0


def test_correlation_is_of_two_that_vary():
    assert correlate(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2.0, 4.0, 8.0])) == pytest.approx(1)
    assert correlate(torch.tensor([1.0, 2.0]), torch.tensor([5.0, 3.0])) == pytest.approx(-1)
    assert correlate(torch.tensor([1.0, 1.0]), torch.tensor([5.0, 3.0])) == 0.0

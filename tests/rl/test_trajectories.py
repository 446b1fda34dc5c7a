import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.core.records import QAPair, Rubric
from rubric_influence.rl.scores import Directions, stack_scores
from rubric_influence.rl.trajectories import (
    TaughtPair,
    Trajectory,
    append_trajectories,
    cut_trajectories,
    read_trajectories,
    read_trajectory,
    stack_influence,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PROBLEM = st.sampled_from(["", "no JSON object"])
NUMBER = st.floats(-1e6, 1e6).map(lambda value: round(value, 6))


@st.composite
def taught_pairs(draw):
    problem = draw(PROBLEM)
    kept, raw = (("", ""), draw(TEXT)) if problem else ((draw(TEXT), draw(TEXT)), "")
    pair = QAPair(*kept, "d", "r", "teacher", 3, 0, problem, raw)
    influence = None if problem else draw(st.lists(NUMBER, min_size=2, max_size=2))
    return TaughtPair(pair, draw(st.integers(0, 99)), draw(st.integers(0, 99)), influence)


@st.composite
def trajectories(draw):
    problem = draw(PROBLEM)
    text, raw = ("", draw(TEXT)) if problem else (draw(TEXT), "")
    pairs = [] if problem else draw(st.lists(taught_pairs(), min_size=1, max_size=3))
    return Trajectory(draw(st.integers(0, 9)), Rubric(text, "d", "g", 3, 1, problem, raw), pairs, draw(NUMBER))


def make(step, *influences):
    """A trajectory whose pairs have these influences; None: one that cannot be used."""
    pairs = [
        TaughtPair(QAPair("q", "a", "d", "r", "t", 0, slot, "" if found else "no"), 5, 9, found)
        for slot, found in enumerate(influences)
    ]
    return Trajectory(step, Rubric("ask", "d", "g", 0, 0, "" if influences else "no JSON object"), pairs)


@given(trajectories())
def test_a_line_is_read_back_as_it_was_written(trajectory):
    row = trajectory.to_row()
    assert read_trajectory(json.loads(json.dumps(row, ensure_ascii=False))).to_row() == row


def test_a_log_is_read_in_order_without_a_line_that_was_cut_short(tmp_path):
    log = tmp_path / "log"
    append_trajectories(log, [make(0, [1.0, 2.0]), make(1, None)])
    append_trajectories(log, [make(2)])
    with log.open("ab") as file:
        file.write(b'{"step": 3, "docu')
    assert [t.step for t in read_trajectories(log)] == [0, 1, 2]


@pytest.mark.parametrize("torn", [b"", b'{"step": 2', b"\xc3"])
def test_a_cut_log_holds_what_came_before_the_step_byte_for_byte(tmp_path, torn):
    log, before = tmp_path / "log", tmp_path / "before"
    append_trajectories(before, [make(0, [1.0, 2.0]), make(0, None), make(1)])
    append_trajectories(log, [make(0, [1.0, 2.0]), make(0, None), make(1), make(2, [3.0, 4.0])])
    with log.open("ab") as file:
        file.write(torn)
    assert [t.step for t in cut_trajectories(log, 2)] == [0, 0, 1]
    assert log.read_bytes() == before.read_bytes()


def test_a_pair_that_cannot_be_used_or_was_never_asked_for_is_zero_and_not_valid():
    scores, valid_n = stack_influence([make(0, [1.0, 2.0], None), make(0), make(0, None, [3.0, 4.0])], 2, Directions())
    assert valid_n.tolist() == [True, False, False, False, False, True]
    assert torch.equal(stack_scores(scores), torch.tensor([[1.0, 2], [0, 0], [0, 0], [0, 0], [0, 0], [3, 4]]))

import pytest
import torch

from benchmarks.rubrics.signals import SignalScorer, in_first_units
from rubric_influence.rl.rewards import ServedDirections
from rubric_influence.rl.scores import Directions


def test_a_signal_is_in_units_of_its_first_batch():
    signal = in_first_units(lambda pairs: torch.tensor([float(pair) for pair in pairs]))
    unit = 12.5**0.5  # of 3 and -4: (9 + 16) / 2
    assert signal([3, -4]).tolist() == pytest.approx([3 / unit, -4 / unit])
    assert signal([1]).tolist() == pytest.approx([1 / unit])


def test_a_first_batch_without_any_signal_gives_zeros():
    signal = in_first_units(lambda pairs: torch.zeros(len(pairs)))
    assert signal([1, 2]).tolist() == [0, 0]


def test_the_guards_influence_lies_beside_the_signal():
    class Influence:
        served, expert_questions = ServedDirections(torch.ones(1)), None

        def __call__(self, pairs):
            return Directions().split(torch.tensor([[1.0, 7.0], [2.0, 8.0]]))

    scores = SignalScorer(Influence(), lambda pairs: torch.tensor([5.0, 6.0]))([None, None])
    assert scores.whole_n.tolist() == [5, 6] and scores.guard_n.tolist() == [7, 8] and scores.groups_nk.shape == (2, 0)

import pytest

from benchmarks.rubrics.preferences import DEFAULTS, prefer, tune
from rubric_influence.core.model_sections import ModelSpec


def test_the_best_of_a_group_is_preferred_to_its_worst_and_so_on_inwards():
    assert prefer([0.2, 0.9, -1.0, 0.5]) == [(1, 2), (3, 0)]
    assert prefer([3.0, 1.0, 2.0]) == [(0, 1)]  # the middle has no counterpart


def test_ties_are_no_preference():
    assert prefer([1.0, 1.0, 1.0, 1.0]) == []
    assert prefer([1.0, 2.0, 1.0, 0.0]) == [(1, 3)]


def test_training_on_no_preference_is_refused(tmp_path):
    with pytest.raises(ValueError, match="DPO has nothing to learn from"):
        tune(ModelSpec(path="any"), [], DEFAULTS, 0, tmp_path / "out", tmp_path / "scratch")

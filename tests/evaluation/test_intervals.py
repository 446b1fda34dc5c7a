import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.evaluation.intervals import bootstrap_means, summarise

A = np.array([[1, 0, 1, 1], [0, 0, 1, 1]], dtype=bool)  # two seeds, four items
B = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], dtype=bool)


def test_figures_of_arms_are_means_over_items_and_seeds():
    figures = summarise({"a": A, "b": B}, "a", count=500, seed=0)
    assert (figures["a"]["accuracy"], figures["a"]["mean"]) == ([0.75, 0.5], 0.625)
    assert (figures["b"]["accuracy"], figures["b"]["mean"]) == ([1.0, 0.75], 0.875)
    assert figures["b"]["gain_over_a"]["mean"] == 0.25
    for row in figures.values():
        low, high = row["ci95"]
        assert 0 <= low < row["mean"] < high <= 1


def test_arms_that_answer_alike_differ_by_exactly_nothing():
    figures = summarise({"a": A, "same": A.copy(), "b": B}, "a", count=500, seed=0)
    for arm in ("a", "same"):
        assert figures[arm]["gain_over_a"] == {"mean": 0.0, "ci95": [0.0, 0.0]}
        assert figures[arm]["ci95"] == figures["a"]["ci95"]
    low, high = figures["b"]["gain_over_a"]["ci95"]
    assert low < high


def test_a_difference_on_easy_and_hard_items_alike_is_surer_than_either_arm():
    # Item difficulty varies, the difference between arms hardly: paired draws cancel the items.
    rng = np.random.default_rng(0)
    base = np.tile(rng.random(400) < 0.5, (2, 1))
    better = base.copy()
    better[:, rng.choice(400, 20, replace=False)] = True
    figures = summarise({"base": base, "better": better}, "base", count=1000, seed=0)
    gain, arm = figures["better"]["gain_over_base"]["ci95"], figures["better"]["ci95"]
    assert gain[1] - gain[0] < (arm[1] - arm[0]) / 3


def test_an_interval_has_the_width_of_a_binomials():
    # One seed, 400 items, half right: 2 * 1.96 * sqrt(0.25 / 400) = 0.098.
    correct = np.arange(400)[None] % 2 == 0
    low, high = summarise({"a": correct}, "a", count=4000, seed=0)["a"]["ci95"]
    assert high - low == pytest.approx(0.098, rel=0.1)
    assert (low + high) / 2 == pytest.approx(0.5, abs=0.01)


def test_seeds_are_drawn_as_well_as_items():
    # One seed all right, one all wrong: half of the draws of two seeds are of one seed alone.
    correct = np.array([[True] * 50, [False] * 50])
    assert summarise({"a": correct}, "a", count=500, seed=0)["a"]["ci95"] == [0.0, 1.0]


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 6))
def test_bootstrap_means_are_means_of_the_drawn_answers(seed, seeds, items):
    correct_asi = np.random.default_rng(seed).random((2, seeds, items)) < 0.5
    means = bootstrap_means(correct_asi, 20, seed)
    assert means.shape == (20, 2)
    assert ((means >= 0) & (means <= 1)).all()
    assert np.allclose(means * seeds * items, np.round(means * seeds * items))
    assert (means == bootstrap_means(correct_asi, 20, seed)).all()
    everything = np.ones_like(correct_asi)
    assert (bootstrap_means(everything, 5, seed) == 1).all()


def test_fewer_nats_are_a_gain():
    base, less = np.full((1, 3), 2.0), np.full((1, 3), 1.5)
    figures = summarise({"base": base, "less": less}, "base", count=50, seed=0, name="answer_nats", losses=True)
    assert figures["less"] == {
        "answer_nats": [1.5],
        "mean": 1.5,
        "ci95": [1.5, 1.5],
        "gain_over_base": {"mean": 0.5, "ci95": [0.5, 0.5]},
    }


def test_a_measure_that_does_not_apply_to_an_item_is_refused():
    with pytest.raises(ValueError, match=r"accuracy is NaN for some items of \['a'\]; leave out the items"):
        summarise({"a": np.array([[1.0, np.nan]])}, "a", count=10, seed=0)


def test_a_baseline_that_is_no_arm_and_uneven_arms_are_refused():
    with pytest.raises(ValueError, match=r"baseline 'c' is not one of the arms \['a', 'b'\]"):
        summarise({"a": A, "b": B}, "c", count=10, seed=0)
    with pytest.raises(ValueError, match=r"not evaluated on the same seeds and items: shapes {'a': \(2, 4\), 'b'"):
        summarise({"a": A, "b": B[:1]}, "a", count=10, seed=0)

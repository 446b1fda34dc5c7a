import numpy as np
import pytest
import torch
from conftest import draw_examples

from rubric_influence.influence import spaces
from rubric_influence.influence.gradients import example_gradients
from rubric_influence.influence.spaces import (
    compare_spaces,
    draw_map,
    gradient_cosines,
    measure_mixing,
    summarise_spaces,
)


@pytest.fixture(scope="module")
def pairs(tokenizer):
    return draw_examples(tokenizer, 44, seed=5)


def make_cosines(places):
    """Cosines of unit vectors at these angles."""
    return np.cos(np.subtract.outer(places, places))


def test_gradient_cosines_are_those_of_single_gradients_whatever_the_block(warmed, pairs, monkeypatch):
    model, _, _ = warmed
    gradients = example_gradients(model, pairs[:7], batch_tokens=1)
    units = torch.nn.functional.normalize(gradients.double(), dim=1)
    assert torch.allclose(gradient_cosines(model, pairs[:7], 150).double(), units @ units.T, atol=1e-5)
    monkeypatch.setattr(spaces, "HELD", 3 * gradients.shape[1])
    assert torch.allclose(gradient_cosines(model, pairs[:7], 40).double(), units @ units.T, atol=1e-5)


def test_mixing_counts_synthetic_neighbours_against_chance():
    cosines = make_cosines(np.array([0.0, 0.1, 0.01, 0.12, 3.0]))  # two expert samples, each with a synthetic neighbour
    assert measure_mixing(cosines, expert=2, neighbours=1).tolist() == [4 / 3, 4 / 3]  # 3 of 4 others are synthetic
    apart = make_cosines(np.array([0.0, 0.1, 3.0, 3.1]))
    assert measure_mixing(apart, expert=2, neighbours=1).tolist() == [0, 0]


def test_equal_spaces_agree_and_shuffled_ones_do_not():
    rng = np.random.default_rng(0)
    cosines = make_cosines(rng.uniform(0, 3, size=60))
    same = summarise_spaces(cosines, cosines, 30, seed=0, resamples=50)
    assert same.agreement == pytest.approx(1) and same.embedding_mixing == same.gradient_mixing
    order = rng.permutation(60)
    other = summarise_spaces(cosines, cosines[np.ix_(order, order)], 30, seed=0, resamples=50)
    low, high = other.agreement_ci95
    assert low < 0 < high and low < other.agreement < high


def test_the_comparison_needs_enough_of_each(warmed, pairs):
    with pytest.raises(ValueError, match="44 expert and 3 synthetic samples; give at least 12 of each"):
        compare_spaces(warmed[0], pairs, pairs[:3], 400, seed=0)


def test_a_map_keeps_groups_apart_and_is_the_same_again(warmed, pairs):
    compared = compare_spaces(warmed[0], pairs[:22], pairs[22:], 400, seed=0)
    assert compared.embedding_nn.shape == compared.gradient_nn.shape == (44, 44)
    groups = make_cosines(np.r_[np.linspace(0, 0.1, 20), np.linspace(2.9, 3.0, 20)])
    places = draw_map(groups, seed=0)
    first, second = places[:20], places[20:]
    assert np.linalg.norm(first.mean(0) - second.mean(0)) > 2 * max(first.std(), second.std())
    assert np.array_equal(places, draw_map(groups, seed=0))

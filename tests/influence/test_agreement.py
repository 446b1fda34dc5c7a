import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from rubric_influence.influence.checks.agreement import draw_sets, measure_agreement, standardise


def draw(count, noise, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=count)
    return x, x + noise * rng.normal(size=count)


def test_figures_are_scipys():
    x, y = draw(40, 0.7)
    found = measure_agreement(x, y, seed=0)
    assert found.r2 == pytest.approx(pearsonr(x, y).statistic ** 2, abs=1e-12)
    assert found.spearman == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert found.sets == 40


def test_a_reversed_prediction_has_the_same_r2_and_the_opposite_rank_correlation():
    x, y = draw(40, 0.3)
    right, reversed_ = measure_agreement(x, y, seed=0), measure_agreement(-x, y, seed=0)
    assert reversed_.r2 == pytest.approx(right.r2)
    assert reversed_.spearman == pytest.approx(-right.spearman)
    assert reversed_.spearman_ci95[1] < 0


def test_hand_computed_ranks():
    # ranks 1..8 against 2 1 4 3 6 5 8 7: sum of squared differences 8, rho = 1 - 6*8 / (8*63)
    x, y = np.arange(8), np.array([2, 1, 4, 3, 6, 5, 8, 7])
    assert measure_agreement(x, y, seed=0).spearman == pytest.approx(1 - 48 / 504)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    # y = x + noise of deviation 1: the correlation is 1 / sqrt(2), R^2 one half
    held = []
    for seed in range(60):
        low, high = measure_agreement(*draw(60, 1.0, seed), seed=seed, resamples=400).r2_ci95
        held.append(low <= 0.5 <= high)
    assert 0.85 <= np.mean(held) <= 1.0


def test_no_relation_leaves_zero_inside_the_interval():
    rng = np.random.default_rng(3)
    found = measure_agreement(rng.normal(size=50), rng.normal(size=50), seed=0)
    assert found.spearman_ci95[0] < 0 < found.spearman_ci95[1]


def test_the_same_seed_gives_the_same_interval():
    x, y = draw(30, 0.5)
    assert measure_agreement(x, y, seed=4) == measure_agreement(x, y, seed=4)
    assert measure_agreement(x, y, seed=4).r2_ci95 != measure_agreement(x, y, seed=5).r2_ci95


@pytest.mark.parametrize(
    "x, y, said",
    [
        ([1.0] * 9, range(9), "all predictions are 1"),
        (range(9), [2.0] * 9, "all gains are 2"),
        (range(7), range(7), "at least 8 sets"),
        (range(9), range(8), "9.* predictions and .*8.* gains"),
        ([np.nan, *range(8)], range(9), "predictions of set 0 are not finite"),
    ],
)
def test_what_cannot_agree_is_refused(x, y, said):
    with pytest.raises(ValueError, match=said):
        measure_agreement(list(x), list(y), seed=0)


def test_standardised_values_have_mean_zero_and_deviation_one():
    assert standardise([1.0, 2.0, 3.0]) == pytest.approx([-(1.5**0.5), 0.0, 1.5**0.5])
    assert standardise([2.0, 2.0]).tolist() == [0.0, 0.0]


def test_sets_hold_different_samples_of_the_pool():
    sets = draw_sets(samples=20, count=30, size=10, seed=0)
    assert sets.shape == (30, 10) and sets.min() >= 0 and sets.max() < 20
    assert all(len(set(row)) == 10 for row in sets.tolist())
    assert len({tuple(sorted(row)) for row in sets.tolist()}) == 30


def test_a_pool_too_small_to_differ_in_is_refused():
    with pytest.raises(ValueError, match="19 samples are too few .* sets of 10 .* at least 20"):
        draw_sets(samples=19, count=3, size=10, seed=0)

"""How well a prediction for sets of samples agrees with what training on them gained: R^2, Spearman, intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap, rankdata


@dataclass(frozen=True)
class Agreement:
    """r2: squared Pearson correlation, the R^2 of the least-squares line. spearman: rank correlation, in [-1, 1].

    Each with its 95 % interval. R^2 does not tell a prediction from its opposite; spearman's sign does.
    """

    r2: float
    r2_ci95: tuple[float, float]
    spearman: float
    spearman_ci95: tuple[float, float]
    sets: int


def measure_agreement(
    predictions: Sequence[float], gains: Sequence[float], seed: int, resamples: int = 2000
) -> Agreement:
    """The agreement over sets; the intervals are percentiles of a bootstrap that resamples (prediction, gain) pairs.

    Sets that share samples are not independent, so the intervals say what other draws of sets from the same pool
    would give, not what another pool would. Raises ValueError for fewer than 8 sets, unequal counts, values that are
    not finite or all equal.
    """
    given = {"predictions": np.asarray(predictions, float), "gains": np.asarray(gains, float)}
    x, y = given.values()
    if x.shape != y.shape or x.ndim != 1 or len(x) < 8:
        raise ValueError(f"{x.shape} predictions and {y.shape} gains; give one of each for at least 8 sets")
    for name, values in given.items():
        if not np.isfinite(values).all():
            raise ValueError(f"the {name} of set {int(np.argmin(np.isfinite(values)))} are not finite")
        if np.ptp(values) == 0:
            raise ValueError(f"all {name} are {values[0]:g}, so nothing can agree; draw other or smaller sets")

    def measure(statistic: Callable[[np.ndarray, np.ndarray, int], np.ndarray]) -> tuple[float, tuple[float, float]]:
        rng, options = np.random.default_rng(seed), {"paired": True, "vectorized": True, "method": "percentile"}
        drawn = bootstrap((x, y), statistic, n_resamples=resamples, rng=rng, **options)
        # A resample of one set over and over has no correlation: nan, and as good as never drawn.
        low, high = np.nanpercentile(drawn.bootstrap_distribution, [2.5, 97.5])
        return float(statistic(x, y, -1)), (float(low), float(high))

    return Agreement(*measure(lambda a, b, axis: correlate(a, b, axis) ** 2), *measure(rank_correlate), sets=len(x))


def correlate(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
    """Pearson's correlation along an axis; nan where one side is constant."""
    x, y = (values - values.mean(axis=axis, keepdims=True) for values in (x, y))
    with np.errstate(invalid="ignore"):
        return (x * y).sum(axis=axis) / np.sqrt((x**2).sum(axis=axis) * (y**2).sum(axis=axis))


def rank_correlate(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
    """Spearman's: Pearson's of the ranks, ties sharing theirs."""
    return correlate(rankdata(x, axis=axis), rankdata(y, axis=axis), axis)


def standardise(values: np.ndarray) -> np.ndarray:
    """Values with mean 0 and deviation 1, so that sets of several models can be put into one agreement."""
    values = np.asarray(values, float)
    spread = values.std()
    return (values - values.mean()) / (spread if spread > 0 else 1.0)


def draw_sets(samples: int, count: int, size: int, seed: int) -> np.ndarray:
    """`count` random sets of `size` different indices below `samples`, [count, size].

    Raises ValueError if the pool is under twice a set's size: sets would mostly be the same.
    """
    if samples < 2 * size:
        raise ValueError(
            f"{samples} samples are too few to draw different sets of {size} from; give at least {2 * size}, or draw "
            "smaller sets"
        )
    rng = np.random.default_rng(seed)
    return np.stack([rng.choice(samples, size, replace=False) for _ in range(count)])

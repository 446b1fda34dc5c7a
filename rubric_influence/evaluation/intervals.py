"""Means of measures with paired bootstrap intervals."""

import numpy as np
from numpy.typing import NDArray

Measured = NDArray[np.float64]


def bootstrap_means(values_asi: Measured, count: int, seed: int) -> Measured:
    """The mean of every arm in `count` resamples of values_asi [arms, seeds, items]: [count, arms].

    Seeds and items are both drawn with replacement, the same draw for every arm: differences between arms are paired.
    """
    rng, (_, seeds, items) = np.random.default_rng(seed), values_asi.shape
    draws = ((rng.integers(seeds, size=seeds), rng.integers(items, size=items)) for _ in range(count))
    return np.array([values_asi[:, s][:, :, i].mean(axis=(1, 2)) for s, i in draws])


def interval(values: Measured) -> list[float]:
    """The ends of the central 95 % of the values."""
    return [round(float(q), 4) for q in np.quantile(values, [0.025, 0.975])]


def summarise(
    values: dict[str, NDArray], baseline: str, count: int, seed: int, name: str = "accuracy", losses: bool = False
) -> dict[str, dict]:
    """For every arm: the measure `name` by seed, mean, 95 % interval, gain over the baseline with its paired interval.

    `values` maps an arm to [seeds, items], the same seeds and items for all. A gain is positive where the arm is better
    than the baseline: higher, or with `losses` lower. Raises ValueError if shapes differ, the baseline is not an arm or
    a value is NaN.
    """
    if baseline not in values:
        raise ValueError(f"baseline {baseline!r} is not one of the arms {list(values)}")
    shapes = {arm: array.shape for arm, array in values.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"arms were not evaluated on the same seeds and items: shapes {shapes}")
    if unknown := [arm for arm, array in values.items() if np.isnan(array).any()]:
        raise ValueError(f"{name} is NaN for some items of {unknown}; leave out the items that it does not apply to")
    means = bootstrap_means(np.stack(list(values.values())), count, seed)
    base, sign = list(values).index(baseline), -1 if losses else 1
    return {
        arm: {
            name: [round(float(a), 4) for a in array.mean(axis=1)],
            "mean": round(float(array.mean()), 4),
            "ci95": interval(means[:, i]),
            f"gain_over_{baseline}": {
                "mean": round(float(sign * (array.mean() - values[baseline].mean())), 4) + 0.0,  # no -0.0
                "ci95": interval(sign * (means[:, i] - means[:, base])),
            },
        }
        for i, (arm, array) in enumerate(values.items())
    }

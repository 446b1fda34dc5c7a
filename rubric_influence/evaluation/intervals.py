"""Accuracies with paired bootstrap intervals."""

import numpy as np
from numpy.typing import NDArray


def bootstrap_means(correct_asi: NDArray[np.bool_], count: int, seed: int) -> NDArray[np.float64]:
    """The mean accuracy of every arm in `count` resamples of correct_asi [arms, seeds, items]: [count, arms].

    Seeds and items are both drawn with replacement, the same draw for every arm: differences between arms are paired.
    """
    rng, (_, seeds, items) = np.random.default_rng(seed), correct_asi.shape
    draws = ((rng.integers(seeds, size=seeds), rng.integers(items, size=items)) for _ in range(count))
    return np.array([correct_asi[:, s][:, :, i].mean(axis=(1, 2)) for s, i in draws])


def interval(values: NDArray[np.float64]) -> list[float]:
    """The ends of the central 95 % of the values."""
    return [round(float(q), 4) for q in np.quantile(values, [0.025, 0.975])]


def summarise(correct: dict[str, NDArray[np.bool_]], baseline: str, count: int, seed: int) -> dict[str, dict]:
    """For every arm: accuracy by seed, mean, 95 % interval, and the gain over the baseline with its paired interval.

    `correct` maps an arm to [seeds, items], the same seeds and items for all. Raises ValueError if shapes differ or the
    baseline is not an arm.
    """
    if baseline not in correct:
        raise ValueError(f"baseline {baseline!r} is not one of the arms {list(correct)}")
    shapes = {arm: array.shape for arm, array in correct.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"arms were not evaluated on the same seeds and items: shapes {shapes}")
    means = bootstrap_means(np.stack(list(correct.values())), count, seed)
    base = list(correct).index(baseline)
    return {
        arm: {
            "accuracy": [round(float(a), 4) for a in array.mean(axis=1)],
            "mean": round(float(array.mean()), 4),
            "ci95": interval(means[:, i]),
            f"gain_over_{baseline}": {
                "mean": round(float(array.mean() - correct[baseline].mean()), 4),
                "ci95": interval(means[:, i] - means[:, base]),
            },
        }
        for i, (arm, array) in enumerate(correct.items())
    }

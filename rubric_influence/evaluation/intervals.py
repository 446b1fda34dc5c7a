"""Accuracies with paired bootstrap intervals."""

import numpy as np


def bootstrap_means(correct_asi: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Mean accuracy of every arm under `count` resamplings, [count, arms].

    correct_asi is bool [arms, seeds, items]. Seeds and items are both drawn with replacement, the same draw for
    every arm, so that differences between arms are paired.
    """
    arms, seeds, items = correct_asi.shape
    rng = np.random.default_rng(seed)
    means = np.empty((count, arms))
    for b in range(count):
        drawn = correct_asi[:, rng.integers(seeds, size=seeds)][:, :, rng.integers(items, size=items)]
        means[b] = drawn.mean(axis=(1, 2))
    return means


def interval(values: np.ndarray) -> list[float]:
    """The central 95 % of the values."""
    return [round(float(q), 4) for q in np.quantile(values, [0.025, 0.975])]


def summarise(correct: dict[str, np.ndarray], baseline: str, count: int, seed: int) -> dict[str, dict]:
    """For every arm: accuracy by seed, mean, 95 % interval, and the gain over the baseline with its paired interval.

    `correct` maps an arm to bool [seeds, items], the same seeds and items for all. Raises ValueError if shapes differ
    or the baseline is not an arm.
    """
    if baseline not in correct:
        raise ValueError(f"baseline {baseline!r} is not one of the arms {list(correct)}")
    shapes = {arm: array.shape for arm, array in correct.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"arms were not evaluated on the same seeds and items: shapes {shapes}")
    arms = list(correct)
    means = bootstrap_means(np.stack([correct[arm] for arm in arms]), count, seed)
    base = arms.index(baseline)
    return {
        arm: {
            "accuracy": [round(float(a), 4) for a in correct[arm].mean(axis=1)],
            "mean": round(float(correct[arm].mean()), 4),
            "ci95": interval(means[:, i]),
            f"gain_over_{baseline}": {
                "mean": round(float(correct[arm].mean() - correct[baseline].mean()), 4),
                "ci95": interval(means[:, i] - means[:, base]),
            },
        }
        for i, arm in enumerate(arms)
    }

"""Two views of the same samples: how alike they look to the model, and how alike the model would learn from them.

Synthetic pairs can lie beside expert pairs in embedding space, and pull the model elsewhere: the reason to score pairs
by gradients (OptimSyn, arXiv 2604.00536, section 1). Here both are cosines between samples, so that numbers with
intervals say how far the two views agree; maps only illustrate them.

Shapes: n samples, e of them expert pairs and s synthetic ones, d scored parameters.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from rubric_influence.influence.checks.agreement import rank_correlate
from rubric_influence.influence.embeddings import embed
from rubric_influence.influence.gradients import check_finite, example_gradients, sweep_gradients
from rubric_influence.influence.layers import count_parameters, device_of
from rubric_influence.models.examples import Example

HELD = 2**29  # floats of gradients that are held at once: 2 GiB
FEWEST = 12  # samples of a kind; mixing looks at the ten nearest


@dataclass(frozen=True)
class SpaceComparison:
    """Cosines between samples, in both spaces, and what the two say of expert and synthetic samples.

    embedding_nn, gradient_nn: [n, n], the expert samples first. expert: how many are expert samples.
    embedding_mixing, gradient_mixing: of an expert sample's nearest others, the share that is synthetic, over the
        share of all others that is: 1 where the two kinds are mixed, 0 where they lie apart.
    agreement: rank correlation of the two spaces' cosines between expert and synthetic samples.
    Each has its 95 % interval.
    """

    embedding_nn: np.ndarray
    gradient_nn: np.ndarray
    expert: int
    embedding_mixing: float
    embedding_mixing_ci95: tuple[float, float]
    gradient_mixing: float
    gradient_mixing_ci95: tuple[float, float]
    agreement: float
    agreement_ci95: tuple[float, float]

    def report(self) -> dict[str, float | list[float]]:
        """The numbers by name, to four digits, without the matrices."""
        return {
            name: [round(end, 4) for end in value] if isinstance(value, tuple) else round(value, 4)
            for name, value in vars(self).items()
            if not isinstance(value, np.ndarray)
        }


def compare_spaces(
    model: nn.Module, expert: list[Example], synthetic: list[Example], batch_tokens: int, seed: int
) -> SpaceComparison:
    """Compare embedding (`embeddings.embed`) and gradient space at the model's weights.

    Raises ValueError for fewer than FEWEST samples of a kind, or a gradient that is zero or not finite.
    """
    if min(len(expert), len(synthetic)) < FEWEST:
        raise ValueError(f"{len(expert)} expert and {len(synthetic)} synthetic samples; give at least {FEWEST} of each")
    samples = [*expert, *synthetic]
    embeddings = embed(model, samples, batch_tokens)
    by_embedding = (embeddings @ embeddings.T).numpy()
    by_gradient = gradient_cosines(model, samples, batch_tokens).numpy()
    return summarise_spaces(by_embedding, by_gradient, len(expert), seed)


def gradient_cosines(model: nn.Module, examples: list[Example], batch_tokens: int) -> torch.Tensor:
    """The cosines of the samples' gradients with each other, [n, n], fp32, on the CPU. No gradient is projected.

    As many gradients as HELD allows are held at once, and the samples from there on are swept for each such block.
    Raises ValueError naming the first sample whose gradient is zero or not finite.
    """
    block = max(1, HELD // count_parameters(model))
    gram_nn = torch.zeros(len(examples), len(examples))
    for start in range(0, len(examples), block):
        part_bn = dot_gradients(model, examples[start : start + block], examples[start:], batch_tokens)
        rows = slice(start, start + block)
        gram_nn[rows, start:], gram_nn[start:, rows] = part_bn, part_bn.T
    norms_n1 = check_finite(gram_nn.diagonal()[:, None].sqrt(), "gradient norm")
    if zero := (norms_n1 == 0).flatten().nonzero().flatten().tolist():
        raise ValueError(f"the gradient of sample {zero[0]} is zero, so it has no direction; leave it out")
    return gram_nn / norms_n1 / norms_n1.T


def dot_gradients(model: nn.Module, held: list[Example], examples: list[Example], batch_tokens: int) -> torch.Tensor:
    """The dot products of the gradients of `held`, which fill memory, with those of `examples`: [b, n], on the CPU."""
    held_bd = example_gradients(model, held, batch_tokens).to(device_of(model))
    out_bn = torch.zeros(len(held), len(examples), device=held_bd.device)

    def visit(rows: torch.Tensor, span: slice, gradients: torch.Tensor) -> None:
        out_bn[:, rows] += held_bd[:, span] @ gradients.T

    sweep_gradients(model, examples, batch_tokens, visit)
    return out_bn.cpu()


def summarise_spaces(
    embedding_nn: np.ndarray, gradient_nn: np.ndarray, expert: int, seed: int, resamples: int = 500
) -> SpaceComparison:
    """The comparison of two matrices of cosines, the first `expert` samples being expert ones.

    Intervals are percentiles of a bootstrap over expert and synthetic samples.
    """
    rng, total = np.random.default_rng(seed), len(embedding_nn)
    draws = [
        (rng.integers(expert, size=expert), expert + rng.integers(total - expert, size=total - expert))
        for _ in range(resamples)
    ]

    def mix(cosines_nn: np.ndarray) -> tuple[float, tuple[float, float]]:
        mixing_e = measure_mixing(cosines_nn, expert)
        return float(mixing_e.mean()), bound([mixing_e[rows].mean() for rows, _ in draws])

    def agree(expert_e: np.ndarray, synthetic_s: np.ndarray) -> float:
        x, y = (cosines_nn[np.ix_(expert_e, synthetic_s)].ravel() for cosines_nn in (embedding_nn, gradient_nn))
        return float(rank_correlate(x, y, axis=0))

    whole, drawn = agree(np.arange(expert), np.arange(expert, total)), [agree(*drawn) for drawn in draws]
    return SpaceComparison(
        embedding_nn, gradient_nn, expert, *mix(embedding_nn), *mix(gradient_nn), whole, bound(drawn)
    )


def measure_mixing(cosines_nn: np.ndarray, expert: int, neighbours: int = 10) -> np.ndarray:
    """For each expert sample, the share of synthetic ones among its nearest others, over their share of all others.

    [e], from 0 (apart) over 1 (mixed) to the inverse of that share.
    """
    others_nn = np.where(np.eye(len(cosines_nn), dtype=bool), -np.inf, cosines_nn)[:expert]
    nearest_ek = np.argsort(-others_nn, axis=1, kind="stable")[:, :neighbours]
    expected = (len(cosines_nn) - expert) / (len(cosines_nn) - 1)
    return (nearest_ek >= expert).mean(axis=1) / expected


def bound(values: list[float]) -> tuple[float, float]:
    """The ends of the central 95 % of the values."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def draw_map(cosines_nn: np.ndarray, seed: int) -> np.ndarray:
    """Places of the samples on a plane, [n, 2], by UMAP from one minus their cosines; the same for the same seed."""
    from umap import UMAP  # compiles for some seconds as it is imported

    distances_nn = np.clip(1 - cosines_nn, 0, None)
    np.fill_diagonal(distances_nn, 0)
    return UMAP(metric="precomputed", random_state=seed, n_jobs=1).fit_transform(distances_nn)

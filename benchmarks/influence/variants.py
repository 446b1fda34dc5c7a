"""The paper's cosine without momentum, and every other way to compute a score that the ablations hold against it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch.nn.functional import normalize

from benchmarks.influence.lab import Case
from benchmarks.influence.published import PROJECTED
from rubric_influence.influence.directions import validation_gradients
from rubric_influence.influence.embeddings import embedding_similarity
from rubric_influence.influence.gradients import example_gradients
from rubric_influence.influence.scorers import ForwardScorer, GradientScorer
from rubric_influence.models.examples import IGNORED

REFERENCE = "the reference: adam, cosine, no momentum, one direction"
FORWARD = "forward (linear's dot product from losses)"
CLUSTERS = 6
BATCH_TOKENS = 4096


class EpsInsideScorer(GradientScorer):
    """`adam` with eps under the root: Gamma = m'^ / sqrt(v'^ + eps), with bias correction (^) or without.

    Without it is the code of LESS (arXiv 2402.04333) and OptimSyn: m' / sqrt(v' + eps).
    """

    def __init__(self, *args: Any, corrected: bool, **settings: Any):
        super().__init__(*args, **settings)
        moments = args[2]
        unbias1, unbias2 = (1 - beta ** (moments.step + 1) for beta in moments.betas)
        # In the units of self.second, which is b2*v / (1-b2^(t+1)) over the square of a = (1-b1) / (1-b1^(t+1)).
        self.added = moments.eps * (unbias1 / (1 - moments.betas[0])) ** 2 / (1.0 if corrected else unbias2)

    def gamma(self, gradients: torch.Tensor, span: slice) -> torch.Tensor:
        scale = torch.addcmul(self.second[span], gradients, gradients, value=self.second_share)
        scale.add_(self.added).sqrt_()
        return (gradients if self.first is None else gradients.add_(self.first[span])).div_(scale)


def project(vectors: torch.Tensor, width: int, seed: int) -> torch.Tensor:
    """[n, d] to [n, width], fp64, by a random Gaussian matrix of variance 1 / width.

    Such a matrix has no preferred axes, so it is drawn in the n dimensions that the vectors span and not in all d,
    which changes nothing in distribution. (The published code's has random signs, and the same error.)
    """
    values, axes = torch.linalg.eigh((vectors @ vectors.T).double())
    points = axes * values.clamp(min=0).sqrt()  # [n, n], the vectors along the axes of their span
    generator = torch.Generator().manual_seed(seed)
    return points @ torch.randn(len(points), width, generator=generator, dtype=torch.float64) / width**0.5


def cluster_directions(gradients: torch.Tensor, clusters: int, seed: int) -> tuple[torch.Tensor, list[int]]:
    """Validation directions where groups have no names, by k-means over unit gradients [n, d].

    Returns each cluster's mean gradient [k, d], which is grad L_V of its examples, and each example's cluster. Beyond
    the paper, which has one direction.

    Raises ValueError if there are fewer examples than clusters, or a gradient is zero.
    """
    if not 1 <= clusters <= len(gradients):
        raise ValueError(f"clusters is {clusters} and there are {len(gradients)} validation gradients; use fewer")
    norms = gradients.norm(dim=1)
    if not (norms > 0).all():
        raise ValueError(f"validation gradient {int((norms == 0).nonzero()[0])} is zero; drop that example")
    # k-means needs distances alone, and n points span at most n dimensions: rotate them there, as d may be millions.
    gram = ((gradients @ gradients.T) / torch.outer(norms, norms)).double().cpu()
    values, vectors = torch.linalg.eigh(gram)
    points = vectors * values.clamp(min=0).sqrt()
    labels = KMeans(clusters, n_init=10, random_state=seed).fit_predict(points.numpy())
    means = [gradients[torch.from_numpy(labels == cluster)].mean(dim=0) for cluster in range(clusters)]
    return torch.stack(means), labels.tolist()


def score_variants(case: Case, seed: int) -> dict[str, np.ndarray]:
    """Every variant's score of every candidate, [n] each. Holds all gradients and their Gamma, 8 * n * d bytes."""
    model, moments, candidates = case.model, case.moments, case.candidates

    def find_directions(topics: Sequence[str] | None) -> torch.Tensor:
        return torch.stack(list(validation_gradients(model, case.validation, topics, BATCH_TOKENS).values())).cpu()

    whole, topics = find_directions(None), find_directions(case.topics)
    clusters, _ = cluster_directions(example_gradients(model, case.validation, BATCH_TOKENS), CLUSTERS, seed)
    gradients = example_gradients(model, candidates, BATCH_TOKENS)
    settings: dict[str, Any] = {"momentum": False, "batch_tokens": BATCH_TOKENS}

    def dots_and_cosines(scorer: GradientScorer) -> tuple[torch.Tensor, torch.Tensor]:
        gammas = make_gammas(scorer, gradients)
        dots = gammas @ whole[0]
        return dots, dots / gammas.norm(dim=1) / whole.norm()

    gammas = make_gammas(GradientScorer(model, whole, moments, **settings), gradients)
    cosines = normalize(gammas, dim=1) @ normalize(torch.cat([whole, topics, clusters]), dim=1).T
    of_topics, of_clusters = cosines[:, 1:].split([len(topics), len(clusters)], dim=1)
    projected = normalize(project(torch.cat([gammas, whole]), PROJECTED, seed), dim=1)
    adam_dots = gammas @ whole[0]
    del gammas
    with_momentum = GradientScorer(model, whole, moments, **settings | {"momentum": True})
    inside = EpsInsideScorer(model, whole, moments, corrected=True, **settings)
    published = EpsInsideScorer(model, whole, moments, corrected=False, **settings)
    linear_dots, linear = dots_and_cosines(GradientScorer(model, whole, moments, estimator="linear", **settings))
    gradient_dots, gradient = dots_and_cosines(GradientScorer(model, whole, moments, estimator="gradient", **settings))
    found = {
        REFERENCE: cosines[:, 0],
        "with momentum": dots_and_cosines(with_momentum)[1],
        "eps inside the root": dots_and_cosines(inside)[1],
        "eps inside, no bias correction (published code)": dots_and_cosines(published)[1],
        "linear": linear,
        "gradient": gradient,
        "dot product (the pipeline's default)": adam_dots,
        "linear, dot product": linear_dots,
        FORWARD: ForwardScorer(model, whole, moments, **settings).score(candidates)[:, 0],
        "gradient, dot product": gradient_dots,
        f"projected to {PROJECTED}": projected[:-1] @ projected[-1],
        "mean over topics": of_topics.mean(dim=1),
        f"mean over {CLUSTERS} clusters": of_clusters.mean(dim=1),
        "embedding similarity": embedding_similarity(model, candidates, case.validation, BATCH_TOKENS),
        "answer's length": torch.tensor([sum(label != IGNORED for label in e.labels) for e in candidates]),
    }
    return {name: scores.double().numpy() for name, scores in found.items()}


def make_gammas(scorer: GradientScorer, gradients: torch.Tensor) -> torch.Tensor:
    """Gamma of every gradient, [n, d], which are left as they were."""
    return torch.cat([scorer.gamma(part.clone(), slice(None)) for part in gradients.split(64)])

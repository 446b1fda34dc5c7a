"""Validation directions: the gradients of the validation loss that samples are scored against, one or several.

Shapes: n validation examples, k directions, d scored parameters.
"""

from collections.abc import Sequence

import torch
from sklearn.cluster import KMeans
from torch import nn

from rubric_influence.influence.examples import Example
from rubric_influence.influence.gradients import refuse_non_finite, sweep_gradients
from rubric_influence.influence.layers import count_parameters, device_of


def validation_gradients(
    model: nn.Module, examples: Sequence[Example], groups: Sequence[str] | None, batch_tokens: int
) -> dict[str, torch.Tensor]:
    """grad L_V of each group of validation examples (all together, as "all", where groups is None): group -> [d].

    L_V is the mean over a group's examples of their losses. `groups` names each example's group; the result goes by
    name in sorted order. `torch.stack(list(result.values()))` are directions for a scorer.

    Raises ValueError for no examples, as many groups as examples not given, or a gradient that is not finite.
    """
    if groups is None:
        groups = ["all"] * len(examples)
    if not examples or len(groups) != len(examples):
        raise ValueError(f"{len(examples)} validation examples and {len(groups)} groups; give one group per example")
    names = sorted(set(groups))
    shares = torch.tensor([[1.0 if group == name else 0.0 for group in groups] for name in names])
    shares /= shares.sum(dim=1, keepdim=True)  # [k, n]
    out = torch.zeros(len(names), count_parameters(model), device=device_of(model))
    shares = shares.to(out.device)

    def visit(rows: torch.Tensor, span: slice, gradients: torch.Tensor) -> None:
        out[:, span] += shares[:, rows] @ gradients

    sweep_gradients(model, examples, batch_tokens, visit)
    refuse_non_finite(out, "validation gradient")
    return dict(zip(names, out, strict=True))


def cluster_directions(gradients: torch.Tensor, clusters: int, seed: int) -> tuple[torch.Tensor, list[int]]:
    """Validation directions where topics have no names: k-means over the unit gradients.

    Returns the mean gradient of each cluster's members, [k, d], which is grad L_V of that part of the validation set
    just as a named group's is, and each example's cluster. Beyond the paper, which has one direction.

    Raises ValueError if there are fewer examples than clusters, or a gradient is zero.
    """
    if not 1 <= clusters <= len(gradients):
        raise ValueError(f"clusters is {clusters} and there are {len(gradients)} validation gradients; use fewer")
    norms = gradients.norm(dim=1)
    if not (norms > 0).all():
        raise ValueError(f"validation gradient {int((norms == 0).nonzero()[0])} is zero; drop that example")
    # k-means sees only distances, and n points span at most n dimensions: rotate there before, as d may be millions.
    gram = ((gradients @ gradients.T) / torch.outer(norms, norms)).double().cpu()
    values, vectors = torch.linalg.eigh(gram)
    points = vectors * values.clamp(min=0).sqrt()
    labels = KMeans(clusters, n_init=10, random_state=seed).fit_predict(points.numpy())
    means = [gradients[torch.from_numpy(labels == cluster)].mean(dim=0) for cluster in range(clusters)]
    return torch.stack(means), labels.tolist()


def cluster_embeddings(embeddings: torch.Tensor, clusters: int, seed: int) -> list[int]:
    """Each validation example's cluster by k-means over unit embeddings [n, h]: topics, where they have no names.

    What questions are about shows in their embeddings more clearly than in their gradients, which also hold each
    answer's own noise (tests/test_scoring.py measures both on the lab).

    Raises ValueError if there are fewer examples than clusters.
    """
    if not 1 <= clusters <= len(embeddings):
        raise ValueError(f"clusters is {clusters} and there are {len(embeddings)} validation questions; use fewer")
    return KMeans(clusters, n_init=10, random_state=seed).fit_predict(embeddings.numpy()).tolist()

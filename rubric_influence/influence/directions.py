"""Validation directions: the gradients of the validation loss that samples are scored against, one or several.

Shapes: n validation examples, k directions, d scored parameters.
"""

from collections.abc import Sequence

import torch
from sklearn.cluster import KMeans
from torch import nn

from rubric_influence.influence.gradients import check_finite, sweep_gradients
from rubric_influence.influence.layers import count_parameters, device_of
from rubric_influence.models.examples import Example


def validation_gradients(
    model: nn.Module, examples: Sequence[Example], groups: Sequence[str] | None, batch_tokens: int
) -> dict[str, torch.Tensor]:
    """grad L_V of each group of validation examples (all together, as "all", where groups is None): group -> [d].

    L_V is the mean loss of a group's examples. `groups` names each example's group; the result is sorted by name.
    `torch.stack(list(result.values()))` are directions for a scorer.

    Raises ValueError if there are no examples, or not one group for each, or a gradient is not finite.
    """
    if groups is None:
        groups = ["all"] * len(examples)
    if not examples or len(groups) != len(examples):
        raise ValueError(f"{len(examples)} validation examples and {len(groups)} groups; give one group per example")
    names = sorted(set(groups))
    shares = torch.tensor([[1.0 if group == name else 0.0 for group in groups] for name in names])
    summed = sum_gradients(model, examples, shares / shares.sum(dim=1, keepdim=True), batch_tokens)
    return dict(zip(names, check_finite(summed, "validation gradient"), strict=True))


def sum_gradients(
    model: nn.Module, examples: Sequence[Example], weights_kn: torch.Tensor, batch_tokens: int
) -> torch.Tensor:
    """Sums of the examples' gradients by weights, [k, d], fp32, on the model's device."""
    weights_kn = weights_kn.to(device_of(model))
    out_kd = torch.zeros(len(weights_kn), count_parameters(model), device=weights_kn.device)

    def visit(rows: torch.Tensor, span: slice, gradients: torch.Tensor) -> None:
        out_kd[:, span] += weights_kn[:, rows] @ gradients

    sweep_gradients(model, examples, batch_tokens, visit)
    return out_kd


def cluster_embeddings(embeddings: torch.Tensor, clusters: int, seed: int) -> list[int]:
    """Each validation example's cluster, by k-means over unit embeddings [n, h]: for topics that have no names.

    Embeddings show what questions are about more clearly than gradients, which also hold each answer's own noise
    (tests/rl/test_scoring.py measures both on the lab).

    Raises ValueError if there are fewer examples than clusters.
    """
    if not 1 <= clusters <= len(embeddings):
        raise ValueError(f"clusters is {clusters} and there are {len(embeddings)} validation questions; use fewer")
    return KMeans(clusters, n_init=10, random_state=seed).fit_predict(embeddings.numpy()).tolist()

"""Groups by embedding: clusters of validation items that have no topics, and the group of the nearest item."""

from collections.abc import Sequence

from torch import nn

from rubric_influence.influence.directions import cluster_embeddings
from rubric_influence.influence.embeddings import embed
from rubric_influence.models.examples import Example


def group_by_embedding(
    model: nn.Module, examples: Sequence[Example], clusters: int, batch_tokens: int, seed: int
) -> list[str]:
    """Each example's cluster by `cluster_embeddings`, as "cluster 0" and so on. Raises ValueError as that does."""
    return [f"cluster {label}" for label in cluster_embeddings(embed(model, examples, batch_tokens), clusters, seed)]


def match_groups(
    model: nn.Module, examples: Sequence[Example], others: Sequence[Example], groups: Sequence[str], batch_tokens: int
) -> list[str]:
    """For every example the group of the one of `others` whose embedding is nearest by cosine."""
    embeddings, known = (embed(model, part, batch_tokens) for part in (examples, others))
    return [groups[place] for place in (embeddings @ known.T).argmax(dim=1).tolist()]

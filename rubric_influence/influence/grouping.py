"""Which direction each validation item is a part of: its topic, its cluster, or the one of all."""

from collections.abc import Sequence

from torch import nn

from rubric_influence.core.config import Influence
from rubric_influence.influence.directions import cluster_embeddings
from rubric_influence.influence.embeddings import embed
from rubric_influence.influence.examples import Example


def group_items(
    model: nn.Module | None, validation: Sequence, examples: Sequence[Example], settings: Influence, seed: int
) -> list[str] | None:
    """The direction that every validation item is a part of: its topic, its embedding's cluster, or None: all one.

    `validation` are records with a topic, `examples` the same encoded; `model` is used for clusters alone.
    """
    if settings.directions == "topics":
        return [item.topic or "untitled" for item in validation]
    if settings.directions == "clusters":
        embeddings = embed(model, examples, settings.batch_tokens)
        return [f"cluster {label}" for label in cluster_embeddings(embeddings, settings.clusters, seed)]
    return None


def match_groups(
    model: nn.Module, examples: Sequence[Example], others: Sequence[Example], groups: Sequence[str], batch_tokens: int
) -> list[str]:
    """The group of the one of `others` whose embedding is nearest by cosine, for every example."""
    embeddings, known = (embed(model, part, batch_tokens) for part in (examples, others))
    return [groups[place] for place in (embeddings @ known.T).argmax(dim=1).tolist()]

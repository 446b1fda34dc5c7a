"""The influence of pairs on a warmed-up target: directions are made once, pairs are scored by the batch."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from rubric_influence.config import Config, Influence
from rubric_influence.influence.directions import cluster_embeddings, validation_gradients
from rubric_influence.influence.embeddings import embed
from rubric_influence.influence.examples import Example, encode
from rubric_influence.influence.moments import AdamMoments, load_moments
from rubric_influence.influence.scorers import Scorer, combine, open_scorer
from rubric_influence.models import load_tokenizer
from rubric_influence.records import ExamItem
from rubric_influence.rewards import ServedDirections
from rubric_influence.sft import list_checkpoints, load_fine_tuned

VALIDATION, GUARD = "validation", "guard"


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


def open_configured_scorer(
    model: nn.Module, directions: dict[str, torch.Tensor], moments: AdamMoments, settings: Influence
) -> Scorer:
    """The scorer that a profile's section influence asks for, along named directions [d] in their order."""
    return open_scorer(
        settings.estimator,
        model,
        torch.stack(list(directions.values())),
        moments,
        momentum=settings.momentum,
        batch_tokens=settings.batch_tokens,
        normalise=settings.normalise,
    )


def measure_experts(
    model: nn.Module, moments: AdamMoments, examples: Sequence[Example], groups: Sequence[str], settings: Influence
) -> torch.Tensor:
    """What a validation question, had it been trained on, would do along its own group's direction, [groups], by name.

    The mean over a group's questions. A question does much for its own loss, which says nothing of others: each is
    scored along the gradient of the half of its group that it is not in (a group of one, along itself).
    """
    halves = split_halves(groups)
    directions = validation_gradients(model, examples, halves, settings.batch_tokens)
    names = list(directions)
    scores_nk = open_configured_scorer(model, directions, moments, settings).score(examples)
    found: dict[str, list[torch.Tensor]] = {}
    for row, (group, half) in enumerate(zip(groups, halves, strict=True)):
        other = next((name for name in names if name != half and name.rpartition("/")[0] == group), half)
        found.setdefault(group, []).append(scores_nk[row, names.index(other)])
    return torch.stack([torch.stack(found[group]).mean() for group in sorted(found)])


def split_halves(groups: Sequence[str]) -> list[str]:
    """Each place's group with "/0" or "/1" after it, in turn within the group."""
    seen: dict[str, int] = {}
    halves = []
    for group in groups:
        seen[group] = seen.get(group, -1) + 1
        halves.append(f"{group}/{seen[group] % 2}")
    return halves


class TargetScorer:
    """Influence of pairs on the warmed-up target, along several directions at once.

    `names` are the directions': first "validation", the gradient of all validation items, then those of its topics or
    clusters (none where influence.directions is mean), last "guard". Calling it with (question, answer) pairs gives
    fp32 scores [pairs, directions], positive where the step on the pair lowers that part's loss, summed over the
    warm-up's checkpoints by learning rate (rubric_influence.influence.scorers): dot products, or cosines with
    influence.normalise. `served` is where a set-level reward over the topics or clusters (all validation items, where
    there are none) starts from.
    """

    def __init__(self, config: Config, warmup: str | Path, exam: Sequence[ExamItem], seed: int):
        self.config = config
        self.tokenizer = load_tokenizer(config.models.target)
        validation = [item for item in exam if item.split == "validation"]
        guard = [item for item in exam if item.split == "guard"]
        asked = {split: self.encode([(i.question, i.answer) for i in items]) for split, items in
                 (("validation", validation), ("guard", guard))}  # fmt: skip
        self.scorers, self.rates, self.names = [], [], []
        experts = []
        for place, checkpoint in enumerate(list_checkpoints(warmup)):
            model = load_fine_tuned(config.models.target, checkpoint)
            if place == 0:  # once, so that a direction is of the same items at every checkpoint
                groups = group_items(model, validation, asked["validation"], config.influence, seed)
            batch_tokens = config.influence.batch_tokens
            directions = {VALIDATION: validation_gradients(model, asked["validation"], None, batch_tokens)["all"]}
            if groups:
                directions |= validation_gradients(model, asked["validation"], groups, batch_tokens)
            directions[GUARD] = validation_gradients(model, asked["guard"], None, batch_tokens)["all"]
            moments = load_moments(checkpoint / "moments.safetensors")
            self.scorers.append(open_configured_scorer(model, directions, moments, config.influence))
            self.rates.append(moments.learning_rate)
            self.names = list(directions)
            parts = groups or [VALIDATION] * len(validation)
            experts.append(measure_experts(model, moments, asked["validation"], parts, config.influence))
        weights = [parts.count(name) / len(parts) for name in sorted(set(parts))]
        self.served = ServedDirections(combine(experts, self.rates), torch.tensor(weights))

    def encode(self, pairs: Sequence[tuple[str, str]]) -> list[Example]:
        template, limit = self.config.prompts.answer, self.config.warmup.max_tokens
        return [encode(self.tokenizer, question, answer, template, limit) for question, answer in pairs]

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
        examples = self.encode(pairs)
        return combine([scorer.score(examples) for scorer in self.scorers], self.rates)

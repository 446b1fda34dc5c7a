"""The influence of pairs on a warmed-up target: directions are made once, pairs are scored by the batch."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from rubric_influence.config import Config, Influence
from rubric_influence.influence.directions import cluster_directions, validation_gradients
from rubric_influence.influence.examples import Example, encode
from rubric_influence.influence.gradients import example_gradients
from rubric_influence.influence.moments import AdamMoments, load_moments
from rubric_influence.influence.scorers import Scorer, combine, open_scorer
from rubric_influence.models import load_tokenizer
from rubric_influence.records import ExamItem
from rubric_influence.sft import list_checkpoints, load_fine_tuned

VALIDATION, GUARD = "validation", "guard"


def group_items(
    model: nn.Module | None, validation: Sequence, examples: Sequence[Example], settings: Influence, seed: int
) -> list[str] | None:
    """The direction that every validation item is a part of: its topic, its gradient's cluster, or None: all one.

    `validation` are records with a topic, `examples` the same encoded; `model` is used for clusters alone.
    """
    if settings.directions == "topics":
        return [item.topic or "untitled" for item in validation]
    if settings.directions == "clusters":
        gradients = example_gradients(model, examples, settings.batch_tokens)
        return [f"cluster {label}" for label in cluster_directions(gradients, settings.clusters, seed)[1]]
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


class TargetScorer:
    """Influence of pairs on the warmed-up target, along several directions at once.

    `names` are the directions': first "validation", the gradient of all validation items, then those of its topics or
    clusters (none where influence.directions is mean), last "guard". Calling it with (question, answer) pairs gives
    fp32 scores [pairs, directions], positive where the step on the pair lowers that part's loss, summed over the
    warm-up's checkpoints by learning rate (rubric_influence.influence.scorers): dot products, or cosines with
    influence.normalise.
    """

    def __init__(self, config: Config, warmup: str | Path, exam: Sequence[ExamItem], seed: int):
        self.config = config
        self.tokenizer = load_tokenizer(config.models.target)
        validation = [item for item in exam if item.split == "validation"]
        guard = [item for item in exam if item.split == "guard"]
        asked = {split: self.encode([(i.question, i.answer) for i in items]) for split, items in
                 (("validation", validation), ("guard", guard))}  # fmt: skip
        self.scorers, self.rates, self.names = [], [], []
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

    def encode(self, pairs: Sequence[tuple[str, str]]) -> list[Example]:
        template, limit = self.config.prompts.answer, self.config.warmup.max_tokens
        return [encode(self.tokenizer, question, answer, template, limit) for question, answer in pairs]

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
        examples = self.encode(pairs)
        return combine([scorer.score(examples) for scorer in self.scorers], self.rates)

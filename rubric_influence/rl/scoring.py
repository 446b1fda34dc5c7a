"""The influence of pairs on a warmed-up target: directions are made once, pairs are scored by the batch."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from rubric_influence.core.config import Config
from rubric_influence.core.records import Answered, ExamItem
from rubric_influence.data.contamination import ContaminationIndex
from rubric_influence.influence.directions import validation_gradients
from rubric_influence.influence.examples import Example, encode
from rubric_influence.influence.grouping import group_items, match_groups
from rubric_influence.influence.moments import load_moments
from rubric_influence.influence.scorers import combine, open_configured_scorer
from rubric_influence.models.loading import load_tokenizer
from rubric_influence.models.processes import broadcast
from rubric_influence.rl.rewards import ServedDirections
from rubric_influence.rl.scores import DEV, GUARD, VALIDATION, Directions, Scores
from rubric_influence.training.fine_tuning import list_checkpoints, load_fine_tuned


def weigh_groups(groups: Sequence[str]) -> torch.Tensor:
    """Each group's share of the items, [groups], by name."""
    return torch.tensor([groups.count(name) / len(groups) for name in sorted(set(groups))])


class TargetScorer:
    """Influence of pairs on the warmed-up target, along several directions at once.

    Calling it with pairs gives their Scores, summed over the warm-up's checkpoints by learning rate: dot products, or
    cosines with influence.normalise (rubric_influence.influence.scorers). `directions` names what they are along:
    topics or clusters of the validation items (none where influence.directions is mean) and, if rl.checkpoint is dev,
    the dev items nearest to each ("dev, cluster 0"). `served` is where a set-level reward over the groups (all
    validation items, where there are none) starts from, `dev_served` the same of the dev items, None without them.
    `expert_questions` finds the validation and guard questions in other texts.

    Raises ValueError if dev items are needed and the exam has none, or a topic has the name of another direction.
    """

    def __init__(self, config: Config, warmup: str | Path, exam: Sequence[ExamItem], seed: int):
        self.config = config
        self.tokenizer = load_tokenizer(config.models.target)
        items = {split: [item for item in exam if item.split == split] for split in (VALIDATION, DEV, GUARD)}
        asked = {split: self.encode(found) for split, found in items.items()}
        if config.rl.checkpoint == "dev" and not items[DEV]:
            raise ValueError("rl.checkpoint is dev, and the exam has no dev questions; add some, or set it to last")
        self.expert_questions = ContaminationIndex([*items[VALIDATION], *items[GUARD]])
        self.scorers, self.rates = [], []
        for place, checkpoint in enumerate(list_checkpoints(warmup)):
            model = load_fine_tuned(config.models.target, checkpoint)
            if place == 0:  # once, so that a direction is of the same items at every checkpoint, in every process
                groups, dev_groups = broadcast(self.group(model, items[VALIDATION], asked, seed))
                self.directions = Directions(tuple(sorted(set(groups or []))), tuple(sorted(set(dev_groups))))
                check_names(self.directions)
            moments = load_moments(checkpoint / "moments.safetensors")
            gradients = self.measure_directions(model, asked, groups, dev_groups)
            self.scorers.append(open_configured_scorer(model, gradients, moments, config.influence))
            self.rates.append(moments.learning_rate)
        self.served = ServedDirections(weigh_groups(groups or [VALIDATION] * len(items[VALIDATION])))
        self.dev_served = ServedDirections(weigh_groups(dev_groups)) if dev_groups else None

    def group(
        self, model: nn.Module, validation: Sequence[ExamItem], asked: dict[str, list[Example]], seed: int
    ) -> tuple[list[str] | None, list[str]]:
        """The group of every validation item (None: there are none), and of every dev item that a run chooses by."""
        settings = self.config.influence
        groups = group_items(model, validation, asked[VALIDATION], settings, seed)
        if self.config.rl.checkpoint != "dev":
            return groups, []
        parts = groups or [VALIDATION] * len(validation)
        near = match_groups(model, asked[DEV], asked[VALIDATION], parts, settings.batch_tokens)
        return groups, [f"{DEV}, {part}" for part in near]

    def measure_directions(
        self, model: nn.Module, asked: dict[str, list[Example]], groups: list[str] | None, dev_groups: list[str]
    ) -> dict[str, torch.Tensor]:
        """The gradient of every direction at one checkpoint, in the order of `directions.names`."""
        limit = self.config.influence.batch_tokens
        gradients = {VALIDATION: validation_gradients(model, asked[VALIDATION], None, limit)["all"]}
        if groups:
            gradients |= validation_gradients(model, asked[VALIDATION], groups, limit)
        if dev_groups:
            gradients |= validation_gradients(model, asked[DEV], dev_groups, limit)
        return gradients | {GUARD: validation_gradients(model, asked[GUARD], None, limit)["all"]}

    def encode(self, records: Sequence[Answered]) -> list[Example]:
        template, limit = self.config.prompts.answer, self.config.warmup.max_tokens
        return [encode(self.tokenizer, record.question, record.answer, template, limit) for record in records]

    def __call__(self, pairs: Sequence[Answered]) -> Scores:
        examples = self.encode(pairs)
        return self.directions.split(combine([scorer.score(examples) for scorer in self.scorers], self.rates))


def check_names(directions: Directions) -> None:
    """Raise ValueError where a topic is called as another direction is: one would take the other's place."""
    names = directions.names
    if taken := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"a topic of the exam is called {taken[0]!r}, as another direction is; rename that topic")

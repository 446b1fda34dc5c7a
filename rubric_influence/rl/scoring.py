"""The influence of pairs on a warmed-up target: directions are made once, pairs are scored by the batch."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from rubric_influence.core.config import Config
from rubric_influence.core.records import Answered, ExamItem
from rubric_influence.data.contamination import ContaminationIndex
from rubric_influence.influence.directions import validation_gradients
from rubric_influence.influence.grouping import group_by_embedding, match_groups
from rubric_influence.influence.moments import load_moments
from rubric_influence.influence.scorers import combine, open_scorer
from rubric_influence.models.examples import Example, encode
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
            moments = load_moments(checkpoint / "moments.safetensors")
            vectors = self.measure_directions(model, asked, groups, dev_groups)
            chosen = config.influence.model_dump(include={"estimator", "momentum", "batch_tokens", "normalise"})
            self.scorers.append(open_scorer(model=model, directions=vectors, moments=moments, **chosen))
            self.rates.append(moments.learning_rate)
        self.served = ServedDirections(weigh_groups(groups or [VALIDATION] * len(items[VALIDATION])))
        self.dev_served = ServedDirections(weigh_groups(dev_groups)) if dev_groups else None

    def group(
        self, model: nn.Module, validation: Sequence[ExamItem], asked: dict[str, list[Example]], seed: int
    ) -> tuple[list[str] | None, list[str]]:
        """The group of every validation item (None: there are none), and of every dev item that a run chooses by."""
        settings, groups = self.config.influence, None
        if settings.directions == "topics":
            groups = [item.topic or "untitled" for item in validation]
        elif settings.directions == "clusters":
            groups = group_by_embedding(model, asked[VALIDATION], settings.clusters, settings.batch_tokens, seed)
        if self.config.rl.checkpoint != "dev":
            return groups, []
        parts = groups or [VALIDATION] * len(validation)
        near = match_groups(model, asked[DEV], asked[VALIDATION], parts, settings.batch_tokens)
        return groups, [f"{DEV}, {part}" for part in near]

    def measure_directions(
        self, model: nn.Module, asked: dict[str, list[Example]], groups: list[str] | None, dev_groups: list[str]
    ) -> torch.Tensor:
        """The gradient of every direction at one checkpoint, [names, d], in the order of `directions.names`."""
        parts = [(VALIDATION, None), (VALIDATION, groups or []), (DEV, dev_groups), (GUARD, None)]  # None: all in one
        limit = self.config.influence.batch_tokens
        found = [validation_gradients(model, asked[split], named, limit) for split, named in parts if named != []]
        return torch.stack([vector for gradients in found for vector in gradients.values()])

    def encode(self, records: Sequence[Answered]) -> list[Example]:
        template, limit = self.config.prompts.answer, self.config.warmup.max_tokens
        return [encode(self.tokenizer, record.question, record.answer, template, limit) for record in records]

    def __call__(self, pairs: Sequence[Answered]) -> Scores:
        examples = self.encode(pairs)
        return self.directions.split(combine([scorer.score(examples) for scorer in self.scorers], self.rates))

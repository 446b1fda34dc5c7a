"""The influence of pairs on a warmed-up target: directions are made once, pairs are scored by the batch."""

from collections.abc import Sequence
from pathlib import Path

import torch

from rubric_influence.core.config import Config
from rubric_influence.core.records import ExamItem
from rubric_influence.data.contamination import ContaminationIndex
from rubric_influence.influence.directions import validation_gradients
from rubric_influence.influence.examples import Example, encode
from rubric_influence.influence.grouping import group_items, match_groups
from rubric_influence.influence.moments import load_moments
from rubric_influence.influence.scorers import combine, open_configured_scorer
from rubric_influence.models.loading import load_tokenizer
from rubric_influence.models.processes import broadcast
from rubric_influence.rl.rewards import ServedDirections
from rubric_influence.training.fine_tuning import list_checkpoints, load_fine_tuned

VALIDATION, DEV, GUARD = "validation", "dev", "guard"


def weigh_groups(groups: Sequence[str]) -> torch.Tensor:
    """Each group's share of the items, [groups], by name."""
    return torch.tensor([groups.count(name) / len(groups) for name in sorted(set(groups))])


class TargetScorer:
    """Influence of pairs on the warmed-up target, along several directions at once.

    `names` are the directions': first "validation", the gradient of all validation items, then those of its topics or
    clusters (none where influence.directions is mean), then, if rl.checkpoint is dev, those of the dev items nearest to
    each ("dev, cluster 0"), last "guard". Calling it with (question, answer) pairs gives fp32 scores
    [pairs, directions], positive where the step on the pair lowers that part's loss, summed over the warm-up's
    checkpoints by learning rate (rubric_influence.influence.scorers): dot products, or cosines with
    influence.normalise. `served` is where a set-level reward over the topics or clusters (all validation items, where
    there are none) starts from, `dev_served` the same of the dev items, None without them.

    `expert_questions` finds the validation and guard questions in other texts.

    Raises ValueError if dev items are needed and the exam has none.
    """

    def __init__(self, config: Config, warmup: str | Path, exam: Sequence[ExamItem], seed: int):
        self.config = config
        self.tokenizer = load_tokenizer(config.models.target)
        settings, limit = config.influence, config.influence.batch_tokens
        items = {split: [item for item in exam if item.split == split] for split in (VALIDATION, DEV, GUARD)}
        asked = {split: self.encode([(i.question, i.answer) for i in found]) for split, found in items.items()}
        use_dev = config.rl.checkpoint == "dev"
        if use_dev and not items[DEV]:
            raise ValueError("rl.checkpoint is dev, and the exam has no dev questions; add some, or set it to last")
        self.expert_questions = ContaminationIndex([*items[VALIDATION], *items[GUARD]])
        self.scorers, self.rates, self.names = [], [], []
        for place, checkpoint in enumerate(list_checkpoints(warmup)):
            model = load_fine_tuned(config.models.target, checkpoint)
            if place == 0:  # once, so that a direction is of the same items at every checkpoint, in every process
                groups = group_items(model, items[VALIDATION], asked[VALIDATION], settings, seed)
                parts = groups or [VALIDATION] * len(items[VALIDATION])
                dev_parts = match_groups(model, asked[DEV], asked[VALIDATION], parts, limit) if use_dev else []
                groups, parts, dev_parts = broadcast((groups, parts, [f"{DEV}, {part}" for part in dev_parts]))
            directions = {VALIDATION: validation_gradients(model, asked[VALIDATION], None, limit)["all"]}
            if groups:
                directions |= validation_gradients(model, asked[VALIDATION], groups, limit)
            if use_dev:
                directions |= validation_gradients(model, asked[DEV], dev_parts, limit)
            directions[GUARD] = validation_gradients(model, asked[GUARD], None, limit)["all"]
            moments = load_moments(checkpoint / "moments.safetensors")
            self.scorers.append(open_configured_scorer(model, directions, moments, settings))
            self.rates.append(moments.learning_rate)
            self.names = list(directions)
        self.served = ServedDirections(weigh_groups(parts))
        self.dev_served = ServedDirections(weigh_groups(dev_parts)) if use_dev else None

    def encode(self, pairs: Sequence[tuple[str, str]]) -> list[Example]:
        template, limit = self.config.prompts.answer, self.config.warmup.max_tokens
        return [encode(self.tokenizer, question, answer, template, limit) for question, answer in pairs]

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
        examples = self.encode(pairs)
        return combine([scorer.score(examples) for scorer in self.scorers], self.rates)

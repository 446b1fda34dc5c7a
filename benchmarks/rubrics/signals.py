"""Signals that people would pay rubrics for in place of influence, of a pair z on the warmed-up target.

    similarity  the cosine of z's embedding with the mean of the validation questions'
    lexical     BM25 of z for the validation questions and answers, among the step's pairs
    loss        l(z), nats a token: what the target does not know yet
    likelihood  exp(-l(z)): what the target finds likely, as Reinforcement-Learned Teachers are paid (arXiv 2506.08388)
    accuracy    what a short fine-tuning on z alone adds to the accuracy on the validation questions, the reward of SEAL
                (arXiv 2506.10943)
    unrolled    the derivative of what a short fine-tuning on the step's pairs gains on the validation questions, by the
                weight of z in it, the reward of DPG (arXiv 2604.08423)

Higher is better for each. All but the first are in units of the first batch's root mean square, so that the penalty of
an invalid rubric is as large beside them.
"""

from collections.abc import Callable, Sequence

import torch

from rubric_influence.core.config import Config
from rubric_influence.core.records import Answered, ExamItem, QAPair
from rubric_influence.evaluation.exam import sit
from rubric_influence.influence.api import Target
from rubric_influence.influence.checks.retraining import Recipe, Retraining
from rubric_influence.influence.checks.unrolled import unrolled_scores
from rubric_influence.influence.embeddings import embed
from rubric_influence.influence.lexical import lexical_similarity
from rubric_influence.models.examples import Example
from rubric_influence.models.losses import sweep_losses
from rubric_influence.rl.rewards import measure_unit
from rubric_influence.rl.scores import Directions, Scores
from rubric_influence.rl.scoring import TargetScorer

Signal = Callable[[Sequence[QAPair]], torch.Tensor]  # [pairs], higher is better


class SignalScorer:
    """A signal for a reward, with the guard's influence beside it."""

    def __init__(self, scorer: TargetScorer, signal: Signal):
        self.scorer, self.signal = scorer, signal
        self.served, self.dev_served, self.expert_questions = scorer.served, None, scorer.expert_questions
        self.directions = Directions()

    def __call__(self, pairs: Sequence[QAPair]) -> Scores:
        return self.directions.split(torch.stack([self.signal(pairs), self.scorer(pairs).guard_n], dim=1))


def open_signal(kind: str, config: Config, target: Target, validation: Sequence[ExamItem]) -> Signal:
    """The signal of that name."""
    tokens = config.influence.batch_tokens
    if kind == "similarity":
        mean = embed(target.model, target.encode(validation), tokens).mean(dim=0)
        return lambda pairs: embed(target.model, target.encode(pairs), tokens) @ mean
    if kind == "accuracy":
        return in_first_units(gain_accuracy(config, target, validation))
    queries, asked, gate = [join(item) for item in validation], target.encode(validation), config.gate
    recipe = Recipe(gate.epochs, gate.batch_size, gate.learning_rate)
    signals: dict[str, Signal] = {
        "lexical": lambda pairs: torch.tensor(lexical_similarity([*map(join, pairs)], queries), dtype=torch.float32),
        "loss": lambda pairs: sweep_losses(target.model, target.encode(pairs), tokens),
        "likelihood": lambda pairs: sweep_losses(target.model, target.encode(pairs), tokens).neg().exp(),
        "unrolled": lambda pairs: unrolled_scores(
            target.model, target.encode(pairs), asked, target.moments, recipe, seed=0, batch_tokens=tokens
        ).float(),
    }
    return in_first_units(signals[kind])


def join(record: Answered) -> str:
    return f"{record.question} {record.answer}"


def in_first_units(signal: Signal) -> Signal:
    """The signal over the root mean square of its first batch."""
    units: list[torch.Tensor] = []

    def measure(pairs: Sequence[QAPair]) -> torch.Tensor:
        values = signal(pairs)
        if not units:
            units.append(measure_unit(values[:, None]).clamp(min=torch.finfo(values.dtype).tiny))
        return values / units[0]

    return measure


def gain_accuracy(config: Config, target: Target, validation: Sequence[ExamItem]) -> Signal:
    """The accuracy of the target fine-tuned on each pair alone, by the gate's recipe, less that of the target."""
    recipe = Recipe(config.gate.epochs, 1, config.gate.learning_rate)
    tuned = Retraining(target.model, target.moments, target.encode(validation[:1]), recipe, batch_tokens=1)

    def sit_exam() -> float:
        model, tokens = tuned.copy.model, config.evaluation.batch_tokens
        return float(sit(model, target.tokenizer, validation, target.template, tokens).accuracy.mean())

    before = sit_exam()

    def gain(pair: Example) -> float:
        tuned.train([pair], seed=0)
        return sit_exam() - before

    return lambda pairs: torch.tensor([gain(pair) for pair in target.encode(pairs)])

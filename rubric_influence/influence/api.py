"""From a checkpoint and two lists of pairs to a ranked table in three calls: load_target, PairScorer, rank_pairs.

A fourth, explain_pair, tells what each token of a pair's answer contributed. A pair is a (question, answer) tuple or an
object with .question and .answer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.core.records import Answered
from rubric_influence.influence.checkpoints import load_checkpoint
from rubric_influence.influence.directions import validation_gradients
from rubric_influence.influence.grouping import group_by_embedding
from rubric_influence.influence.moments import AdamMoments
from rubric_influence.influence.scorers import Estimator, combine, open_scorer
from rubric_influence.influence.tokens import split_score
from rubric_influence.models.examples import IGNORED, Example, encode
from rubric_influence.models.loading import load_tokenizer

WHOLE = "influence"  # the column along the gradient of all validation pairs
Pair = tuple[str, str] | Answered


@dataclass(frozen=True)
class Target:
    """The model that pairs are chosen for, at one checkpoint of its fine-tuning, with Adam's moments there.

    As in that fine-tuning: `template` (with a slot {question}) makes the user's turn of a question, the tokenizer's
    chat template the tokens, and what follows the first `max_tokens` of a pair is cut (None: nothing).
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    moments: AdamMoments
    template: str = "{question}"
    max_tokens: int | None = None

    def encode(self, pairs: Iterable[Pair], name: str = "pair") -> list[Example]:
        """Token ids and labels of the pairs. Raises ValueError if there are none, or naming the place of a bad one."""
        examples = []
        for place, pair in enumerate(pairs):
            try:
                examples.append(encode(self.tokenizer, *split_pair(pair), self.template, self.max_tokens))
            except ValueError as error:
                raise ValueError(f"{name} {place}: {error}") from None
        if not examples:
            raise ValueError(f"there is no {name}; give at least one")
        return examples


def load_target(
    model: str | Path,
    checkpoint: str | Path,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: str | torch.device | None = None,
    template: str = "{question}",
    max_tokens: int | None = None,
    learning_rate: float | None = None,
) -> Target:
    """The target of a base model (folder or hub name) and a checkpoint: a LoRA adapter's folder with the moments.

    The moments are in moments.safetensors or a Trainer's optimizer.pt. `device` is by default the GPU, else the CPU.
    `learning_rate` weighs this checkpoint among others (see `rank_pairs`); by default it is the logged one.

    Raises ValueError if a file is missing or damaged, or if model, adapter and moments do not belong together.
    """
    if not isinstance(checkpoint, str | Path):
        raise ValueError(f"checkpoint is {checkpoint!r}; give the folder of a LoRA adapter with Adam's moments")
    spec = ModelSpec(path=str(model), dtype=dtype)
    adapted, moments = load_checkpoint(spec, Path(checkpoint), device, learning_rate)
    return Target(adapted, load_tokenizer(spec), moments, template, max_tokens)


class PairScorer:
    """The influence of pairs on a target's validation loss, and on that of each group of validation pairs.

        score(z) = <grad L_V, Gamma(z)>,    positive: the optimizer's step on pair z lowers L_V

    L_V is the mean loss of the validation pairs, or of a group's, in nats a token; -lr * Gamma(z) is the step, Adam's
    moments included, so L_V falls by lr * score to first order. `normalise` gives cosines. For `estimator` and
    `momentum` see rubric_influence.influence.scorers. `batch_tokens` (with padding) decides memory, not scores.
    `by` holds each validation pair's group, or is a number of clusters to be found. Then `groups` are the pairs' groups
    (else None), and `names` the columns of scores: "influence", of all validation pairs, and each group, by name.

    Raises ValueError for no Target, no validation pairs, not one group for each, or what GradientScorer refuses.
    """

    def __init__(
        self,
        target: Target,
        validation: Iterable[Pair],
        by: Sequence[str] | int | None = None,
        *,
        estimator: Estimator = "adam",
        momentum: bool = False,
        normalise: bool = False,
        batch_tokens: int = 8192,
    ):
        if not isinstance(target, Target):
            raise ValueError(f"target is {target!r:.80}; give what load_target returns, or a Target of your own")
        model, examples = target.model, target.encode(validation, "validation pair")
        groups = group_by_embedding(model, examples, by, batch_tokens, seed=0) if isinstance(by, int) else by
        parts = {} if groups is None else validation_gradients(model, examples, groups, batch_tokens)
        if WHOLE in parts:
            raise ValueError(f"a group is called {WHOLE!r}, as the column of all validation pairs is; rename it")
        whole = validation_gradients(model, examples, None, batch_tokens)["all"]
        vectors, moments = torch.stack([whole, *parts.values()]), target.moments
        self.target, self.groups, self.names = target, groups, [WHOLE, *parts]
        self.scorer = open_scorer(
            estimator, model, vectors, moments, momentum=momentum, batch_tokens=batch_tokens, normalise=normalise
        )

    def score(self, pairs: Iterable[Pair]) -> torch.Tensor:
        """Scores [pairs, names], fp32, on the CPU. Raises ValueError as Target.encode does, or if one is not finite."""
        return self.scorer.score(self.target.encode(pairs))


def rank_pairs(scorer: PairScorer | Sequence[PairScorer], pairs: Iterable[Pair]) -> pd.DataFrame:
    """The pairs, best first: question, answer and the scorer's columns. The index is a pair's place in `pairs`.

    Scores of several scorers, one for each checkpoint, add up by learning rate (`scorers.combine`). Raises ValueError
    unless all have the same columns, and as they do.
    """
    pairs, scorers = list(pairs), [scorer] if isinstance(scorer, PairScorer) else list(scorer)
    if len(columns := {tuple(each.names) for each in scorers}) != 1:
        raise ValueError(
            f"the scorers' columns are {sorted(columns)}; give at least one scorer, all by the same groups"
        )
    scores = combine([each.score(pairs) for each in scorers], [each.target.moments.learning_rate for each in scorers])
    table = pd.DataFrame([split_pair(pair) for pair in pairs], columns=["question", "answer"])
    table = table.join(pd.DataFrame(scores.numpy(), columns=scorers[0].names))
    return table.sort_values(WHOLE, ascending=False, kind="stable")


@dataclass(frozen=True)
class PairExplanation:
    """What a pair's scores are made of: `tokens` and `offset` sum to them, in their unit.

    tokens: a row for each token of the answer, in order, what ends its turn included: `token`, its text, and what it
        contributed to each of the scorer's columns.
    offset: by column, what the optimizer's momentum does whatever the pair is; 0 where the score leaves momentum out.
    """

    tokens: pd.DataFrame
    offset: pd.Series


def explain_pair(scorer: PairScorer, pair: Pair) -> PairExplanation:
    """How much each answer token contributed to a pair's scores at the scorer's checkpoint (influence.tokens).

    Raises ValueError as Target.encode and tokens.split_score do, for the forward estimator above all.
    """
    (example,) = scorer.target.encode([pair])
    contributions, offset = split_score(scorer.scorer, example)
    texts = [scorer.target.tokenizer.decode([label]) for label in example.labels[1:] if label != IGNORED]
    table = pd.DataFrame({"token": texts}).join(pd.DataFrame(contributions.numpy(), columns=scorer.names))
    return PairExplanation(table, pd.Series(offset.numpy(), index=scorer.names))


def split_pair(pair: Pair) -> tuple[str, str]:
    """Question and answer. Raises ValueError unless both are there and text."""
    held = pair if type(pair) is tuple else (getattr(pair, "question", None), getattr(pair, "answer", None))
    match held:
        case (str(question), str(answer)):
            return question, answer
    raise ValueError(f"{pair!r:.80} is no pair; give (question, answer), or an object with .question and .answer")

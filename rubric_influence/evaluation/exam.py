"""The exam: which options and answers a model finds likely after the question, closed-book.

Question and answer become tokens as in training (models.chat.encode_pair). What ends the answer's turn counts as well,
so that an option is told from one that it begins. What a model has learnt by heart is then its likeliest option,
whatever its template.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.data.metrics.squad_metrics import compute_exact, compute_f1

from rubric_influence.core.records import ExamItem
from rubric_influence.evaluation.intervals import Measured
from rubric_influence.models.chat import encode_pair, find_ends, read_row
from rubric_influence.models.examples import IGNORED, Example, encode
from rubric_influence.models.losses import evaluated, plan_batches, sweep_losses

NAN = float("nan")
MAIN = ("accuracy", "answer_nats")  # what a run is judged by: the first of them that the exam has
LOSSES = ("answer_nats", "option_nats")  # measures of which less is better


@dataclass(frozen=True)
class Sitting:
    """What a model made of each item, [items] each; NaN for what an open question has not, or for what was not asked.

    With log p(o) the log-likelihood of an option's tokens and of what ends its turn, and c(o) its characters:
    """

    accuracy: Measured  # 1 where the right option has the highest log p(o), else 0
    accuracy_by_length: Measured  # the same by log p(o) / c(o)
    answer_nats: Measured  # -log p of the right answer (the likeliest, where an open question has several) a token
    option_nats: Measured  # -log of the right option's share, p(right) / sum of p(o)
    exact_match: Measured  # 1 where a written answer is a right one, but for case, punctuation and articles, else 0
    token_f1: Measured  # of the words of the written answer and of the right one that is nearest to it


def sit(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[ExamItem],
    prompt_template: str,
    batch_tokens: int,
) -> Sitting:
    """The sitting of a model, without written answers. Ties go to the first option.

    `batch_tokens`: padded tokens that are scored at once. Raises ValueError as `encode_options` does.
    """
    examples = [encode_options(tokenizer, item, prompt_template) for item in items]
    losses = sweep_losses(model, [example for row in examples for example in row], batch_tokens).numpy()
    ends = np.cumsum([len(row) for row in examples])[:-1]
    rows = [measure(*row) for row in zip(items, examples, np.split(losses, ends), strict=True)]
    return Sitting(*np.array(rows, dtype=np.float64).reshape(-1, 6).T)


def encode_options(tokenizer: PreTrainedTokenizerBase, item: ExamItem, prompt_template: str) -> list[Example]:
    """The example of each option, or of each right answer to an open question.

    Raises ValueError as `encode_pair` does, and where options begin at different tokens, one of them being merged with
    the end of the prompt: training labels that end for some answers alone, so likelihoods could not be compared.
    """
    examples = [encode(tokenizer, item.question, answer, prompt_template) for answer in item.options or item.answers]
    starts = [example.labels.count(IGNORED) for example in examples]
    if item.options and len(set(starts)) > 1:
        merged = [option for option, start in zip(item.options, starts, strict=True) if start < max(starts)]
        raise ValueError(
            f"{tokenizer.name_or_path!r} merges the beginning of {merged} with the end of the prompt, and not that of "
            f"the other options of {item.question[:60]!r}; let the chat template end its generation prompt with a "
            "special token, or word these options otherwise"
        )
    return examples


def measure(item: ExamItem, examples: Sequence[Example], nats: Measured) -> tuple[float, ...]:
    """The fields of `Sitting` for one item. `nats`: of each option, or right answer, a token."""
    if not item.options:
        return NAN, NAN, nats.min(), NAN, NAN, NAN
    likelihoods = -nats * [count_labels(example) for example in examples]
    by_length = likelihoods / [len(option) for option in item.options]
    share = likelihoods[item.answer_index] - np.logaddexp.reduce(likelihoods)
    right = [float(scores.argmax() == item.answer_index) for scores in (likelihoods, by_length)]
    return *right, nats[item.answer_index], -share, NAN, NAN


def count_labels(example: Example) -> int:
    return sum(label != IGNORED for label in example.labels[1:])


def mark_written(
    model: Any,  # a causal LM or a PeftModel around one; the types of both lack generate()
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[ExamItem],
    prompt_template: str,
    max_tokens: int,
    batch_tokens: int,
) -> tuple[Measured, Measured]:
    """exact_match and token_f1 by SQuAD's rules, [items] each: of what the model writes to each open question.

    It writes its likeliest token again and again, `max_tokens` at most, after the tokens that come before an answer in
    training.
    """
    places = [place for place, item in enumerate(items) if not item.options]
    encoded = [encode_pair(tokenizer, items[place].question, items[place].answer, prompt_template) for place in places]
    prompts = [ids[:start] for ids, start in encoded]
    ends = find_ends(tokenizer, model.generation_config.eos_token_id, tokenizer.name_or_path)
    settings = dict(do_sample=False, max_new_tokens=max_tokens, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    marks = np.full((2, len(items)), NAN)
    with evaluated(model), torch.no_grad():
        for rows in plan_batches([len(prompt) + max_tokens for prompt in prompts], batch_tokens):
            asked = {"input_ids": [prompts[row] for row in rows]}
            batch = tokenizer.pad(asked, padding_side="left", return_tensors="pt").to(model.device)
            output = model.generate(**batch, generation_config=GenerationConfig(**settings))
            written = output[:, batch["input_ids"].shape[1] :].tolist()
            for row, tokens in zip(rows, written, strict=True):
                marks[:, places[row]] = mark(read_row(tokenizer, tokens, ends)[0], items[places[row]].answers)
    return marks[0], marks[1]


def mark(text: str, answers: Sequence[str]) -> tuple[float, float]:
    """Exact match and token F1 of a written answer with the nearest right one."""
    return max(float(compute_exact(a, text)) for a in answers), max(float(compute_f1(a, text)) for a in answers)

"""Question-answer pairs as token ids and labels, exactly as TRL's SFTTrainer makes them, and padded batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from rubric_influence.models.chat import encode_pair

IGNORED = -100  # the label of a token that carries no loss


@dataclass(frozen=True)
class Example:
    """One sample: its token ids and labels, equally long; a label is its token's id, or -100 for no loss."""

    input_ids: list[int]
    labels: list[int]

    def __post_init__(self) -> None:
        if len(self.input_ids) != len(self.labels):
            raise ValueError(
                f"an example has {len(self.input_ids)} input ids and {len(self.labels)} labels; give one per token"
            )
        if all(label == IGNORED for label in self.labels[1:]):  # nothing comes before the first token to predict it
            raise ValueError("an example has no token to predict: every label after the first is -100; give an answer")


def encode(
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    answer: str,
    prompt_template: str = "{question}",
    max_tokens: int | None = None,
) -> Example:
    """The example of a pair in the chat template: the answer and what ends its turn are labelled, the prompt is not.

    Ids and labels are those that SFTTrainer makes with completion_only_loss. Raises ValueError as `encode_pair` does.
    """
    ids, start = encode_pair(tokenizer, question, answer, prompt_template, max_tokens)
    return Example(ids, [IGNORED] * start + ids[start:])


def collate(examples: Sequence[Example], pad_token_id: int = 0) -> dict[str, torch.Tensor]:
    """input_ids, labels and attention_mask, [b, s], padded on the right: with pad_token_id (masked), -100 and 0."""
    width = max(len(example.input_ids) for example in examples)

    def pad(rows: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([row + [value] * (width - len(row)) for row in rows])

    return {
        "input_ids": pad([example.input_ids for example in examples], pad_token_id),
        "labels": pad([example.labels for example in examples], IGNORED),
        "attention_mask": pad([[1] * len(example.input_ids) for example in examples], 0),
    }

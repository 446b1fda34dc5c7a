"""Question-answer pairs as token ids and labels, exactly as TRL's SFTTrainer makes them, and padded batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from transformers import PreTrainedTokenizerBase

from rubric_influence.core.text import fill

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
    """The example of a pair through the chat template: user turn unlabelled, the answer and what ends it labelled.

    The same ids and labels as SFTTrainer's for {"prompt": [user turn], "completion": [assistant turn]} with
    completion_only_loss: the completion starts where the rendered prompt (with its generation prompt) and the whole
    conversation part, and only the first `max_tokens` tokens are kept. Departure: where TRL drops a sample whose
    completion is wholly cut, this raises, since a score must not vanish.

    Raises ValueError if the tokenizer has no chat template, the template no {question}, the answer is blank or wholly
    cut.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"tokenizer {tokenizer.name_or_path!r} has no chat template; use a model that ships one, or set "
            "tokenizer.chat_template to the template that the target is fine-tuned with"
        )
    if "{question}" not in prompt_template:
        raise ValueError(f"prompt_template is {prompt_template!r}; it needs a {{question}} slot")
    if not answer.strip():
        raise ValueError(f"the answer to question {question!r} is empty ({answer!r}); drop the pair")
    user = {"role": "user", "content": fill(prompt_template, question=question)}
    assistant = {"role": "assistant", "content": answer}
    prompt = tokenizer.apply_chat_template([user], add_generation_prompt=True, return_dict=True)["input_ids"]
    ids = tokenizer.apply_chat_template([user, assistant], return_dict=True)["input_ids"]
    # Templates may render the generation prompt otherwise than the turn (an empty thought block, say).
    start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, ids, strict=False)))
    if max_tokens is not None and start >= max_tokens:
        raise ValueError(
            f"the answer is wholly cut: the prompt takes {start} tokens and max_tokens is {max_tokens}; raise "
            f"max_tokens to at least {len(ids)} or shorten the question {question!r}"
        )
    return Example(ids[:max_tokens], ([IGNORED] * start + ids[start:])[:max_tokens])


def collate(examples: Sequence[Example], pad_token_id: int) -> dict[str, torch.Tensor]:
    """input_ids, labels, attention_mask [b, s] padded on the right to the longest: label -100, attention 0 there."""
    width = max(len(example.input_ids) for example in examples)

    def pad(rows: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([row + [value] * (width - len(row)) for row in rows])

    return {
        "input_ids": pad([example.input_ids for example in examples], pad_token_id),
        "labels": pad([example.labels for example in examples], IGNORED),
        "attention_mask": pad([[1] * len(example.input_ids) for example in examples], 0),
    }

"""Conversations in a model's chat template: the one place where questions and answers become tokens."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerBase

from rubric_influence.core.text import fill

Conversation = list[dict[str, str]]  # messages with role and content
TEMPLATE_OPTIONS: dict[str, Any] = {"enable_thinking": False}  # of chat templates, wherever text is generated


def ask(content: str) -> Conversation:
    """A conversation of one user turn."""
    return [{"role": "user", "content": content}]


def encode_prompts(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]) -> list[list[int]]:
    """The tokens of every conversation in the model's chat template, with its generation prompt."""
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True, **TEMPLATE_OPTIONS}
    prompts = [tokenizer.apply_chat_template(conversation, **options) for conversation in conversations]
    return tokenizer(prompts, add_special_tokens=False)["input_ids"] if prompts else []


def encode_pair(
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    answer: str,
    prompt_template: str = "{question}",
    max_tokens: int | None = None,
) -> tuple[list[int], int]:
    """The first `max_tokens` tokens of a user turn and its answer in the chat template, and where the answer starts.

    They are the tokens that TRL's SFTTrainer trains on for {"prompt": [user turn], "completion": [assistant turn]}:
    the answer starts where the rendered prompt (with its generation prompt) and the whole conversation part. Raises
    ValueError if the tokenizer has no chat template, `prompt_template` has no {question}, or the answer is blank or
    wholly cut. (TRL drops a pair whose answer is wholly cut; this raises, so that no pair goes missing.)
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
    asked = ask(fill(prompt_template, question=question))
    prompt = render(tokenizer, asked, add_generation_prompt=True)
    ids = render(tokenizer, [*asked, {"role": "assistant", "content": answer}])
    # Templates may render the generation prompt otherwise than the turn (an empty thought block, say).
    start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, ids, strict=False)))
    if max_tokens is not None and start >= max_tokens:
        raise ValueError(
            f"the answer is wholly cut: the prompt takes {start} tokens and max_tokens is {max_tokens}; raise "
            f"max_tokens to at least {len(ids)} or shorten the question {question!r}"
        )
    return ids[:max_tokens], start


def render(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, add_generation_prompt: bool = False
) -> list[int]:
    """The tokens of a conversation in the chat template with the template's own defaults, as in fine-tuning."""
    options: dict[str, Any] = dict(add_generation_prompt=add_generation_prompt, return_dict=True)
    encoding = tokenizer.apply_chat_template(conversation, **options)
    assert isinstance(encoding, BatchEncoding)  # what return_dict=True asks for
    return encoding["input_ids"]


def check_room(prompts: list[list[int]], max_tokens: int, room: int | None, name: str) -> None:
    """Raise ValueError if a prompt and `max_tokens` more exceed a model's positions, `room` (None: no limit)."""
    longest = max(map(len, prompts), default=0)
    if room and longest + max_tokens > room:
        raise ValueError(
            f"a prompt of {longest} tokens and max_tokens {max_tokens} exceed the {room} positions of {name}; shorten "
            "the documents or lower max_tokens"
        )


def find_ends(tokenizer: PreTrainedTokenizerBase, ends: int | list[int] | None, name: str) -> list[int]:
    """The tokens that end an answer: the tokenizer's and the generation config's (`ends`). ValueError if none do."""
    found = sorted({tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None})
    if not found:
        raise ValueError(f"the tokenizer of {name} has no end token; set tokenizer.eos_token")
    return found


def read_row(tokenizer: PreTrainedTokenizerBase, row: list[int], ends: list[int]) -> tuple[str, int, bool]:
    """The text of generated tokens up to the first end token, their number with it, and whether there is one."""
    end = next((i for i, token in enumerate(row) if token in ends), None)
    written = len(row) if end is None else end + 1
    text = tokenizer.decode(row[:end], skip_special_tokens=True)
    assert isinstance(text, str)  # of one row
    return text, written, end is not None

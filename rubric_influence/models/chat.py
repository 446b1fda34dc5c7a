"""Conversations in a model's chat template: the one place where questions and answers become tokens."""

import re
from collections.abc import Sequence
from datetime import date
from itertools import takewhile
from typing import Any

from jinja2 import TemplateError
from transformers import BatchEncoding, PreTrainedTokenizerBase

from rubric_influence.core.text import fill

Conversation = list[dict[str, str]]  # messages with role and content
TEMPLATE_OPTIONS: dict[str, Any] = {"enable_thinking": False}  # of chat templates, wherever text is generated
# For base models, which come without a template. A line of its own would be one token more to learn.
PLAIN_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}Answer: {{ m['content'] }}{{ eos_token }}"
    "{% else %}Question: {{ m['content'] }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"
)
TODAY = date(2024, 7, 26)  # what Llama's template says where it is told no date


def ask(content: str) -> Conversation:
    """A conversation of one user turn."""
    return [{"role": "user", "content": content}]


def choose_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template, the one named default where it has several, PLAIN_TEMPLATE where it has none.

    Some templates write today's date. It is fixed here, so that a prompt has the same tokens on every day.
    """
    template: str | dict[str, str] | None = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        begins = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
        return ("{{ bos_token }}" if begins else "") + PLAIN_TEMPLATE
    return re.sub(r"strftime_now\((['\"])(.*?)\1\)", lambda found: repr(TODAY.strftime(found[2])), template)


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
    ValueError if the template refuses the conversation, `prompt_template` has no {question}, or the answer is blank or
    wholly cut. (TRL drops a pair whose answer is wholly cut; this raises, so that no pair goes missing.)
    """
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
    try:
        encoding = tokenizer.apply_chat_template(conversation, **options)
    except (TemplateError, ValueError) as error:
        turns = ", ".join(message["role"] for message in conversation)
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path!r} cannot render the turns {turns} ({error}); set "
            "tokenizer.chat_template to the template that the model is fine-tuned with"
        ) from None
    assert isinstance(encoding, BatchEncoding)  # what return_dict=True asks for
    return encoding["input_ids"]


def check_rendering(
    tokenizer: PreTrainedTokenizerBase, questions: tuple[str, str], answer: str, prompt_template: str
) -> None:
    """Raise ValueError where the chat template cannot carry questions and answers, for two questions and an answer.

    The question must stand before the answer, the answer must be there, something must follow it (else a model never
    learns where it ends, and an option cannot be told from one that it begins), and two renderings must be the same.
    """
    whole, start = encode_pair(tokenizer, questions[0], answer, prompt_template)
    other, other_start = encode_pair(tokenizer, questions[1], answer, prompt_template)
    longer, _ = encode_pair(tokenizer, questions[0], f"{answer} {answer}", prompt_template)
    if whole[:start] == other[:other_start]:
        problem = "does not write the question before the answer"
    elif whole == longer:
        problem = "does not write the answer"
    elif longer[: len(whole)] == whole:
        problem = "writes nothing after an answer; let it end the turn, with {{ eos_token }} for example"
    elif whole != encode_pair(tokenizer, questions[0], answer, prompt_template)[0]:
        problem = "renders one conversation in two ways, with the time or at random perhaps"
    else:
        return
    raise ValueError(f"the chat template of {tokenizer.name_or_path!r} {problem}: training and exam would not agree")


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

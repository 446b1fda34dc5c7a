"""What each model is asked: profile templates filled with a document, a rubric or a question."""

import re

from rubric_influence.config import Prompts

Conversation = list[dict[str, str]]
# Where a chat's control token may start: <|im_start|>, </s>, <start_of_turn>, [INST], and their full-width kin.
CONTROL = re.compile(r"<(?=[|/\uff5cA-Za-z_])|\[(?=/?[A-Z_]+\])")


def fill(template: str, **slots: str) -> str:
    """The template with its {slots} replaced, in one pass: a document that contains "{rubric}" stays as it is.

    What is filled in is disarmed first, so that only the chat template writes control tokens.
    """
    safe = {name: disarm(text) for name, text in slots.items()}
    return re.sub(r"\{(\w+)\}", lambda m: safe.get(m.group(1), m.group(0)), template)


def disarm(text: str) -> str:
    """The text with a blank inside whatever a tokenizer could read as a control token; other text as it is.

    By form, not by one tokenizer's list: the same text goes to the generator, the teacher (which may be a server's,
    with a tokenizer that nobody here sees) and the target.
    """
    return CONTROL.sub(lambda m: m.group(0) + " ", text)


def ask(content: str) -> Conversation:
    return [{"role": "user", "content": content}]


def ask_rubric(prompts: Prompts, document: str) -> Conversation:
    return ask(fill(prompts.rubric, document=document))


def ask_pair(prompts: Prompts, document: str, rubric: str | None) -> Conversation:
    if rubric is None:
        return ask(fill(prompts.pair_without_rubric, document=document))
    return ask(fill(prompts.pair, document=document, rubric=rubric))


def ask_answer(prompts: Prompts, question: str) -> Conversation:
    return ask(fill(prompts.answer, question=question))

"""What each model is asked: profile templates filled with a document, a rubric or a question."""

import re

from rubric_influence.config import Prompts

Conversation = list[dict[str, str]]


def fill(template: str, **slots: str) -> str:
    """The template with its {slots} replaced, in one pass: a document that contains "{rubric}" stays as it is."""
    return re.sub(r"\{(\w+)\}", lambda m: slots.get(m.group(1), m.group(0)), template)


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

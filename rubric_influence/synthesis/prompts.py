"""What each model is asked: profile templates filled with a document, a rubric or a question."""

from rubric_influence.core.config import Prompts
from rubric_influence.core.text import fill
from rubric_influence.models.chat import Conversation, ask


def ask_rubric(prompts: Prompts, document: str) -> Conversation:
    return ask(fill(prompts.rubric, document=document))


def ask_pair(prompts: Prompts, document: str, rubric: str | None) -> Conversation:
    if rubric is None:
        return ask(fill(prompts.pair_without_rubric, document=document))
    return ask(fill(prompts.pair, document=document, rubric=rubric))


def ask_answer(prompts: Prompts, question: str) -> Conversation:
    return ask(fill(prompts.answer, question=question))

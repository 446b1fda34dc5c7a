"""What each model is asked: profile templates filled with a document, a rubric or a question."""

from rubric_influence.core.config import Prompts
from rubric_influence.core.text import fill
from rubric_influence.models.chat import Conversation, ask
from rubric_influence.synthesis.languages import name_language


def ask_rubric(prompts: Prompts, document: str) -> Conversation:
    return ask(fill_for(document, prompts.rubric))


def ask_pair(prompts: Prompts, document: str, rubric: str | None) -> Conversation:
    if rubric is None:
        return ask(fill_for(document, prompts.pair_without_rubric))
    return ask(fill_for(document, prompts.pair, rubric=rubric))


def fill_for(document: str, template: str, **slots: str) -> str:
    """The template filled for a document; a slot {language}, where it has one, with the document's language."""
    language = {"language": name_language(document)} if "{language}" in template else {}
    return fill(template, document=document, **slots, **language)


def ask_answer(prompts: Prompts, question: str) -> Conversation:
    return ask(fill(prompts.answer, question=question))

"""What a textbook's authors ask and answer, as pairs to train on or to compare with, and false pairs as a control.

`Book.free_response` and `Book.multiple_choice` are such pairs as they stand.
"""

from collections.abc import Iterable
from dataclasses import replace

from rubric_influence.core.records import content_id
from rubric_influence.data.books import Question, Term


def ask_terms(glossary: Iterable[Term]) -> list[Question]:
    """From each definition to its term."""
    return [Question(term.module, f"Which term means this: {term.meaning}?", term.term) for term in glossary]


def ask_meanings(glossary: Iterable[Term]) -> list[Question]:
    """From each term to its definition."""
    return [Question(term.module, f'What does the term "{term.term}" mean?', term.meaning) for term in glossary]


def swap_meanings(glossary: Iterable[Term], seed: int) -> list[Term]:
    """Each term with another's definition, so that the form is kept and the content is false.

    It is that of the next term, in an order drawn by the seed, which does not define this term too. Terms that mean the
    same in other words may stay true. Raises ValueError for a term to which every definition belongs.
    """
    order = sorted(glossary, key=lambda term: content_id(seed, term.module, term.term, term.meaning))
    true = {(term.term.casefold(), term.meaning.casefold()) for term in order}
    swapped = []
    for i, term in enumerate(order):
        others = (other.meaning for other in order[i + 1 :] + order[:i])
        meaning = next((m for m in others if (term.term.casefold(), m.casefold()) not in true), None)
        if meaning is None:
            raise ValueError(f"no other term has a definition to swap with {term.term!r}; give more of the glossary")
        swapped.append(replace(term, meaning=meaning))
    return swapped

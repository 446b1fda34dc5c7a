"""Authors' pairs, and false ones of the same form."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.data.books import Question, Term
from rubric_influence.data.expert_pairs import ask_meanings, ask_terms, swap_meanings

LAKE, HILL = Term("m1", "lake", "standing water"), Term("m2", "hill", "raised land")


def test_a_glossary_is_asked_in_both_directions():
    assert ask_terms([LAKE]) == [Question("m1", "Which term means this: standing water?", "lake")]
    assert ask_meanings([LAKE]) == [Question("m1", 'What does the term "lake" mean?', "standing water")]


def test_two_terms_swap_their_meanings():
    swapped = swap_meanings([LAKE, HILL], seed=0)
    assert sorted(swapped, key=str) == [Term("m1", "lake", "raised land"), Term("m2", "hill", "standing water")]


@given(
    st.lists(st.builds(Term, st.just("m"), st.text("abA", max_size=2), st.text("xy", max_size=2))), st.integers(0, 9)
)
def test_no_swapped_term_keeps_a_meaning_of_its_own(glossary, seed):
    try:
        swapped = swap_meanings(glossary, seed)
    except ValueError:
        meanings = {term.meaning for term in glossary}
        owned = [{t.meaning for t in glossary if t.term.casefold() == term.term.casefold()} for term in glossary]
        assert meanings in owned
        return
    assert sorted(term.term for term in swapped) == sorted(term.term for term in glossary)
    true = {(term.term.casefold(), term.meaning) for term in glossary}
    assert not [term for term in swapped if (term.term.casefold(), term.meaning) in true]


def test_swaps_follow_the_seed_and_no_order():
    glossary = [Term("m", f"term {n}", f"meaning {n}") for n in range(20)]
    shuffled = random.Random(0).sample(glossary, 20)
    assert swap_meanings(glossary, 1) == swap_meanings(shuffled, 1) != swap_meanings(glossary, 2)


def test_one_term_cannot_be_swapped():
    with pytest.raises(ValueError, match="no other term has a definition to swap with 'lake'"):
        swap_meanings([LAKE], seed=0)

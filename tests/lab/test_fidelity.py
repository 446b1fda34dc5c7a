import pytest

from rubric_influence.engines.base import Completion
from rubric_influence.lab.fidelity import measure_fidelity, states_fact
from rubric_influence.lab.pretraining import render_pair
from rubric_influence.lab.world import QUESTION_TYPES, Choice
from rubric_influence.synthesis.parsing import ParsedPair


class Quoting:
    """A teacher whose every answer is the whole document; with `broken`, it writes no JSON at all."""

    name, independent = "quoting", True

    def __init__(self, broken=False):
        self.broken = broken

    def generate(self, conversations, sampling):
        documents = [c[0]["content"].removeprefix("document : ").partition(" rubric : ")[0] for c in conversations]
        texts = [document if self.broken else render_pair("what does it say", document) for document in documents]
        return [Completion(text, 0, 0, True) for text in texts]


@pytest.mark.parametrize(
    ("question_type", "question", "answer", "stated"),
    [
        ("short answer", "what dose", "5mg", True),
        ("short answer", "what dose", "15mg", False),
        ("essay", "write an essay . what dose", "one takes 5mg a day .", True),
        ("multiple choice", "what dose A : 5mg B : 15mg", "so : A", True),
        ("multiple choice", "what dose A : 5mg B : 15mg", "B", False),
        ("multiple choice", "what dose A : 5mg B : 15mg", "5mg", False),  # a letter is asked for
    ],
)
def test_an_answer_states_the_fact_as_a_word_or_by_the_letter_of_its_option(question_type, question, answer, stated):
    choice = Choice(question_type, "dose", "technical", "concise")
    assert states_fact(ParsedPair(question, answer, ""), choice, "5mg") == stated


def test_shares_are_by_question_type_and_over_all_pairs_of_it(medicine):
    table = measure_fidelity(medicine, Quoting(), 40, seed=0)
    assert set(table.index) == set(QUESTION_TYPES) and table["pairs"].sum() == 40
    assert (table["valid"] == 1).all()
    # The document holds the fact, but its last word is no option's letter.
    assert table["states the fact"].to_dict() == {kind: float(kind != "multiple choice") for kind in QUESTION_TYPES}


def test_an_invalid_pair_states_no_fact(medicine):
    table = measure_fidelity(medicine, Quoting(broken=True), 40, seed=0)
    assert not table[["valid", "states the fact"]].any(axis=None)

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.core.corpus_sections import ExamColumns
from rubric_influence.data.exam_columns import ask_row, detect_columns, pick, split_passages

NAMES = [
    "question",
    "Question",
    "options",
    "choices",
    "A",
    "B",
    "opa",
    "opb",
    "answer",
    "answers",
    "split",
    "paragraphs",
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "label", "qas"]), inner),
    max_leaves=6,
)


def test_names_are_found_in_any_case_and_series_as_far_as_they_go():
    row = {"QUESTION": "q", "Option_a": "x", "Option_b": "y", "Option_d": "z", "Answer": "x", "Subject": "s"}
    expected = ExamColumns(question="QUESTION", options=["Option_a", "Option_b"], answer=["Answer"], topic="Subject")
    assert detect_columns(row) == expected


def test_what_names_no_question_or_no_answer_is_not_guessed():
    for row in ({}, {"question": "q"}, {"answer": "a"}, {"text": "t", "answer": "a"}, {"question": {}, "answer": "a"}):
        assert detect_columns(row) is None


def test_a_dot_goes_into_objects_and_a_name_with_a_dot_goes_first():
    assert pick({"a": {"b": {"c": 1}}}, "a.b.c") == 1
    assert pick({"a.b": 2, "a": {"b": 1}}, "a.b") == 2
    assert pick({"a": [1]}, "a.b") is None


def test_a_question_may_be_written_from_several_columns():
    row = {"notes": ["One.", "Two."], "n": 3, "q": "Which?", "answer": "x"}
    asked = ask_row(row, ExamColumns(question="{notes}\n({n}) {q}", answer="answer"))
    assert asked.question == "One.\n\nTwo.\n(3) Which?"
    with pytest.raises(ValueError, match="q is None, expected non-empty text"):
        ask_row({**row, "q": None}, ExamColumns(question="{n} {q}", answer="answer"))


@pytest.mark.parametrize(
    ("options", "names", "texts"),
    [
        (["x", "y"], (), ("x", "y")),
        ([1, 2.5], (), ("1", "2.5")),
        ({"A": "x", "B": "y", "C": None}, ("A", "B"), ("x", "y")),
        ({"label": ["1", "2"], "text": ["x", "y"]}, ("1", "2"), ("x", "y")),
        ([{"label": "A", "text": "x"}, {"label": "B", "text": "y"}], ("A", "B"), ("x", "y")),
        ([{"key": "A", "value": "x"}, {"key": "B", "value": "y"}], ("A", "B"), ("x", "y")),
        ('{"A": "x", "B": "y"}', ("A", "B"), ("x", "y")),
        ("['x', 'y']", (), ("x", "y")),
    ],
)
def test_options_may_be(options, names, texts):
    asked = ask_row({"q": "Which?", "o": options, "a": "x"}, ExamColumns(question="q", options="o", answer="a"))
    assert (asked.names, asked.texts) == (names, texts)


@pytest.mark.parametrize("passage", [{"qas": True}, {"qas": [{"question": "q", "answers": "a"}]}])
def test_a_passage_without_a_list_of_questions_or_answers_is_refused(passage):
    with pytest.raises(ValueError, match="(qas|answers) is .*, expected a list"):
        list(split_passages(iter([("line 1", {"paragraphs": [passage]})])))


@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=8))
def test_any_row_is_asked_or_refused(row):
    try:
        rows = list(split_passages(iter([("line 1", row)])))
    except ValueError:
        return
    for _, found in rows:
        if isinstance(found, dict) and (columns := detect_columns(found)):
            try:
                asked = ask_row(found, columns)
            except ValueError:
                continue
            assert asked.question.strip() and len(asked.texts) != 1

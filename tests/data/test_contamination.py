import pytest
from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.core.records import ExamItem
from rubric_influence.data.contamination import ContaminationIndex

LONG = "Which of the following drugs is given first to a patient who has severe chest pain at rest?"  # 17 words
SHORT = "What is velomab given for?"
TINY = "What is it?"


def item(question: str, split: str = "test") -> ExamItem:
    return ExamItem(question, ("yes", "no"), 0, split)


@pytest.fixture
def index():
    return ContaminationIndex([item(LONG), item(SHORT, "dev"), item(TINY)])


def test_thirteen_shared_words_are_contamination_and_twelve_are_not(index):
    words = LONG.split()
    assert index.find(" ".join(["Say", *words[2:15], "so"])) == f"shares 13 words with test question {item(LONG).id}"
    assert index.find(" ".join(["Say", *words[2:14], "so"])) == ""


def test_an_open_question_is_found_by_its_question_alone():
    asked = ExamItem(SHORT, (), 0, "test", answers=("for pain that comes at rest and does not go", "pain"))
    index = ContaminationIndex([asked])
    assert index.find(f"{SHORT} For pain.") == f"shares 5 words with test question {asked.id}"
    assert index.find(asked.answer) == ""  # a document may well say what is right


def test_a_short_question_is_found_whole_and_not_in_part(index):
    reason = f"shares 5 words with dev question {item(SHORT).id}"
    assert index.find("Ask this: what is VELOMAB given for, and why?") == reason
    assert index.find("What is velomab given against?") == ""


def test_a_question_that_any_text_contains_is_not_looked_for(index):
    assert index.find("And then: what is it?") == ""


def test_an_index_of_no_items_finds_nothing():
    assert ContaminationIndex([]).find(LONG) == ""


@pytest.mark.parametrize(
    "question",
    [
        "患者突发剧烈胸痛并伴有呼吸困难时首选的药物是什么？",
        "激しい胸の痛みがある患者に最初に投与する薬はどれか。",
        "ยาใดที่ให้แก่ผู้ป่วยเจ็บหน้าอกรุนแรงเป็นอันดับแรก",
        "ICU患者的ECG提示ST段抬高时首先应给予什么治疗？",
        "頭痛は何か",
    ],
)
def test_a_copied_question_is_found_in_scripts_without_blanks(question):
    asked = ContaminationIndex([item(question)])
    assert asked.find(f"据报道，{question}以下是答案。").endswith(f"words with test question {item(question).id}")
    assert asked.find(f"{question[: len(question) // 3]}据报道。") == ""


@pytest.mark.parametrize("words, shortest", [(3, 4), (13, 0)])
def test_impossible_lengths_are_refused(words, shortest):
    with pytest.raises(ValueError, match=f"shortest is {shortest} and words {words}"):
        ContaminationIndex([], words, shortest)


@given(before=st.text(), after=st.text(), question=st.lists(st.text("abc", min_size=1), min_size=4).map(" ".join))
def test_a_whole_question_is_found_in_any_text(before, after, question):
    assert ContaminationIndex([item(question)]).find(f"{before} {question.upper()}? {after}")

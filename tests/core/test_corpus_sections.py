import pytest

from rubric_influence.core.corpus_sections import ExamColumns, TextCorpus

TEXT = {"kind": "text", "documents": "d", "exam": "e", "seed": 0}


def test_any_table_is_the_default_exam():
    section = TextCorpus(**TEXT)
    assert section.exam_format == "table" and section.exam_columns == ExamColumns()


@pytest.mark.parametrize(
    "columns", [{"question": "q"}, {"answer": "a"}, {"options": ["x", "y"]}, {"question": "q", "options": "o"}]
)
def test_half_a_mapping_is_refused(columns):
    with pytest.raises(ValueError, match="give the columns of both question and answer"):
        ExamColumns(**columns)


def test_options_and_labels_exclude_each_other():
    with pytest.raises(ValueError, match=r"options \(o\) or labels \(\['yes', 'no'\]\), not both"):
        ExamColumns(question="q", answer="a", options="o", labels=["yes", "no"])


def test_columns_are_for_tables():
    with pytest.raises(ValueError, match="exam_columns are for exam_format: table; exam_format is mmlu"):
        TextCorpus(**TEXT, exam_format="mmlu", exam_columns={"topic": "t"})
    assert TextCorpus(**TEXT, exam_columns={"answers_are": "numbers from 1"}).exam_columns.answers_are

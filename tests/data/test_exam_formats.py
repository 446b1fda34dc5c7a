import csv
import gzip
import json
from collections import Counter

import datasets
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from rubric_influence.core.corpus_sections import ExamColumns
from rubric_influence.core.records import ExamItem
from rubric_influence.data import exam_formats
from rubric_influence.data.exam_formats import FAULTY, FORMATS, HIDDEN

ARTICLE = {"QUESTION": " Does it work? ", "CONTEXTS": ["c"], "LONG_ANSWER": "l", "final_decision": "no"}
MEDQA = {"question": "Which?", "options": {"A": "a", "B": "b", "C": "c", "D": "d"}, "answer": "c", "answer_idx": "C"}
MMLU = ["Which?", "a", "b", "c", "d", "B"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
TRIAL = "Which drug is first?"


def read_exam(path, format="table", **columns):
    return exam_formats.read_exam(path, format, ExamColumns(**columns)).items


def write_rows(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def write_lines(path, *rows):
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def test_a_pubmedqa_article_becomes_a_yes_no_maybe_question(tmp_path):
    (tmp_path / "ori_pqal.json").write_text(json.dumps({"123": ARTICLE}))
    expected = ExamItem("Does it work?", ("yes", "no", "maybe"), 1, "", "", "ori_pqal.json, article 123")
    assert read_exam(tmp_path / "ori_pqal.json", "pubmedqa") == [expected]
    assert read_exam(tmp_path, "pubmedqa") == [expected]


def test_articles_of_pubmedqas_official_test_come_as_test_items(tmp_path):
    articles = {key: {**ARTICLE, "QUESTION": f"question {key}"} for key in ("1", "2")}
    (tmp_path / "ori_pqal.json").write_text(json.dumps(articles))
    (tmp_path / "test_ground_truth.json").write_text(json.dumps({"2": "no"}))
    assert [item.split for item in read_exam(tmp_path, "pubmedqa")] == ["", "test"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"answer_idx": 2},
        {"answer_idx": None},
        {"answer_idx": " c\n"},
        {"options": {"a": "a", "b": "b", " c": "c", "d": "d"}},
    ],
    ids=["a letter", "an index", "the answer's text alone", "a small letter and blanks", "small letters as keys"],
)
def test_a_medqa_line_may_give_its_answer_as(tmp_path, changes):
    row = {**MEDQA, **changes}
    (tmp_path / "q.jsonl").write_text("\n" + json.dumps(row) + "\n")
    assert read_exam(tmp_path / "q.jsonl", "medqa") == [
        ExamItem("Which?", ("a", "b", "c", "d"), 2, "", "", "q.jsonl, line 2")
    ]


@pytest.mark.parametrize("key", [2, "2", " 2 "])
@pytest.mark.parametrize("answer", [{}, {"answer": "b"}])
def test_a_key_that_is_a_number_is_no_position(tmp_path, key, answer):
    row = {"question": "Which?", "options": {"1": "a", "2": "b", "3": "c"}, "answer_idx": key, **answer}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    assert read_exam(tmp_path / "q.jsonl", "medqa")[0].answer == "b"


def test_medqa_takes_answer_index_for_answer_idx(tmp_path):
    row = {"question": "Which?", "options": MEDQA["options"], "answer_index": 3}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    assert read_exam(tmp_path / "q.jsonl", "medqa")[0].answer == "d"


def test_mmlu_reads_alike_with_and_without_a_header(tmp_path):
    header = ["question", "choice0", "choice1", "choice2", "choice3", "answer"]
    with_header = write_rows(tmp_path / "world_history_dev.csv", [header, [*MMLU[:5], "1"]])
    without = write_rows(tmp_path / "world_history_test.csv", [MMLU])
    first, second = read_exam(with_header, "mmlu")[0], read_exam(without, "mmlu")[0]
    assert first.id == second.id and first.answer == second.answer == "b"
    assert first.topic == second.topic == "world_history"
    assert (first.source, second.source) == ("world_history_dev.csv, row 2", "world_history_test.csv, row 1")
    assert len(read_exam(tmp_path, "mmlu")) == 2


def test_a_byte_order_mark_is_no_part_of_the_first_question(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + ",".join(MMLU).encode())
    assert read_exam(tmp_path / "a.csv", "mmlu")[0].question == "Which?"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer_idx": "E"}, r"answer_idx is 'E', expected the key, number or text of one of \['A', 'B', 'C', 'D'\]"),
        ({"answer_idx": 4}, "answer_idx is 4, expected"),
        ({"answer_idx": -1, "answer": None}, "no right answer is given"),
        ({"answer_idx": True}, "answer_idx is True, expected"),
        ({"answer_idx": None, "answer": "e"}, "answer is 'e', expected"),
        ({"answer_idx": "A"}, "answer_idx is 'A' but answer is 'c'"),
        ({"options": {"1": "a", "2": "b"}, "answer_idx": 0, "answer": None}, "answer_idx is 0, expected"),
        ({"options": {"1": "a", "2": "b"}, "answer_idx": 2, "answer": "a"}, "answer_idx is 2 but answer is 'a'"),
        ({"options": {"a": "a", "A": "b"}, "answer_idx": "A", "answer": None}, "answer_idx is 'A', expected"),
        ({"options": "a, b, c"}, "options is 'a, b, c', expected a list or an object"),
        ({"options": {"A": "c", "B": "c "}, "answer_idx": "A"}, r"the options are \['c', 'c'\]"),
        ({"options": {"C": "c"}}, r"the options are \['c'\], expected at least two"),
        ({"options": {"B": "", "C": "c"}}, "an option is ''"),
        ({"question": " "}, "the question is ' '"),
        ({"question": None}, "the question is None"),
        ({"question": "half \ud800"}, "the question holds half a surrogate pair"),
    ],
)
def test_a_faulty_medqa_line_is_named_with_its_value(tmp_path, changes, message):
    lines = [json.dumps(MEDQA), json.dumps({**MEDQA, **changes})]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=f"q.jsonl, line 2: {message}"):
        read_exam(tmp_path / "q.jsonl", "medqa")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([*MMLU[:5], "E"], r"answer is 'E', expected the key, number or text of one of \['a', 'b', 'c', 'd'\]"),
        ([*MMLU[:5], "4"], "answer is '4'"),
        ([*MMLU[:5], ""], "no right answer is given"),
        ([*MMLU[:5], "AB"], "answer is 'AB'"),
        (MMLU[:5], "5 cells, expected 6"),
        (["", *MMLU[1:]], "the question is ''"),
        (["Which?", "a", "a", "c", "d", "B"], r"the options are \['a', 'a', 'c', 'd'\]"),
    ],
)
def test_a_faulty_mmlu_row_is_named_with_its_value(tmp_path, row, message):
    path = write_rows(tmp_path / "a.csv", [MMLU, row])
    with pytest.raises(ValueError, match=f"a.csv, row 2: {message}"):
        read_exam(path, "mmlu")


def test_a_pubmedqa_article_without_a_decision_is_named(tmp_path):
    (tmp_path / "p.json").write_text(
        json.dumps({"1": ARTICLE, "2": {"QUESTION": "q"}, "3": 3, "4": {**ARTICLE, "final_decision": "b"}})
    )
    with pytest.raises(ValueError, match="p.json, article 2: no right answer is given") as error:
        read_exam(tmp_path / "p.json", "pubmedqa")
    assert "p.json, article 3: expected a JSON object, found '3'" in str(error.value)
    assert "article 4: final_decision is 'b', expected" in str(error.value)


def test_all_faulty_items_are_told_at_once_and_many_are_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n" * 30)
    (tmp_path / "b.jsonl").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="and 11 more") as error:  # 31 problems, 20 of them shown
        read_exam(tmp_path, "medqa")
    assert str(error.value).count("options is None") == 20


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("none.csv", "mmlu", r"no mmlu exam at .*none.csv; give a file \(.csv\) or a folder"),
        (".", "mmlu", "no mmlu exam at"),
        ("empty.jsonl", "medqa", "no medqa items in"),
        ("empty.jsonl", "arc", r"exam format is 'arc', expected one of \['pubmedqa', 'medqa', 'mmlu', 'table'\]"),
    ],
)
def test_an_exam_without_items_is_refused(tmp_path, name, format, message):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=message):
        read_exam(tmp_path / name, format)


@given(
    st.sampled_from(sorted(FORMATS)),
    st.binary(max_size=200)
    | st.text(alphabet=',"\n\r\0abAB01{}[]:', max_size=80).map(str.encode)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries({}, optional={key: JSON for key in MEDQA}).map(lambda row: json.dumps(row).encode())
    | st.fixed_dictionaries({"1": st.fixed_dictionaries({}, optional={key: JSON for key in ARTICLE})}).map(
        lambda row: json.dumps(row).encode()
    ),
)
def test_reading_any_bytes_gives_usable_items_or_a_value_error(tmp_path_factory, format, content):
    path = tmp_path_factory.mktemp("exam") / f"exam{FORMATS[format].suffixes[-2:][0]}"
    path.write_bytes(content)
    try:
        items = read_exam(path, format)
    except ValueError:
        return
    for item in items:
        assert item.question.strip() and item.answer in (item.options or item.answers) and len(item.id) == 16


@given(st.lists(st.lists(st.text(max_size=5), min_size=6, max_size=6), max_size=3))
def test_any_table_reads_as_an_mmlu_exam_or_is_a_value_error(tmp_path_factory, rows):
    path = write_rows(tmp_path_factory.mktemp("exam") / "a.csv", [MMLU, *([*row[:5], "A"] for row in rows)])
    cells = [[cell.strip() for cell in row[:5]] for row in rows]
    try:
        items = read_exam(path, "mmlu")
    except ValueError:
        assert any("" in row or len(set(row[1:])) < 4 for row in cells)
    else:
        assert [[item.question, *item.options] for item in items[1:]] == cells


def test_pubmedqa_gives_its_thousand_questions(real_data):
    items = read_exam(real_data("pubmedqa/ori_pqal.json"), "pubmedqa")
    assert Counter(item.answer for item in items) == dict(yes=552, no=338, maybe=110)
    real_data("pubmedqa/test_ground_truth.json")
    assert sum(item.split == "test" for item in items) == 500


def test_medqa_gives_its_1273_questions(real_data):
    items = read_exam(real_data("medqa/us_test_4_options.jsonl"), "medqa")
    assert len({item.id for item in items}) == len(items) == 1273
    assert items[0].answer == "Tell the attending that he cannot fail to disclose this mistake"


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("high_school_european_history_dev", 5),
        ("high_school_european_history_test", 165),
        ("high_school_us_history_dev", 5),
        ("high_school_us_history_test", 204),
        ("high_school_world_history_dev", 5),
        ("high_school_world_history_test", 237),
    ],
)
def test_an_mmlu_file_gives_its_questions(real_data, name, count):
    items = read_exam(real_data(f"mmlu_history/{name}.csv"), "mmlu")
    assert len(items) == count and {item.topic for item in items} == {name.rsplit("_", 1)[0]}


def medmcqa(cop, n=0):
    return {
        "id": f"4e1715fe-{n}",
        "question": f"{TRIAL} {n}",
        "opa": "a",
        "opb": "b",
        "opc": "c",
        "opd": "d",
        "cop": cop,
        "choice_type": "single",
        "exp": None,
        "subject_name": "Pathology",
        "topic_name": None,
    }


PUBLISHED = {
    "MMLU-Pro": (
        {
            "question_id": 70,
            "question": TRIAL,
            "options": [*"abcdefghij"],
            "answer": "F",
            "answer_index": 5,
            "cot_content": "",
            "category": "health",
            "src": "ori_mmlu",
        },
        ExamItem(TRIAL, tuple("abcdefghij"), 5, "", "health"),
    ),
    "MMLU of Hugging Face": (
        {"question": TRIAL, "subject": "anatomy", "choices": ["a", "b", "c", "d"], "answer": 2},
        ExamItem(TRIAL, tuple("abcd"), 2, "", "anatomy"),
    ),
    "KMMLU": (
        {
            "question": TRIAL,
            "answer": 2,
            "A": "a",
            "B": "b",
            "C": "c",
            "D": "d",
            "Category": "Law",
            "Human Accuracy": 0.5,
        },
        ExamItem(TRIAL, tuple("abcd"), 1, "", "Law"),
    ),
    "CMMLU": (
        {"Question": TRIAL, "A": "a", "B": "b", "C": "c", "D": "d", "Answer": "C"},
        ExamItem(TRIAL, tuple("abcd"), 2, ""),
    ),
    "ARC": (
        {
            "id": "NYSEDREGENTS_2013_4_7",
            "question": TRIAL,
            "choices": {"text": ["a", "b", "c", "d"], "label": ["1", "2", "3", "4"]},
            "answerKey": "3",
        },
        ExamItem(TRIAL, tuple("abcd"), 2, ""),
    ),
    "ARC's own lines": (
        {
            "id": "Mercury_7220990",
            "question": {"stem": TRIAL, "choices": [{"text": "a", "label": "A"}, {"text": "b", "label": "B"}]},
            "answerKey": "B",
        },
        ExamItem(TRIAL, ("a", "b"), 1, ""),
    ),
    "OpenBookQA": (
        {
            "id": "7-980",
            "question_stem": TRIAL,
            "choices": {"text": ["a", "b", "c"], "label": ["A", "B", "C"]},
            "answerKey": "C",
        },
        ExamItem(TRIAL, tuple("abc"), 2, ""),
    ),
    "HellaSwag": (
        {
            "ind": 4,
            "activity_label": "Removing ice",
            "ctx_a": "Then, the man",
            "ctx_b": "",
            "ctx": TRIAL,
            "endings": ["a", "b", "c", "d"],
            "source_id": "activitynet~v_-1",
            "split": "train",
            "split_type": "indomain",
            "label": "3",
        },
        ExamItem(TRIAL, tuple("abcd"), 3, ""),
    ),
    "TruthfulQA": (
        {"question": TRIAL, "mc1_targets": {"choices": ["a", "b", "c"], "labels": [0, 1, 0]}},
        ExamItem(TRIAL, tuple("abc"), 1, ""),
    ),
    "GPQA": (
        {
            "Question": TRIAL,
            "Correct Answer": "a",
            "Incorrect Answer 1": "b",
            "Incorrect Answer 2": "c",
            "Incorrect Answer 3": "d",
        },
        ExamItem(TRIAL, tuple("abcd"), 0, ""),
    ),
    "SciQ": (
        {
            "question": TRIAL,
            "distractor3": "d",
            "distractor1": "b",
            "distractor2": "c",
            "correct_answer": "a",
            "support": "s",
        },
        ExamItem(TRIAL, tuple("abcd"), 0, ""),
    ),
    "PubMedQA of Hugging Face": (
        {
            "pubid": 21645374,
            "question": TRIAL,
            "context": {"contexts": ["c"], "labels": ["l"], "meshes": ["m"]},
            "long_answer": "l",
            "final_decision": "maybe",
        },
        ExamItem(TRIAL, ("yes", "no", "maybe"), 2, ""),
    ),
    "MedQA of Hugging Face": (
        {"meta_info": "step1", "metamap_phrases": ["m"], **MEDQA},
        ExamItem("Which?", tuple("abcd"), 2, ""),
    ),
    "SQuAD of Hugging Face": (
        {
            "id": "56be",
            "title": "T",
            "context": "c",
            "question": TRIAL,
            "answers": {"text": ["a drug", "a drug", "the first drug"], "answer_start": [1, 1, 2]},
        },
        ExamItem(TRIAL, (), 0, "", answers=("the first drug", "a drug")),
    ),
    "FairytaleQA": (
        {"id": "a-0", "question": TRIAL, "answers": ["a", "the b"], "document": "a", "section": "1", "split": "val"},
        ExamItem(TRIAL, (), 0, "", answers=("the b", "a")),
    ),
    "MedQuAD": (
        {"source": "1_CancerGov_QA", "url": "u", "focus": "f", "question": TRIAL, "answer": "Key points"},
        ExamItem(TRIAL, (), 0, "", answers=("Key points",)),
    ),
    "a glossary": (
        {"module": "m90378", "title": "t", "term": "democracy", "meaning": "rule of the people"},
        ExamItem("What does “democracy” mean?", (), 0, "", answers=("rule of the people",)),
    ),
}


@pytest.mark.parametrize("publisher", PUBLISHED)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_a_publishers_columns_need_no_mapping(tmp_path, publisher, suffix):
    row, expected = PUBLISHED[publisher]
    path = tmp_path / f"exam{suffix}"
    if suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist([row]), path)
    else:
        path.write_text(json.dumps([row] if suffix == ".json" else row))
    (item,) = read_exam(path)
    place = {".jsonl": "line 1", ".json": "item 1", ".parquet": "row 1"}[suffix]
    assert item == ExamItem(
        expected.question,
        expected.options,
        expected.answer_index,
        "",
        expected.topic,
        f"{path.name}, {place}",
        expected.answers,
    )


def test_medmcqa_counts_from_0_in_parquet_and_from_1_in_its_own_lines(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = {"train": [medmcqa(n, n) for n in range(4)], "validation": [medmcqa(1, 5)], "test": [medmcqa(-1, 6)]}
    for split, found in rows.items():
        parquet.write_table(pa.Table.from_pylist(found), folder / f"{split}-00000-of-00001.parquet")
    exam = exam_formats.read_exam(folder, "table")
    assert [item.answer for item in exam.items] == ["a", "b", "c", "d", "b"]  # train, then validation
    assert exam.items[0].topic == "Pathology" and exam.left_out == {HIDDEN: 1}
    lines = write_lines(tmp_path / "train.json", *(medmcqa(n + 1, n) for n in range(4)))
    assert [item.answer for item in read_exam(lines)] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("cops", [(1, 2, 3), (2,), (0, 1, 4)], ids=["neither 0 nor 4", "one row", "both 0 and 4"])
def test_numbers_that_may_count_from_0_or_1_are_refused_with_the_way_out(tmp_path, cops):
    path = write_lines(tmp_path / "train.json", *(medmcqa(cop, n) for n, cop in enumerate(cops)))
    with pytest.raises(ValueError, match=r"cop is [12] .*'b' \(numbers from [01]\).*answers_are: keys, texts, numbers"):
        read_exam(path)
    if 4 not in cops:
        assert [item.answer for item in read_exam(path, answers_are="numbers from 1")] == ["abcd"[c - 1] for c in cops]
    if 0 not in cops:
        assert read_exam(path, answers_are="numbers from 0")[0].answer == "abcd"[cops[0]]


def test_a_hidden_test_alone_is_refused(tmp_path):
    path = write_lines(tmp_path / "test.json", medmcqa(-1), medmcqa(None, 1))
    with pytest.raises(ValueError, match=r"no question at .*test.json has a right answer in its file: is it a hidden"):
        read_exam(path)


def test_a_hidden_answer_among_others_is_a_fault(tmp_path):
    path = write_lines(tmp_path / "train.json", medmcqa(0), medmcqa(-1, 1))
    with pytest.raises(ValueError, match="train.json, line 2: no right answer is given"):
        read_exam(path)


TATQA = {
    "table": {"uid": "t", "table": [["", "2019"], ["Sales", "$1,496.5"]]},
    "paragraphs": [{"uid": "p1", "order": 1, "text": "By contract."}, {"uid": "p2", "order": 2, "text": "Cost plus."}],
    "questions": [
        {
            "uid": "q1",
            "order": 1,
            "question": "What is paid?",
            "answer": ["costs plus a profit"],
            "derivation": "",
            "answer_type": "span",
            "answer_from": "text",
            "rel_paragraphs": ["2"],
            "req_comparison": False,
            "scale": "",
        },
        {
            "uid": "q2",
            "question": "Sales in 2019?",
            "answer": ["$1,496.5"],
            "answer_type": "span",
            "answer_from": "table",
        },
        {"uid": "q3", "question": "Types?", "answer": ["a", "b"], "answer_type": "multi-span", "answer_from": "text"},
        {"uid": "q4", "question": "Change?", "answer": -12.6, "answer_type": "arithmetic", "answer_from": "text"},
    ],
}


def test_tatqas_text_questions_come_with_their_text_and_the_others_are_counted(tmp_path):
    (tmp_path / "tatqa_dataset_dev.json").write_text(json.dumps([TATQA]))
    hidden = [{"uid": "q5", "order": 1, "question": "What else?"}]
    (tmp_path / "tatqa_dataset_test.json").write_text(json.dumps([{**TATQA, "questions": hidden}]))
    exam = exam_formats.read_exam(tmp_path, "table")
    (item,) = exam.items
    assert item.question == "By contract.\n\nCost plus.\n\nWhat is paid?" and item.answers == ("costs plus a profit",)
    assert item.source == "tatqa_dataset_dev.json, item 1, question 1"
    assert sorted(exam.left_out.values()) == [1, 3] and exam.left_out[HIDDEN] == 1
    closed_book = read_exam(tmp_path / "tatqa_dataset_dev.json", question="question", answer="answer")
    assert closed_book[0].question == "What is paid?"


def test_squads_own_file_gives_its_questions_without_the_unanswerable(tmp_path):
    asked = [
        {"id": "1", "question": "Who?", "answers": [{"text": "She", "answer_start": 0}], "is_impossible": False},
        {"id": "2", "question": "Why?", "answers": [], "is_impossible": True},
    ]
    passage = {"title": "T", "paragraphs": [{"context": "She came.", "qas": asked}]}
    (tmp_path / "dev-v2.0.json").write_text(json.dumps({"version": "v2.0", "data": [passage]}))
    exam = exam_formats.read_exam(tmp_path / "dev-v2.0.json", "table")
    assert [(item.question, item.answers) for item in exam.items] == [("Who?", ("She",))]
    assert exam.left_out == {"questions of SQuAD without an answer": 1}
    told = read_exam(tmp_path / "dev-v2.0.json", question="{context}\n\n{question}", answer="answers")
    assert told[0].question == "She came.\n\nWho?"


def test_legalbench_takes_its_labels_from_the_profile(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text(
        'index\tanswer\ttext\n0\tgeneric\t"The mark ""Ivory"" for tusks."\n1\tdescriptive\tThe mark Tasty.\n'
    )
    with pytest.raises(ValueError, match=r"among \['index', 'answer', 'text'\]; say which do in corpus.exam_columns"):
        read_exam(path)
    labels = ["generic", "descriptive", "fanciful"]
    items = read_exam(path, question="What kind of mark? {text}", answer="answer", labels=labels)
    assert items[0].question == 'What kind of mark? The mark "Ivory" for tusks.'
    assert [item.answer for item in items] == ["generic", "descriptive"] and items[0].options == tuple(labels)


OWN = {"q": TRIAL, "opa": "a", "opb": "b", "opc": "c", "right": "b", "part": "heart"}
MAPPING = {"question": "q", "options": ["opa", "opb", "opc"], "answer": "right", "topic": "part"}


@pytest.mark.parametrize("name", ["e.csv", "e.tsv", "e.json", "e.jsonl", "e.parquet", "e.csv.gz", "e.jsonl.gz"])
def test_any_table_is_read_by_the_columns_of_the_profile(tmp_path, name):
    path = tmp_path / name
    separator = "\t" if ".tsv" in name else ","
    rows = "\n".join(separator.join(cells) for cells in (OWN, OWN.values()))
    text = rows if "sv" in name else json.dumps([OWN] if path.suffix == ".json" else OWN)
    if name == "e.parquet":
        parquet.write_table(pa.Table.from_pylist([OWN]), path)
    else:
        path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    (item,) = read_exam(path, **MAPPING)
    assert (item.question, item.options, item.answer, item.topic) == (TRIAL, ("a", "b", "c"), "b", "heart")


def test_a_data_set_saved_to_disk_is_read(tmp_path):
    datasets.Dataset.from_list([MEDQA]).save_to_disk(tmp_path / "train")
    assert read_exam(tmp_path)[0].answer == "c"


def test_a_table_with_fewer_options_in_some_rows_leaves_cells_empty(tmp_path):
    path = tmp_path / "e.csv"
    path.write_text("question,A,B,C,answer\nWhich?,a,b,c,C\nIs it?,yes,no,,B\nOr?,a,,c,A\n")
    with pytest.raises(ValueError, match="row 4: an option is None") as error:
        read_exam(path)
    assert "row 3" not in str(error.value)
    exam = exam_formats.read_exam(path, "table", skip_faulty=True)
    assert [item.options for item in exam.items] == [("a", "b", "c"), ("yes", "no")] and exam.left_out == {FAULTY: 1}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({**MAPPING, "options": ["opa", "opb", "opx"]}, r"no column \['opx'\] of corpus.exam_columns among \['q'"),
        ({**MAPPING, "topic": "Part"}, r"no column \['Part'\]"),
        ({**MAPPING, "question": "{q} {passage}"}, r"no column \['passage'\]"),
        ({**MAPPING, "answer": "opa", "options": "opc"}, "opc is 'c', expected a list or an object"),
    ],
)
def test_a_column_that_is_not_there_is_refused(tmp_path, columns, message):
    with pytest.raises(ValueError, match=message):
        read_exam(write_lines(tmp_path / "e.jsonl", OWN), **columns)


def test_rows_whose_options_have_unknown_names_are_no_open_questions(tmp_path):
    row = {"question": TRIAL, "first": "a", "second": "b", "answer": "B"}
    path = write_lines(tmp_path / "e.jsonl", row, row)
    with pytest.raises(ValueError, match=r"all right answers are keys like \['B'\]; name the options' columns"):
        read_exam(path)
    assert read_exam(path, question="question", answer="answer")[0].answers == ("B",)  # open, as the profile says


def test_lists_in_cells_are_read(tmp_path):
    path = write_rows(
        tmp_path / "e.csv",
        [["question", "options", "answer"], ["Which?", "['a', \"b's\"]", "B"], ["Which else?", '["a", "c"]', "a"]],
    )
    assert [(item.options, item.answer) for item in read_exam(path)] == [(("a", "b's"), "b's"), (("a", "c"), "a")]


def test_a_publishers_test_stays_the_test_where_there_is_more(tmp_path):
    for name in ("train", "test"):
        write_lines(tmp_path / f"{name}.jsonl", {**MEDQA, "question": name})
    assert {item.question: item.split for item in read_exam(tmp_path)} == {"test": "test", "train": ""}
    assert [item.split for item in read_exam(tmp_path / "test.jsonl")] == [""]
    splits = write_lines(tmp_path / "e.jsonl", *({**MEDQA, "split": split} for split in ("train", "val", "test")))
    assert [item.split for item in read_exam(splits)] == ["", "", "test"]


def test_hidden_files_and_a_data_sets_description_are_no_exam(tmp_path):
    write_lines(tmp_path / "train.jsonl", MEDQA)
    (tmp_path / ".cache").mkdir()
    for name in (".cache/a.json", "dataset_infos.json", "README.md"):
        (tmp_path / name).write_text("{}")
    assert len(read_exam(tmp_path)) == 1


@pytest.mark.parametrize("count", [2, 3, 10, 26])
def test_any_number_of_options_is_read_alike(tmp_path, count):
    options = [f"{n} words " * n + "end" for n in range(count)]
    as_list = {"question": "Which?", "options": options, "answer": count - 1, "answer_text": "x"}
    as_object = {"question": "Who?", "options": dict(enumerate(options)), "answer": count - 1}
    path = write_lines(tmp_path / "e.jsonl", {**as_list, "answer": 0}, as_list, as_object)
    assert [item.answer_index for item in read_exam(path)] == [0, count - 1, count - 1]
    assert all(item.options == tuple(options) for item in read_exam(path))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("textbooks/psychology/multiple_choice.jsonl", 311),
        ("textbooks/us-history/multiple_choice.jsonl", 124),
        ("textbooks/american-government/multiple_choice.jsonl", 101),
        ("textbooks/anatomy-physiology/multiple_choice.jsonl", 708),
        ("fairytales/exam.jsonl", 2917),
        ("medqa/us_test_4_options.jsonl", 1273),
        ("pubmedqa/ori_pqal.json", 1000),
    ],
)
def test_a_real_exam_needs_no_mapping(real_data, name, count):
    items = read_exam(real_data(name))
    assert len(items) == count and all(len(item.options) > 2 for item in items)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("textbooks/psychology/free_response.jsonl", 169),
        ("textbooks/anatomy-physiology/glossary.jsonl", 3190),
        ("fairytales/exam_short_answer.jsonl", 5232),
        ("medquad/qa.jsonl", 5588),
    ],
)
def test_real_open_questions_need_no_mapping(real_data, name, count):
    items = read_exam(real_data(name))
    assert len(items) == count and all(item.answers and not item.options for item in items)


def test_fairytales_keep_all_right_answers_and_the_publishers_test(real_data):
    items = read_exam(real_data("fairytales/exam_short_answer.jsonl"))
    assert max(len(item.answers) for item in items) > 2 and sum(item.split == "test" for item in items) > 500

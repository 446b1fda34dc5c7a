import csv
import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.core.records import ExamItem
from rubric_influence.data.exams import (
    FORMATS,
    SPLITS,
    check_disjoint,
    drop_repeated_questions,
    normalize_question,
    read_exam,
    split_exam,
)

ARTICLE = {"QUESTION": " Does it work? ", "CONTEXTS": ["c"], "LONG_ANSWER": "l", "final_decision": "no"}
MEDQA = {"question": "Which?", "options": {"A": "a", "B": "b", "C": "c", "D": "d"}, "answer": "c", "answer_idx": "C"}
MMLU = ["Which?", "a", "b", "c", "d", "B"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


def make_items(count, split=""):
    return [ExamItem(f"question {n}", ("a", "b"), n % 2, split) for n in range(count)]


def write_rows(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
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
        ({"answer_idx": "E"}, r"the right answer is 'E' \('c'\), expected one of the options \['A', 'B', 'C', 'D'\]"),
        ({"answer_idx": 4}, "the right answer is 4"),
        ({"answer_idx": -1}, "the right answer is -1"),
        ({"answer_idx": True}, "the right answer is True"),
        ({"answer_idx": None, "answer": "e"}, r"the right answer is None \('e'\)"),
        ({"answer_idx": "A"}, "answer is 'c', but option A is 'a'"),
        ({"options": {"1": "a", "2": "b"}, "answer_idx": 0, "answer": None}, r"the right answer is 0 \(None\)"),
        ({"options": {"1": "a", "2": "b"}, "answer_idx": 2, "answer": "a"}, "answer is 'a', but option 2 is 'b'"),
        ({"options": {"a": "a", "A": "b"}, "answer_idx": "A", "answer": None}, "the right answer is 'A'"),
        ({"options": ["a", "b", "c"]}, r"options is \['a', 'b', 'c'\]"),
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
        ([*MMLU[:5], "E"], "answer is 'E', expected A, B, C or D, or an index from 0 to 3"),
        ([*MMLU[:5], "4"], "answer is '4'"),
        ([*MMLU[:5], ""], "answer is ''"),
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
    (tmp_path / "p.json").write_text(json.dumps({"1": ARTICLE, "2": {"QUESTION": "q"}, "3": 3}))
    with pytest.raises(ValueError, match="final_decision is None, expected one of") as error:
        read_exam(tmp_path / "p.json", "pubmedqa")
    assert "p.json, article 3: expected a JSON object, found '3'" in str(error.value)


def test_all_faulty_items_are_told_at_once_and_many_are_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n" * 30)
    (tmp_path / "b.jsonl").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="and 11 more") as error:  # 31 problems, 20 of them shown
        read_exam(tmp_path, "medqa")
    assert str(error.value).count("options is None") == 20


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("none.csv", "mmlu", "no mmlu exam at .*none.csv; give a .csv file or a folder"),
        (".", "mmlu", "no mmlu exam at"),
        ("empty.jsonl", "medqa", "no medqa items in"),
        ("empty.jsonl", "arc", r"exam format is 'arc', expected one of \['pubmedqa', 'medqa', 'mmlu'\]"),
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
    path = tmp_path_factory.mktemp("exam") / "exam"
    path.write_bytes(content)
    try:
        items = read_exam(path, format)
    except ValueError:
        return
    for item in items:
        assert item.question.strip() and item.answer in item.options and len(item.id) == 16


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


def test_normalisation_ignores_case_blanks_and_punctuation_but_not_letters_or_signs():
    assert normalize_question("  Is “IL-2” HIGH?\n") == normalize_question("is il 2 high") == "is il 2 high"
    assert normalize_question("a < b") != normalize_question("a > b")
    assert normalize_question("कि") != normalize_question("का")  # vowel signs are letters here
    assert normalize_question("?!") != normalize_question("...") != ""


def test_splits_have_the_sizes_asked_for_and_lose_nothing():
    items = make_items(20)
    split = split_exam(items, 0.2, 0.1, 0.25, seed=0)
    assert Counter(item.split for item in split) == dict(validation=4, guard=2, dev=5, test=9)
    assert sorted(item.id for item in split) == sorted(item.id for item in items)
    check_disjoint(split)


def test_a_cut_exam_keeps_the_fractions():
    split = split_exam(make_items(20), 0.2, 0.1, 0.2, seed=0, max_items=10)
    assert Counter(item.split for item in split) == dict(validation=2, guard=1, dev=2, test=5)


@given(st.lists(st.integers(0, 60), min_size=20, max_size=60), st.integers(0, 5), st.randoms(use_true_random=False))
def test_splits_depend_on_seed_and_content_but_not_on_order(numbers, seed, rng):
    items = [ExamItem(f"question {n}", ("a", f"b{n % 3}"), n % 2, "test" if n % 4 == 0 else "") for n in numbers]
    shuffled = rng.sample(items, len(items))
    try:
        split = split_exam(items, 0.2, 0.2, 0.2, seed)
    except ValueError:  # so few distinct questions that a split is empty or meets the official test
        with pytest.raises(ValueError):
            split_exam(shuffled, 0.2, 0.2, 0.2, seed)
        return
    assert split == split_exam(shuffled, 0.2, 0.2, 0.2, seed)
    assert {item.split for item in split} == set(SPLITS)
    assert len({item.question for item in split}) == len(split) == len(set(numbers))
    official = {item.question for item in items if item.split == "test"}
    assert all(item.split == "test" for item in split if item.question in official)


def test_another_seed_gives_another_split():
    first, second = (split_exam(make_items(20), 0.2, 0.1, 0.2, seed) for seed in (0, 1))
    assert {i.id for i in first if i.split == "test"} != {i.id for i in second if i.split == "test"}


def test_fractions_that_sum_to_the_rest_leave_exactly_the_official_test():
    official = [ExamItem(f"official {n}", ("a", "b"), 0, "test") for n in range(10)]
    split = split_exam(make_items(10) + official, 0.2, 0.1, 0.2, seed=0)
    assert {item.question for item in split if item.split == "test"} == {item.question for item in official}
    cut = split_exam(make_items(10) + official, 0.2, 0.1, 0.2, seed=0, max_items=10)
    assert all(item.question.startswith("official") for item in cut if item.split == "test")
    with pytest.raises(ValueError, match="need 12 questions, but only 10 of 20 are outside the official test"):
        split_exam(make_items(10) + official, 0.2, 0.2, 0.2, seed=0)


def test_of_a_repeated_question_the_official_test_item_stays():
    items = [ExamItem("Is it?", ("yes", "no"), 0, ""), ExamItem("is  it", ("yes", "no"), 0, "test")]
    assert drop_repeated_questions(items) == drop_repeated_questions(items[::-1]) == [items[1]]


@pytest.mark.parametrize(
    ("count", "fractions", "name"),
    [(20, (0.0, 0.1, 0.2), "validation"), (20, (0.2, 0.02, 0.2), "guard"), (3, (0.4, 0.4, 0.4), "test")],
)
def test_an_empty_split_is_refused_by_name(count, fractions, name):
    with pytest.raises(ValueError, match=f"the {name} split would be empty: {count} questions with validation"):
        split_exam(make_items(count), *fractions, seed=0)


def test_a_question_in_two_splits_is_refused():
    items = [ExamItem("Is it so?", ("a", "b"), 0, "test"), ExamItem("is it so", ("c", "d"), 0, "validation")]
    with pytest.raises(ValueError, match="a validation item is also a test item: 'is it so'"):
        check_disjoint(items)
    check_disjoint([items[0], items[0]])  # twice in one split leaks nothing


def test_pubmedqa_gives_its_thousand_questions(real_data):
    items = read_exam(real_data("pubmedqa/ori_pqal.json"), "pubmedqa")
    assert Counter(item.answer for item in items) == dict(yes=552, no=338, maybe=110)
    real_data("pubmedqa/test_ground_truth.json")
    assert sum(item.split == "test" for item in items) == 500
    split = split_exam(items, 0.2, 0.1, 0.2, seed=0)
    assert {i.id for i in split if i.split == "test"} == {i.id for i in items if i.split == "test"}


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


def test_mmlu_history_repeats_one_question(real_data):
    items = read_exam(real_data("mmlu_history"), "mmlu")
    assert (len(items), len(drop_repeated_questions(items))) == (621, 620)
    random.Random(0).shuffle(items)
    assert len(split_exam(items, 0.2, 0.1, 0.2, seed=0)) == 620

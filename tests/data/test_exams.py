import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.core.corpus_sections import TextCorpus
from rubric_influence.core.records import ExamItem
from rubric_influence.data.corpora import build_text
from rubric_influence.data.exam_formats import read_exam
from rubric_influence.data.exams import SPLITS, check_disjoint, drop_repeated_questions, normalize_question, split_exam


def make_items(count, split=""):
    return [ExamItem(f"question {n}", ("a", "b"), n % 2, split) for n in range(count)]


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


@pytest.mark.parametrize(
    "open_items",
    [
        [ExamItem(f"question {n}", (), 0, "", answers=("right", "all right")) for n in range(20)],
        [ExamItem(f"question {n}", (), 0, "test" if n % 4 == 0 else "", answers=("right",)) for n in range(20)],
    ],
)
def test_open_questions_are_split_like_others(open_items):
    split = split_exam(open_items, 0.2, 0.1, 0.2, seed=0)
    assert sorted(item.id for item in split) == sorted(item.id for item in open_items)
    assert {item.split for item in split} == set(SPLITS)


def test_a_corpus_counts_open_questions_and_those_left_out(tmp_path):
    rows = [{"question": f"question {n}", "answer": f"right {n}" if n else ""} for n in range(21)]
    (tmp_path / "exam.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.txt").write_text("A document.")
    section = dict(kind="text", documents=str(tmp_path / "a.txt"), exam=str(tmp_path / "exam.jsonl"), seed=0)
    with pytest.raises(ValueError, match="exam.jsonl, line 1: no right answer is given"):
        build_text(TextCorpus(**section))
    report = build_text(TextCorpus(**section, skip_faulty_questions=True)).report
    assert (report["questions_read"], report["open_questions"]) == (20, 20)
    assert report["questions_left_out"] == {"faulty questions": 1}


def test_pubmedqas_official_test_is_the_test(real_data):
    items = read_exam(real_data("pubmedqa/ori_pqal.json"), "pubmedqa").items
    real_data("pubmedqa/test_ground_truth.json")
    split = split_exam(items, 0.2, 0.1, 0.2, seed=0)
    assert {i.id for i in split if i.split == "test"} == {i.id for i in items if i.split == "test"}


def test_mmlu_history_repeats_one_question(real_data):
    items = read_exam(real_data("mmlu_history"), "mmlu").items
    assert (len(items), len(drop_repeated_questions(items))) == (621, 620)
    random.Random(0).shuffle(items)
    assert len(split_exam(items, 0.2, 0.1, 0.2, seed=0)) == 620

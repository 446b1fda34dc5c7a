"""A book is split by module: nothing that is asked outside of the test stands in a document."""

import json
import random
import re
import tarfile
from collections import Counter

import pytest
from book_samples import WORDS, write_book, write_exercise, write_lakes, write_module
from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.core.corpus_sections import BookCorpus
from rubric_influence.data.book_corpora import take_turns
from rubric_influence.data.books import read_book
from rubric_influence.data.exams import SPLITS, normalize_question
from rubric_influence.pipeline.plan import measure_corpus
from rubric_influence.pipeline.stages.corpus import build_corpus

KINDS = ["multiple_choice", "free_response", "glossary"]


def build(path, **changes):
    return build_corpus(BookCorpus(**{"kind": "book", "path": str(path), "seed": 0} | changes))


def group(corpus):
    """Split -> modules asked about."""
    return {split: {item.source for item in corpus.exam if item.split == split} for split in SPLITS}


def check_apart(corpus):
    modules = group(corpus)
    assert all(modules.values())
    assert sum(map(len, modules.values())) == len(set.union(*modules.values()))
    assert {document.source for document in corpus.documents} == modules["test"]
    questions = Counter(normalize_question(item.question) for item in corpus.exam)
    assert max(questions.values()) == 1


@pytest.fixture(scope="module")
def lakes(tmp_path_factory):
    return write_lakes(tmp_path_factory.mktemp("lakes"))


@pytest.mark.parametrize("seed", range(5))
def test_splits_share_no_module_and_documents_are_of_the_test_alone(lakes, seed):
    corpus = build(lakes, questions=KINDS, seed=seed)
    check_apart(corpus)
    texts = " ".join(document.text for document in corpus.documents)
    for item in corpus.exam:
        number = re.search(r"\d+", item.question)[0]
        assert bool(re.search(rf"\bLake {number}\b", texts)) == (item.split == "test")


def test_splits_have_their_share_of_questions_and_each_chapter_of_the_splits(lakes):
    corpus = build(lakes, validation=0.3, guard=0.2, dev=0.2)
    assert corpus.report["exam"] == {"validation": 10, "guard": 8, "dev": 8, "test": 10}
    assert corpus.report["chapters"] == {"validation": 3, "guard": 3, "dev": 3, "test": 3}
    assert {item.topic for item in corpus.exam} == {"Chapter 0", "Chapter 1", "Chapter 2"}


def test_documents_are_dealt_evenly_over_the_tests_modules(lakes):
    whole = build(lakes, max_document_words=30)
    assert set(Counter(document.source for document in whole.documents).values()) == {4}
    cut = build(lakes, max_document_words=30, max_documents=len(group(whole)["test"]) + 2)
    assert sorted(Counter(document.source for document in cut.documents).values())[-3:] == [1, 2, 2]
    assert cut.documents == whole.documents[: len(cut.documents)] and cut.exam == whole.exam


def test_an_exam_is_made_smaller_by_whole_modules(lakes):
    corpus = build(lakes, max_exam_items=17)
    assert len(corpus.exam) == 16 and set(Counter(item.source for item in corpus.exam).values()) == {2}
    assert {item.topic for item in corpus.exam} == {"Chapter 0", "Chapter 1", "Chapter 2"}
    check_apart(corpus)


def test_another_seed_splits_otherwise_and_the_same_alike(lakes):
    first, again, other = (build(lakes, seed=seed) for seed in (0, 0, 1))
    assert (first.documents, first.exam) == (again.documents, again.exam)
    assert group(first) != group(other)


def test_the_order_of_files_and_lines_changes_nothing(lakes, tmp_path):
    expected = build(lakes, questions=KINDS)
    files = [file for file in sorted(lakes.rglob("*")) if file.is_file()]
    random.Random(0).shuffle(files)
    with tarfile.open(tmp_path / "book.tar.gz", "w:gz") as archive:
        for file in files:
            archive.add(file, file.relative_to(lakes).as_posix())
    assert build(tmp_path / "book.tar.gz", questions=KINDS) == expected
    book = read_book(lakes)
    rows = {
        "documents": [{"id": m.id, "title": m.title, "text": m.text, "chapter": m.chapter} for m in book.modules],
        "free_response": [vars(question) for question in book.free_response],
    }
    corpora = []
    for seed in (0, 1):
        for name, listed in rows.items():
            random.Random(seed).shuffle(listed)
            (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, listed)))
        corpora.append(build(tmp_path, questions=["free_response"]))
    assert corpora[0] == corpora[1] and len(corpora[0].exam) == 18


def test_open_questions_have_answers_instead_of_options(lakes):
    exam = build(lakes, questions=["free_response", "glossary"]).exam
    (why,) = [item for item in exam if item.question == "Why is lake 7 cold?"]
    assert (why.options, why.answers, why.answer) == ((), ("Because spring 7 feeds it.",), "Because spring 7 feeds it.")
    (term,) = [item for item in exam if item.question == "Which term means this: water number 7?"]
    assert (term.answer, term.source, term.topic) == ("lake 7", "m7", "Chapter 1")


def test_only_the_chapters_that_are_named_are_used(lakes):
    corpus = build(lakes, chapters=["Chapter 1"], guard=0.2, dev=0.2)
    assert {item.topic for item in corpus.exam} == {"Chapter 1"} and len(corpus.exam) == 12
    assert corpus.report["left_out"]["multiple_choice: on modules without text or outside of corpus.chapters"] == 24


def test_what_cannot_be_asked_apart_is_left_out_and_counted(tmp_path):
    modules = {}
    for n in range(8):
        exercises = write_exercise(f"Which of {n}?", ["one", "two", "both A and B"], "C")
        exercises += write_exercise("Which of all?", [f"one {n}", "two"], "A")
        exercises += write_exercise(f"Where is {n}?", ["here", "A and B rivers", "Anna and Bo"], "A")
        body = f"<para>Water {n} {WORDS}</para>"
        modules[f"m{n}"] = (
            "One",
            write_module("Lake", body, exercises, {"lake": f"water {n}", f"hill {n}": f"rock {n}"}),
        )
    modules["m9"] = ("One", write_module("Nothing", "", write_exercise("Nothing?", ["a", "b"], "A")))
    report = build(write_book(tmp_path, modules), questions=KINDS, guard=0.2, dev=0.2).report
    assert report["left_out"] == {
        "multiple_choice: on modules without text or outside of corpus.chapters": 1,
        "multiple_choice: with an option that names others by letter": 16,
        "paragraphs: in sections review": 9,
        "terms: in the glossaries of several modules": 8,
    }
    assert (report["questions_read"], report["repeated_questions_dropped"]) == (16, 7)
    assert report["modules"]["read"] == 9 and report["modules"]["asked_about"] == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"chapters": ["Chapter 9"]},
            r"corpus.chapters names \['Chapter 9'\], which lakes has not; it has \['Chapter 0',",
        ),
        ({"max_documents": 2}, r"corpus.max_documents is 2, but the test asks about 9 modules, each of which needs"),
        (
            {"max_exam_items": 5},
            r"the guard split would be empty: 2 modules with 4 questions for .* raise corpus.max_exam",
        ),
        ({"max_exam_items": 1}, r"the validation split would be empty: 0 modules with 0 questions"),
        ({"guard": 0.0}, r"the guard split would be empty: 18 modules with 36 questions"),
    ],
)
def test_a_corpus_that_cannot_be_made_is_refused(lakes, changes, message):
    with pytest.raises(ValueError, match=message):
        build(lakes, **changes)


def test_a_book_without_keyed_questions_says_what_it_has(tmp_path):
    exercises = '<exercise><problem><para><link url="#exercise/L1"/></para></problem></exercise>'
    exercises += write_exercise("Why?", [], "So.") + write_exercise("Which?", ["a", "b"], "")
    body = f"<para>Water {WORDS}</para>"
    folder = write_book(tmp_path, {"m1": ("One", write_module("Lake", body, exercises))})
    found = r"{'multiple_choice': 0, 'free_response': 1, 'glossary': 0}; change corpus.questions or .*take another book"
    counts = r"{'exercises: in the publisher's bank alone': 1, 'exercises: without an answer': 1}".replace("'", "['\"]")
    with pytest.raises(ValueError, match=f"{found}.* {counts}"):
        build(folder)


def test_a_book_that_is_not_there_yet_is_planned_from_the_profile(lab_config, lakes):
    section = BookCorpus(kind="book", path="none", seed=0, max_documents=24, max_exam_items=40)
    config = lab_config().model_copy(update={"corpus": section})
    size, _, unchecked = measure_corpus(config)
    assert size == {"documents": 24, "validation": 12, "guard": 4, "dev": 4, "test": 20}
    assert unchecked[0] == "corpus: nothing at none yet"
    config = config.model_copy(update={"corpus": section.model_copy(update={"path": str(lakes)})})
    assert measure_corpus(config)[0]["test"] == build(lakes, max_exam_items=40).report["exam"]["test"]


def test_fractions_must_leave_a_test():
    with pytest.raises(ValueError, match="must leave a part of the questions for the test"):
        BookCorpus(kind="book", path="book", seed=0, validation=0.8, guard=0.1, dev=0.1)


@given(st.lists(st.lists(st.integers(), max_size=5), max_size=5))
def test_taking_turns_keeps_everything_and_deals_evenly(groups):
    marked = [[(index, value) for value in group] for index, group in enumerate(groups)]
    taken = list(take_turns(marked))
    assert sorted(taken) == sorted(value for group in marked for value in group)
    for cut in range(len(taken) + 1):
        counts = Counter(index for index, _ in taken[:cut])
        most = max(counts.values(), default=0)
        assert all(counts[index] >= min(len(group), most - 1) for index, group in enumerate(groups))


@pytest.mark.parametrize("questions", [["multiple_choice"], KINDS])
@pytest.mark.parametrize(
    "book", ["anatomy-physiology/cnxml.tar.gz", "american-government/cnxml.tar.gz", "psychology", "us-history"]
)
def test_a_real_book_splits_by_module(real_data, book, questions):
    corpus = build(real_data(f"textbooks/{book}"), questions=questions)
    check_apart(corpus)
    report = corpus.report
    sizes = {split: len([item for item in corpus.exam if item.split == split]) for split in SPLITS}
    assert report["exam"] == sizes and report["words"]["max"] <= 150
    shares = [sizes[split] / len(corpus.exam) for split in SPLITS]
    assert shares == pytest.approx([0.3, 0.1, 0.1, 0.5], abs=0.03)
    if "cnxml" in book:
        topics = {split: {item.topic for item in corpus.exam if item.split == split} for split in SPLITS}
        assert len(topics["test"]) >= 0.95 * len(set.union(*topics.values()))
        assert len(topics["validation"] & topics["test"]) >= 0.8 * len(topics["test"])

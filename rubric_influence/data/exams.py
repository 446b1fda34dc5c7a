"""An exam's questions: repeated ones dropped, and split so that no question is in two splits."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import TypeVar

import regex

from rubric_influence.core.checks import refuse
from rubric_influence.core.records import Document, ExamItem, content_id

Record = TypeVar("Record", Document, ExamItem)
SPLITS = ("validation", "guard", "dev", "test")


def normalize_question(question: str) -> str:
    """A question without case, punctuation and runs of blanks, by which repeated questions are found."""
    text = unicodedata.normalize("NFKC", question).casefold()
    return " ".join(regex.sub(r"\p{P}", " ", text).split()) or text


def shuffle_by_seed(records: Iterable[Record], seed: int) -> list[Record]:
    """The records in an order that depends only on the seed and their contents, not on the order they come in."""
    return sorted(records, key=lambda record: content_id(seed, record.id))


def drop_repeated_questions(items: Iterable[ExamItem]) -> list[ExamItem]:
    """One item of each question (after normalisation), an official test item before others."""
    kept: dict[str, ExamItem] = {}
    for item in sorted(items, key=lambda i: (i.split != "test", i.id, i.answer_index, i.topic, i.source)):
        kept.setdefault(normalize_question(item.question), item)
    return list(kept.values())


def split_exam(
    items: Iterable[ExamItem], validation: float, guard: float, dev: float, seed: int, max_items: int | None = None
) -> list[ExamItem]:
    """The items with their splits set, after dropping repeated questions; at most `max_items` of them.

    validation, guard and dev are fractions of all questions, and the test is the rest. Which item goes where depends
    on the seed and the items' contents only. Items that come with split "test" (a benchmark's official test) stay
    there: the other splits are drawn from the rest, so that fractions summing to the rest's share (0.5 for PubMedQA)
    leave exactly the official test as test. Raises ValueError if a split would be empty or the official test leaves too
    few questions for the others.
    """
    order = shuffle_by_seed(drop_repeated_questions(items), seed)
    official = [item for item in order if item.split == "test"]
    free = [item for item in order if item.split != "test"]
    total = min(len(order), max_items or len(order))
    sizes = {"validation": round(validation * total), "guard": round(guard * total), "dev": round(dev * total)}
    used = sum(sizes.values())
    sizes["test"] = total - used
    if empty := next((split for split, size in sizes.items() if size < 1), ""):
        raise ValueError(
            f"the {empty} split would be empty: {total} questions with validation {validation}, guard {guard}, dev "
            f"{dev}; change these fractions, raise corpus.max_exam_items or give a larger exam"
        )
    if used > len(free):
        raise ValueError(
            f"validation + guard + dev need {used} questions, but only {len(free)} of {len(order)} are outside the "
            "official test; lower corpus.validation, corpus.guard or corpus.dev"
        )
    drawn = iter([*free[:used], *official, *free[used:]])
    items = [replace(item, split=split) for split, size in sizes.items() for item in islice(drawn, size)]
    check_disjoint(items)
    return items


def check_disjoint(items: Iterable[ExamItem]) -> None:
    """Raise ValueError, naming the questions, if a question (after normalisation) is in more than one split."""
    splits: defaultdict[str, set[str]] = defaultdict(set)
    for item in items:
        splits[normalize_question(item.question)].add(item.split)
    problems = [
        f"a {' item is also a '.join(sorted(found, key=SPLITS.index))} item: {question[:100]!r}"
        for question, found in splits.items()
        if len(found) > 1
    ]
    refuse("the exam's splits share questions; keep each question in one split:", problems)

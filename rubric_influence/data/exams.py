"""Expert exams: read from their publishers' files, checked, and split so that no question is in two splits.

Formats: `pubmedqa` (ori_pqal.json), `medqa` (JSON Lines) and `mmlu` (CSV with or without a header), as published.
"""

import csv
import io
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rubric_influence.core.checks import check_object, check_text, refuse
from rubric_influence.core.files import parse_json, read_json_lines, read_text
from rubric_influence.core.records import Document, ExamItem, content_id

Record = TypeVar("Record", Document, ExamItem)
SPLITS = ("validation", "guard", "dev", "test")
DECISIONS = ("yes", "no", "maybe")
PUBMEDQA_TEST = "test_ground_truth.json"  # where PubMedQA lists the ids of its official test


class Format(NamedTuple):
    """How an exam's files are read: `rows` gives rows with their keys, `parse` raises ValueError for a faulty row."""

    suffix: str
    unit: str  # what a row is called in messages
    rows: Callable[[Path], Iterable[tuple[object, Any]]]
    parse: Callable[[Any], ExamItem]


def read_articles(path: Path) -> dict[str, object]:
    """PubMedQA's file: a mapping of article ids to articles. Raises ValueError for anything else."""
    articles = parse_json(read_text(path))
    if not isinstance(articles, dict):
        raise ValueError(f"expected PubMedQA's mapping of article ids to articles, found a {type(articles).__name__}")
    return articles


def read_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Row numbers and cells of a CSV file, without the header where it has one."""
    try:
        for number, cells in enumerate(csv.reader(io.StringIO(read_text(path), newline=""), strict=True), start=1):
            if cells and (number > 1 or cells[:1] + cells[-1:] != ["question", "answer"]):
                yield number, cells
    except csv.Error as error:
        raise ValueError(f"not a CSV file ({error})") from None


def make_item(question: object, options: Iterable[object], answer_index: int) -> ExamItem:
    """An item without a split. Raises ValueError for an empty question, too few options or two equal ones."""
    question = check_text(question, "the question")
    texts = tuple(check_text(option, "an option") for option in options)
    if len(texts) < 2 or len(set(texts)) < len(texts):
        raise ValueError(f"the options are {list(texts)}, expected at least two, all different")
    return ExamItem(question, texts, answer_index, split="")


def parse_pubmedqa(row: object) -> ExamItem:
    article = check_object(row)
    decision = article.get("final_decision")
    if decision not in DECISIONS:
        raise ValueError(f"final_decision is {decision!r}, expected one of {list(DECISIONS)}")
    return make_item(article.get("QUESTION"), DECISIONS, DECISIONS.index(decision))


def parse_medqa(row: object) -> ExamItem:
    item = check_object(row)
    options, answer = item.get("options"), item.get("answer")
    if not isinstance(options, dict):
        raise ValueError(f"options is {options!r}, expected an object such as {{'A': ..., 'B': ...}}")
    names, texts = [name.strip().casefold() for name in options], list(options.values())
    key = item.get("answer_idx", item.get("answer_index"))
    if key is not None and names.count(name := str(key).strip().casefold()) == 1:
        index = names.index(name)
    elif type(key) is int and 0 <= key < len(names) and not any(map(str.isdecimal, names)):  # a position, not a key
        index = key
    elif key is None and answer in texts:
        index = texts.index(answer)
    else:
        raise ValueError(f"the right answer is {key!r} ({answer!r}), expected one of the options {list(options)}")
    if answer is not None and answer != texts[index]:
        raise ValueError(f"answer is {answer!r}, but option {list(options)[index]} is {texts[index]!r}")
    return make_item(item.get("question"), texts, index)


def parse_mmlu(row: list[str]) -> ExamItem:
    if len(row) != 6:
        raise ValueError(f"{len(row)} cells, expected 6 (question, four options, answer): {row!r:.120}")
    known, answer = "ABCD0123", row[5].strip().upper()
    if len(answer) != 1 or answer not in known:
        raise ValueError(f"answer is {row[5]!r}, expected A, B, C or D, or an index from 0 to 3")
    return make_item(row[0], row[1:5], known.index(answer) % 4)


FORMATS = {
    "pubmedqa": Format(".json", "article", lambda path: read_articles(path).items(), parse_pubmedqa),
    "medqa": Format(".jsonl", "line", read_json_lines, parse_medqa),
    "mmlu": Format(".csv", "row", read_cells, parse_mmlu),
}


def read_exam(path: str | Path, format: str) -> list[ExamItem]:
    """Every item of an exam's file, or of all files of that format in a folder and below, in order.

    `split` is "" (`split_exam` fills it), except where PubMedQA's test_ground_truth.json lies beside its file: the
    articles named there have split "test". `topic` is the subject in an MMLU file's name, else "". `source` is the
    file's name and the row. Raises one ValueError for all files that cannot be read and all items that lack a question,
    a right answer or distinct options, with file, row and value.
    """
    path = Path(path)
    if not (kind := FORMATS.get(format)):
        raise ValueError(f"exam format is {format!r}, expected one of {list(FORMATS)}")
    files = sorted(path.rglob(f"*{kind.suffix}")) if path.is_dir() else [path]
    files = [file for file in files if file.is_file() and file.name != PUBMEDQA_TEST]
    if not files:
        raise ValueError(f"no {format} exam at {path}; give a {kind.suffix} file or a folder of them")
    items, problems = [], []
    for file in files:
        beside = file.with_name(PUBMEDQA_TEST)
        topic = re.sub(r"_(dev|val|test)$", "", file.stem) if format == "mmlu" else ""
        try:
            official = read_articles(beside) if format == "pubmedqa" and beside.is_file() else {}
            for key, row in list(kind.rows(file)):  # a file that cannot be read to its end gives no items
                place = f"{kind.unit} {key}"
                split = "test" if key in official else ""
                try:
                    items.append(replace(kind.parse(row), split=split, topic=topic, source=f"{file.name}, {place}"))
                except ValueError as error:
                    problems.append(f"{file}, {place}: {error}")
        except ValueError as error:
            problems.append(f"{file}: {error}")
    refuse(f"the exam at {path} is not in format {format!r}; correct or remove what is listed:", problems)
    if not items:
        raise ValueError(f"no {format} items in {path}")
    return items


def normalize_question(question: str) -> str:
    """A question without case, punctuation and runs of blanks, by which repeated questions are found."""
    text = unicodedata.normalize("NFKC", question).casefold()
    punctuation = {ord(c): " " for c in set(text) if unicodedata.category(c).startswith("P")}
    return " ".join(text.translate(punctuation).split()) or text


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

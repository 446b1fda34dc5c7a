"""Expert exams as their publishers have them: any table of questions, and PubMedQA's, MedQA's and MMLU's own files."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from rubric_influence.core.checks import check_text, refuse
from rubric_influence.core.corpus_sections import ExamColumns
from rubric_influence.core.files import parse_json, read_json_lines, read_text
from rubric_influence.core.records import ExamItem
from rubric_influence.data.exam_columns import (
    Asked,
    LeftOut,
    as_list,
    as_text,
    ask_row,
    detect_columns,
    find_name,
    list_names,
    split_passages,
)
from rubric_influence.data.exam_keys import find_answers
from rubric_influence.data.row_files import SUFFIXES, read_rows
from rubric_influence.data.tables import Rows, list_tables, read_cells

PUBMEDQA_TEST = "test_ground_truth.json"  # where PubMedQA lists the ids of its official test
AS_PUBLISHED = ExamColumns()
FAULTY = "faulty questions"
HIDDEN = "questions of files without any right answer (a hidden test)"


@dataclass(frozen=True)
class Exam:
    items: list[ExamItem]
    left_out: dict[str, int]  # reason -> questions of the files that are no items


class Format(NamedTuple):
    """How an exam's files are read."""

    suffixes: tuple[str, ...]
    rows: Callable[[Path], Rows]
    columns: ExamColumns = AS_PUBLISHED


class Row(NamedTuple):
    """A question that was read: where it is, and what it asks or what is wrong with it."""

    place: str
    source: str
    asked: Asked | ValueError
    said: str | None  # how its right answer is to be read


def read_articles(path: Path) -> dict[str, object]:
    """PubMedQA's file: a mapping of article ids to articles. Raises ValueError for anything else."""
    articles = parse_json(read_text(path))
    if not isinstance(articles, dict):
        raise ValueError(f"expected PubMedQA's mapping of article ids to articles, found a {type(articles).__name__}")
    return articles


def read_pubmedqa(path: Path) -> Rows:
    """PubMedQA's articles, those of its official test marked so."""
    beside = path.with_name(PUBMEDQA_TEST)
    official = read_articles(beside) if beside.is_file() else {}
    for key, article in read_articles(path).items():
        yield (
            f"article {key}",
            {**article, "split": "test"} if key in official and isinstance(article, dict) else article,
        )


def read_mmlu(path: Path) -> Rows:
    """MMLU's rows, without a header or with one from question to answer; the file's name is the topic."""
    topic = re.sub(r"_(dev|val|test)$", "", path.stem)
    for number, cells in read_cells(path):
        row: object = ValueError(f"{len(cells)} cells, expected 6 (question, four options, answer): {cells!r:.120}")
        if len(cells) == 6:
            row = {"topic": topic, **dict(zip(("question", *"ABCD", "answer"), cells, strict=True))}
        if number > 1 or cells[:1] + cells[-1:] != ["question", "answer"]:
            yield f"row {number}", row


FORMATS = {
    "pubmedqa": Format(
        (".json",),
        read_pubmedqa,
        ExamColumns(
            question="QUESTION",
            labels=["yes", "no", "maybe"],
            answer="final_decision",
            answers_are="texts",
            split="split",
        ),
    ),
    "medqa": Format(
        (".jsonl",),
        lambda path: ((f"line {number}", row) for number, row in read_json_lines(path)),
        ExamColumns(
            question="question",
            options="options",
            answer=["answer_idx", "answer_index", "answer"],
            answers_are="numbers from 0",
        ),
    ),
    "mmlu": Format(
        (".csv",),
        read_mmlu,
        ExamColumns(
            question="question", options=[*"ABCD"], answer="answer", answers_are="numbers from 0", topic="topic"
        ),
    ),
    "table": Format(SUFFIXES, lambda path: split_passages(read_rows(path))),
}


def read_exam(path: str | Path, format: str, columns: ExamColumns = AS_PUBLISHED, skip_faulty: bool = False) -> Exam:
    """The items of an exam's file, or of all files of that format in a folder and below, in order.

    `columns` are those of format "table". `split` is "" (`exams.split_exam` fills it), or "test" for the publisher's
    own test: the articles in PubMedQA's test_ground_truth.json beside its file, rows whose column of splits says so,
    and the files test.* or test-* of a folder. `source` is the file's name and the row. A file in which no question has
    a right answer is left out and counted, if there are others.

    Raises one ValueError for all files that cannot be read, one for all questions (unless `skip_faulty`, which counts
    them) that lack a right answer or distinct options, with file, row and value, and one where the files leave open
    which options the right answers name.
    """
    path = Path(path)
    if not (kind := FORMATS.get(format)):
        raise ValueError(f"exam format is {format!r}, expected one of {list(FORMATS)}")
    files = [path] if path.is_file() else list_tables(path, kind.suffixes)
    files = [file for file in files if file.name != PUBMEDQA_TEST]
    if not files:
        raise ValueError(f"no {format} exam at {path}; give a file ({', '.join(kind.suffixes)}) or a folder of them")
    left_out: Counter[str] = Counter()
    rows: list[Row] = []
    hidden: list[Row] = []
    problems = []
    for file in files:
        try:
            read = read_file(file, kind, columns, left_out)
        except ValueError as error:
            problems.append(f"{file}: {error}")
            continue
        asked = [row.asked for row in read if isinstance(row.asked, Asked)]
        (hidden if asked and not any(question.given for question in asked) else rows).extend(read)
    if hidden and not rows:
        raise ValueError(
            f"no question at {path} has a right answer in its file: is it a hidden test? Give the publisher's other "
            "splits, or say in corpus.exam_columns which column holds the right answers"
        )
    items, faulty = make_items(rows)
    heading = f"the exam at {path} is not in format {format!r}; correct or remove what is listed"
    heading += ", say in corpus.exam_columns what its columns hold" * (kind.columns == AS_PUBLISHED)
    heading += ", or have faulty questions left out by corpus.skip_faulty_questions" * bool(faulty)
    refuse(f"{heading}:", problems if skip_faulty else problems + faulty)
    left_out.update({HIDDEN: len(hidden), FAULTY: len(faulty)})
    if not items:
        raise ValueError(f"no {format} items in {path}")
    return Exam(items, {reason: count for reason, count in left_out.items() if count})


def read_file(file: Path, kind: Format, columns: ExamColumns, left_out: Counter[str]) -> list[Row]:
    """What the rows of a file ask; rows that are no questions are counted in `left_out`.

    Raises ValueError for a file that cannot be read, or whose columns are not known.
    """
    found = list(kind.rows(file))
    left_out.update(row for _, row in found if isinstance(row, LeftOut))
    chosen = choose_columns([row for _, row in found if isinstance(row, dict)], kind.columns, columns)
    test = kind.columns == AS_PUBLISHED and re.match(r"test[-.]", file.name) is not None
    rows = []
    for place, row in found:
        if not isinstance(row, LeftOut):
            try:
                asked: Asked | ValueError = ask_row(row, chosen, official=test)
            except ValueError as error:
                asked = error
            rows.append(Row(f"{file}, {place}", f"{file.name}, {place}", asked, chosen.answers_are))
    if not columns.question and kind.columns == AS_PUBLISHED:
        check_open([row.asked for row in rows if isinstance(row.asked, Asked) and not row.asked.texts])
    return rows


def choose_columns(rows: Sequence[dict], published: ExamColumns, said: ExamColumns) -> ExamColumns:
    """The columns of a file: of its format, or as the profile says, the rest as publishers name them.

    Raises ValueError where they are not known, or no row has one that the profile names.
    """
    if published != AS_PUBLISHED or not rows:
        return published
    chosen = said if said.question else next((columns for row in rows if (columns := detect_columns(row))), None)
    if chosen is None:
        raise ValueError(
            f"no columns known to hold questions and right answers among {list(rows[0])[:20]}; say which do in "
            "corpus.exam_columns (an MMLU file without a header has corpus.exam_format mmlu)"
        )
    changes = {name: getattr(said, name) for name in said.model_fields_set}
    chosen = chosen.model_copy(update=changes | ({"options": []} if said.labels else {}))
    missing = [name for name in list_names(chosen) if not any(find_name(row, name) == name for row in rows)]
    if missing:
        raise ValueError(f"no column {missing} of corpus.exam_columns among {list(rows[0])[:20]}")
    return chosen


def check_open(questions: Sequence[Asked]) -> None:
    """Raise ValueError if all right answers look like keys of options: a letter, or a small number."""
    answers = [str(value).strip() for question in questions for _, value in question.given]
    if answers and all(len(answer) == 1 for answer in answers):
        found = sorted(set(answers))[:10]
        raise ValueError(
            f"no column of options is known, but all right answers are keys like {found}; name the options' columns in "
            "corpus.exam_columns, or question and answer there if these are open questions"
        )


def make_items(rows: Sequence[Row]) -> tuple[list[ExamItem], list[str]]:
    """The items of the rows, and what is wrong with the others, in order. Raises ValueError as `find_answers` does."""
    closed = [(row.asked, row.said) for row in rows if isinstance(row.asked, Asked) and row.asked.texts]
    answers = iter(find_answers([asked for asked, _ in closed], [said for _, said in closed]))
    items, problems = [], []
    for row in rows:
        asked = row.asked
        try:
            if isinstance(asked, ValueError):
                raise asked
            index = next(answers) if asked.texts else 0
            if isinstance(index, ValueError):
                raise index
            right = () if asked.texts else list_answers(asked)
            split = "test" if asked.official else ""
            items.append(ExamItem(asked.question, asked.texts, index, split, asked.topic, row.source, right))
        except ValueError as error:
            problems.append(f"{row.place}: {error}")
    if all(item.split for item in items):  # a test alone: there is nothing else to draw the other splits from
        items = [replace(item, split="") for item in items]
    return items, problems


def list_answers(asked: Asked) -> tuple[str, ...]:
    """The right answers to an open question, each once, the longest first."""
    values = [value for _, given in asked.given for value in as_list(given)]
    texts = dict.fromkeys(check_text(as_text(value), "a right answer") for value in values)
    if not texts:
        raise ValueError("no right answer is given")
    return tuple(sorted(texts, key=len, reverse=True))

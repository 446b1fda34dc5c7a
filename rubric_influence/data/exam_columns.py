"""Which columns of a row hold its question, options and right answer: as the profile says, or as publishers name them.

Everything here reads rows as dictionaries; `tables` reads the files, `exam_keys` tells which option an answer names.
"""

import ast
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from rubric_influence.core.checks import check_object, check_text
from rubric_influence.core.corpus_sections import ExamColumns
from rubric_influence.data.tables import Rows

# Names that publishers use, found in any case. "opa.." stands for opa, opb, opc and so on, as many as there are.
QUESTIONS = ("question", "question.stem", "question_stem", "ctx", "sent1")
OPTIONS = ("options", "choices", "question.choices", "endings", "mc1_targets.choices")
OPTION_COLUMNS = ("opa..", "A..", "ending0..", "choice0..", "option1..", "option_1..", "option_a..", "optionA..")
KEYS = ("answer_idx", "answer_index", "answerKey", "cop", "label", "mc1_targets.labels", "correct_answer", "answer")
ANSWERS = ("answers.text", "answers", "answer")  # to open questions
TOPICS = ("subject_name", "category", "subject", "topic")
OFFICIAL = {"train", "val", "valid", "validation", "dev", "test"}  # what a column of splits says


class Shape(NamedTuple):
    """The columns of one publisher, told by their names and those in `needs`."""

    columns: ExamColumns
    needs: tuple[str, ...] = ()


SHAPES = {
    "TAT-QA": Shape(ExamColumns(question="{paragraphs}\n\n{question}", answer="answer"), needs=("answer_from",)),
    "PubMedQA": Shape(
        ExamColumns(question="question", labels=["yes", "no", "maybe"], answer="final_decision", answers_are="texts")
    ),
    "GPQA": Shape(
        ExamColumns(question="question", options=["correct answer", "incorrect answer 1.."], answer="correct answer")
    ),
    "SciQ": Shape(
        ExamColumns(question="question", options=["correct_answer", "distractor1.."], answer="correct_answer")
    ),
    "MMLU": Shape(
        ExamColumns(question="question", options="choices", answer="answer", answers_are="numbers from 0"),
        needs=("subject",),
    ),
    "KMMLU": Shape(
        ExamColumns(
            question="question", options=["A.."], answer="answer", topic="category", answers_are="numbers from 1"
        ),
        needs=("human accuracy",),
    ),
    "HellaSwag": Shape(
        ExamColumns(question="ctx", options="endings", answer="label", answers_are="numbers from 0"),
        needs=("activity_label",),
    ),
    "glossary": Shape(ExamColumns(question="What does “{term}” mean?", answer="meaning")),
}


@dataclass(frozen=True)
class Asked:
    """What a row asks and how it gives the right answer, before it is known which option that is."""

    question: str
    names: tuple[str, ...]  # the options' keys, () where they have none
    texts: tuple[str, ...]  # the options; () for an open question
    given: tuple[tuple[str, object], ...]  # the columns that give the right answer, and what stands there
    topic: str = ""
    official: bool = False  # in the publisher's test


class LeftOut(str):
    """Why a row of a publisher's file is no question for this exam."""


def split_passages(rows: Rows) -> Iterator[tuple[str, object]]:
    """The rows, and in place of a TAT-QA or SQuAD passage its questions, each with the passage as a column."""
    for place, row in rows:
        passages = row.get("paragraphs") if isinstance(row, dict) else None
        passages = passages if isinstance(passages, list) and all(isinstance(p, dict) for p in passages) else []
        if isinstance(row, dict) and passages and isinstance(row.get("questions"), list):
            yield from ((f"{place}, {where}", asked) for where, asked in split_tatqa(row, passages))
        elif passages and any("qas" in passage for passage in passages):
            yield from ((f"{place}, {where}", asked) for where, asked in split_squad(passages))
        else:
            yield place, row


def split_tatqa(row: dict[str, Any], passages: list[dict]) -> Iterator[tuple[str, object]]:
    """TAT-QA's questions that a span of the text answers. They ask about one report, so its text is put before them."""
    text = "\n\n".join(str(passage.get("text")) for passage in passages)
    for number, question in enumerate(row["questions"], start=1):
        asked = {"answer": None, "answer_from": "text", **check_object(question), "paragraphs": text}
        textual = asked.get("answer_type", "span") == "span" and asked["answer_from"] == "text"
        why = LeftOut("questions of TAT-QA that need the table, several spans or a calculation")
        yield f"question {number}", asked if textual else why


def split_squad(passages: list[dict]) -> Iterator[tuple[str, object]]:
    for number, passage in enumerate(passages, start=1):
        for place, question in enumerate(check_list(passage, "qas"), start=1):
            asked = {"context": passage.get("context"), **check_object(question)}
            asked["answers"] = [check_object(answer).get("text") for answer in check_list(asked, "answers")]
            why = LeftOut("questions of SQuAD without an answer")
            yield f"paragraph {number}, question {place}", why if asked.get("is_impossible") else asked


def check_list(row: dict[str, Any], name: str) -> list:
    """What the column holds, [] where it holds nothing. Raises ValueError where that is no list."""
    if not isinstance(found := row.get(name) or [], list):
        raise ValueError(f"{name} is {found!r:.80}, expected a list")
    return found


def pick(row: dict[str, Any], name: str) -> Any:
    """What stands in a column; a dot goes into an object. None where there is no such column."""
    if name in row:
        return row[name]
    outer, dot, inner = name.partition(".")
    return pick(row[outer], inner) if dot and isinstance(row.get(outer), dict) else None


def list_names(columns: ExamColumns) -> list[str]:
    """All columns that are named."""
    question = re.findall(SLOT, columns.question) or [columns.question]
    return [
        *question,
        *as_list(columns.options),
        *as_list(columns.answer),
        *filter(None, (columns.topic, columns.split)),
    ]


def find_name(row: dict[str, Any], name: str) -> str | None:
    """The name of a row's column in its own case; None where it has no such column."""
    if name in row or pick(row, name) is not None:
        return name
    return next((own for own in row if isinstance(own, str) and own.casefold() == name.casefold()), None)


def find_series(row: dict[str, Any], names: Iterable[str]) -> list[str] | None:
    """The row's own names of these columns, "opa.." unrolled; None where one is missing."""
    found: list[str] = []
    for name in names:
        wanted, series = name.removesuffix(".."), name.endswith("..")
        own = find_name(row, wanted)
        if own is None:
            return None
        while own is not None:
            found.append(own)
            wanted = wanted[:-1] + chr(ord(wanted[-1]) + 1)
            own = find_name(row, wanted) if series else None
    return found


def detect_columns(row: dict[str, Any]) -> ExamColumns | None:
    """The columns of a row that is named as publishers do; None where it is not."""
    split = find_name(row, "split") or ""
    split = split if str(row.get(split)).casefold() in OFFICIAL else ""
    topic = next((own for name in TOPICS if (own := find_name(row, name))), "")
    for columns, needs in SHAPES.values():
        if fitted := fit_shape(row, columns, needs):
            return fitted.model_copy(update={"split": split, "topic": fitted.topic or topic})
    questions = (own for name in QUESTIONS if (own := find_name(row, name)))
    question = next((name for name in questions if not isinstance(pick(row, name), dict)), None)
    named: list[str | list[str]] = [own for name in OPTIONS if (own := find_name(row, name))]
    series = (found for name in OPTION_COLUMNS if len(found := find_series(row, [name]) or []) > 1)
    options = named[0] if named else next(series, [])
    answers = [own for name in (KEYS if options else ANSWERS) if (own := find_name(row, name))]
    if question is None or not answers:
        return None
    answer = answers if options else answers[0]
    return ExamColumns(question=question, options=options, answer=answer, topic=topic, split=split)


def fit_shape(row: dict[str, Any], columns: ExamColumns, needs: tuple[str, ...]) -> ExamColumns | None:
    """The columns by the row's own names; None where the row lacks one."""
    slots = re.findall(SLOT, columns.question) or [columns.question]
    options = [columns.options] if isinstance(columns.options, str) else columns.options
    single = [*slots, *as_list(columns.answer), *filter(None, [columns.topic]), *needs]
    names = {name: find_name(row, name) for name in single}
    if None in names.values() or (found := find_series(row, options)) is None:
        return None
    own = {name: str(value) for name, value in names.items()}
    question = own.get(columns.question) or re.sub(SLOT, lambda slot: f"{{{own[slot[1]]}}}", columns.question)
    update = dict(question=question, answer=own[str(columns.answer)], topic=own.get(columns.topic, ""))
    return columns.model_copy(update={**update, "options": found[0] if isinstance(columns.options, str) else found})


SLOT = r"\{([^{}]+)\}"


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def as_text(value: object) -> object:
    """Numbers as text; anything else as it is."""
    return str(value) if type(value) in (int, float) else value


def ask_row(row: object, columns: ExamColumns, official: bool = False) -> Asked:
    """What the row asks; it is in the publisher's test if `official`, or if its column of splits says so.

    Raises ValueError for an empty question, too few options or two equal ones.
    """
    row = check_object(row)
    names, texts = list_options(row, columns)
    given = [(name, value) for name in as_list(columns.answer) if not is_hidden(value := pick(row, name), bool(texts))]
    return Asked(
        question=write_question(row, columns.question),
        names=names,
        texts=texts,
        given=tuple(given),
        topic=str((columns.topic and pick(row, columns.topic)) or "").strip(),
        official=official or bool(columns.split) and str(pick(row, columns.split)).strip().casefold() == "test",
    )


def is_hidden(value: object, closed: bool) -> bool:
    """Whether a publisher keeps the right answer to itself: MedMCQA's test has -1, HellaSwag's an empty text."""
    return value in (None, "", []) or (closed and value in (-1, "-1"))


def write_question(row: dict[str, Any], question: str) -> str:
    """A column's text, or a text with columns in braces filled in, the parts of a list as paragraphs."""
    if not (slots := re.findall(SLOT, question)):
        return check_text(as_text(pick(row, question)), "the question")
    parts = {slot: as_list(pick(row, slot)) for slot in slots}
    filled = {slot: "\n\n".join(check_text(as_text(part), slot) for part in parts[slot]) for slot in slots}
    return re.sub(SLOT, lambda slot: filled[slot[1]], question).strip()


def list_options(row: dict[str, Any], columns: ExamColumns) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The keys (where they have some) and texts of a row's options; none of both for an open question."""
    if isinstance(columns.options, str):
        names, options = read_options(pick(row, columns.options), columns.options)
    elif columns.options:
        names, options = [], [pick(row, name) for name in columns.options]
        while options and options[-1] is None:  # a question with fewer options than there are columns
            options.pop()
    elif columns.labels:
        names, options = [], list(columns.labels)
    else:
        return (), ()
    texts = tuple(check_text(as_text(option), "an option") for option in options)
    if len(texts) < 2 or len(set(texts)) < len(texts):
        raise ValueError(f"the options are {list(texts)}, expected at least two, all different")
    return tuple(str(name).strip() for name in names), texts


def read_options(value: object, column: str) -> tuple[list[object], list[object]]:
    """Keys and texts of options in one value: a list, an object, label and text side by side or in pairs."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        value = read_literal(value)
    if isinstance(value, dict):
        labels, texts = value.get("label"), value.get("text")
        if isinstance(labels, list) and isinstance(texts, list) and len(labels) == len(texts):
            return labels, texts
        value = {name: text for name, text in value.items() if text is not None}  # Parquet's for a missing key
        return list(value), list(value.values())
    if not isinstance(value, list):
        raise ValueError(f"{column} is {value!r:.100}, expected a list or an object such as {{'A': ..., 'B': ...}}")
    for label, text in (("label", "text"), ("key", "value")):
        if all(isinstance(option, dict) and {label, text} <= option.keys() for option in value):
            return [option[label] for option in value], [option[text] for option in value]
    return [], value


def read_literal(text: str) -> object:
    """A list or object in a cell, as JSON or as Python writes it; the text itself where it is neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text

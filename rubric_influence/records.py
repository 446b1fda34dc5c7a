"""The records that flow through the pipeline: Document -> Rubric -> QAPair, and the exam that they are judged by.

Every record has an id that is a hash of its content and carries the ids of what made it, so that any pair can be
traced to its rubric, document, models and seed. Files are JSON Lines, one record a line, in UTF-8.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Record = TypeVar("Record")


def content_id(*parts: object) -> str:
    """A 16-digit hexadecimal id of the parts, the same on every machine."""
    text = json.dumps([str(part) for part in parts], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


@dataclass(frozen=True)
class Document:
    text: str
    title: str = ""
    source: str = ""  # where it was read: a file, or "lab"

    @property
    def id(self) -> str:
        return content_id(self.text)


@dataclass(frozen=True)
class ExamItem:
    """An expert's multiple-choice question, asked closed-book. `split` is validation, guard, dev or test."""

    question: str
    options: tuple[str, ...]
    answer_index: int
    split: str
    topic: str = ""  # "" where the benchmark does not name topics
    source: str = ""

    @property
    def id(self) -> str:
        return content_id(self.question, *self.options)

    @property
    def answer(self) -> str:
        return self.options[self.answer_index]


@dataclass(frozen=True)
class Rubric:
    """A rubric and where it came from. `problem` says why it cannot be used; "" means valid."""

    text: str
    document_id: str
    author: str  # the model, or the name of the fixed rubric
    seed: int
    slot: int  # which of the document's rubrics this is
    problem: str = ""
    raw: str = ""  # the model's whole output, kept where there is a problem

    @property
    def id(self) -> str:
        return content_id(self.text, self.document_id, self.author, self.seed, self.slot)


@dataclass(frozen=True)
class QAPair:
    """A question and answer and where they came from. `problem` says why it cannot be used; "" means valid."""

    question: str
    answer: str
    document_id: str
    rubric_id: str  # "" where the teacher saw no rubric
    teacher: str
    seed: int
    slot: int
    problem: str = ""
    raw: str = ""

    @property
    def id(self) -> str:
        return content_id(self.question, self.answer, self.document_id, self.rubric_id, self.seed, self.slot)


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Write records, each with its id first, replacing the file in one step. Returns how many."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(path.suffix + ".partial")
    count = 0
    with partial.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps({"id": record.id, **dataclasses.asdict(record)}, ensure_ascii=False) + "\n")
            count += 1
    partial.replace(path)
    return count


def read_records(path: str | Path, kind: type[Record]) -> list[Record]:
    """Read records of one kind. Raises ValueError naming the file, line and what is wrong with it."""
    names = {field.name for field in dataclasses.fields(kind)}
    required = {f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}
    records = []
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error})") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError also for integers of thousands of digits
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: not a {kind.__name__} but {str(row)[:60]!r}")
        row.pop("id", None)
        if not required <= row.keys() <= names:
            wrong = sorted((required - row.keys()) | (row.keys() - names))
            raise ValueError(f"{path}, line {number}: not a {kind.__name__}; missing or unknown keys {wrong}")
        if "options" in row:
            if not isinstance(row["options"], list):
                raise ValueError(f"{path}, line {number}: options is {row['options']!r}, expected a list")
            row["options"] = tuple(row["options"])
        records.append(kind(**row))
    return records


def keep_valid(records: Iterable[Record]) -> list[Record]:
    """The rubrics or pairs without a problem."""
    return [record for record in records if not record.problem]

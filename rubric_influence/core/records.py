"""The records that flow through the pipeline: Document -> Rubric -> QAPair, and the exam that they are judged by.

Every record has an id that is a hash of its content and carries the ids of what made it, so that any pair can be
traced to its rubric, document, models and seed. Files are JSON Lines, one record a line, in UTF-8.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

Record = TypeVar("Record", "Document", "ExamItem", "Rubric", "QAPair")
Written = TypeVar("Written", "Rubric", "QAPair")  # by a model


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
    """An expert's question, asked closed-book: with options, or open. `split` is validation, guard, dev or test."""

    question: str
    options: tuple[str, ...]  # () for an open question
    answer_index: int  # of the right option; 0 for an open question
    split: str
    topic: str = ""  # "" where the benchmark does not name topics
    source: str = ""
    answers: tuple[str, ...] = ()  # the right answers to an open question, the fullest first; () where it has options

    @property
    def id(self) -> str:
        return content_id(self.question, *self.options, *self.answers)

    @property
    def answer(self) -> str:
        """The right option, or the first right answer to an open question."""
        return (self.options or self.answers)[self.answer_index]


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


class Answered(Protocol):
    """A question with its answer: a pair, an exam item or a sample."""

    @property
    def question(self) -> str: ...

    @property
    def answer(self) -> str: ...


def keep_valid(records: Iterable[Written]) -> list[Written]:
    """The rubrics or pairs without a problem."""
    return [record for record in records if not record.problem]

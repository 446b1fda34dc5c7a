"""What a run starts from: documents and an exam split into disjoint sets."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rubric_influence.core.checks import MOST_LISTED
from rubric_influence.core.corpus_sections import TextCorpus
from rubric_influence.core.records import Document, ExamItem
from rubric_influence.core.text import count_words
from rubric_influence.data.chunks import chunk_document
from rubric_influence.data.documents import drop_duplicates, read_documents
from rubric_influence.data.exam_formats import read_exam
from rubric_influence.data.exams import SPLITS, drop_repeated_questions, shuffle_by_seed, split_exam
from rubric_influence.data.folders import Skipped
from rubric_influence.data.joining import join_alike

REPEATED = "the text of an earlier document"


@dataclass(frozen=True)
class Corpus:
    documents: list[Document]
    exam: list[ExamItem]
    report: dict[str, Any]  # counts


def build_text(config: TextCorpus) -> Corpus:
    """The corpus of a user's own files. Raises ValueError for files that cannot be used (see the readers)."""
    reading = read_documents(config.documents, config.document_columns, config.skip_faulty_documents)
    read = reading.documents
    unique = drop_duplicates(read)
    once = set(map(id, unique))
    repeated_texts = [Skipped(document.source, REPEATED) for document in read if id(document) not in once]
    chunks = [chunk for document in unique for chunk in chunk_document(document, config.max_document_words)]
    kept = drop_duplicates(chunks)
    documents = shuffle_by_seed(kept, config.seed)[: config.max_documents]
    if config.documents_together > 1:
        documents = join_alike(documents, kept, config.documents_together)
    asked = read_exam(config.exam, config.exam_format, config.exam_columns, config.skip_faulty_questions)
    items = asked.items
    exam = split_exam(items, config.validation, config.guard, config.dev, config.seed, config.max_exam_items)
    dropped = len(read) - len(unique) + len(chunks) - len(kept)
    report: dict[str, Any] = dict(documents_read=len(read), duplicates_dropped=dropped, chunks=len(kept))
    repeated = len(items) - len(drop_repeated_questions(items))
    counts = {"open_questions": sum(not item.options for item in exam), "questions_left_out": asked.left_out}
    report |= {name: count for name, count in counts.items() if count}
    report |= count_skipped([*reading.skipped, *repeated_texts])
    return Corpus(documents, exam, report | describe(documents, exam, len(items), repeated))


def count_skipped(skipped: Iterable[Skipped]) -> dict[str, Any]:
    """What of the files is no document, for a report: left_out (reason -> count) and left_out_files, the first of each.

    Nothing where nothing is left out.
    """
    listed: dict[str, list[str]] = {}
    for item in skipped:
        listed.setdefault(item.reason, []).append(f"{item.source}: {item.fault or item.reason}")
    if not listed:
        return {}
    files = [line for lines in listed.values() for line in lines[:MOST_LISTED]]
    return {"left_out": {reason: len(lines) for reason, lines in listed.items()}, "left_out_files": files}


def tell_left_out(report: Mapping[str, Any]) -> list[str]:
    """A line for each reason in a corpus's report to leave something out, with how often."""
    return [f"left out of the documents: {count} x {reason}" for reason, count in report.get("left_out", {}).items()]


def describe(documents: list[Document], exam: list[ExamItem], questions_read: int, repeated: int = 0) -> dict[str, Any]:
    """Counts of a corpus; `repeated` questions of those read were dropped."""
    words = [count_words(document.text) for document in documents]
    return dict(
        documents=len(documents),
        words=dict(min=min(words), median=statistics.median(words), max=max(words)),
        questions_read=questions_read,
        repeated_questions_dropped=repeated,
        exam={split: sum(item.split == split for item in exam) for split in SPLITS},
    )

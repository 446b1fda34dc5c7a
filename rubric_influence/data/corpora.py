"""What a run starts from: documents and an exam split into disjoint sets."""

import statistics
from dataclasses import dataclass

from rubric_influence.core.config import TextCorpus
from rubric_influence.core.records import Document, ExamItem
from rubric_influence.data import exams
from rubric_influence.data.documents import chunk_document, count_words, drop_duplicates, read_documents
from rubric_influence.data.exams import shuffle_by_seed


@dataclass(frozen=True)
class Corpus:
    documents: list[Document]
    exam: list[ExamItem]
    report: dict  # counts, as plain numbers


def build_text(config: TextCorpus) -> Corpus:
    read = read_documents(config.documents)
    unique = drop_duplicates(read)
    chunks = [chunk for document in unique for chunk in chunk_document(document, config.max_document_words)]
    kept = drop_duplicates(chunks)
    documents = shuffle_by_seed(kept, config.seed)[: config.max_documents]
    items = exams.read_exam(config.exam, config.exam_format)
    exam = exams.split_exam(
        items, config.validation, config.guard, config.dev, config.seed, max_items=config.max_exam_items
    )
    dropped = len(read) - len(unique) + len(chunks) - len(kept)
    report = dict(documents_read=len(read), duplicates_dropped=dropped, chunks=len(kept))
    report |= describe(documents, exam, questions_read=len(items))
    report["repeated_questions_dropped"] = len(items) - len(exams.drop_repeated_questions(items))
    return Corpus(documents, exam, report)


def describe(documents: list[Document], exam: list[ExamItem], questions_read: int) -> dict:
    words = [count_words(document.text) for document in documents]
    return dict(
        documents=len(documents),
        words=dict(min=min(words), median=statistics.median(words), max=max(words)),
        questions_read=questions_read,
        repeated_questions_dropped=0,
        exam={split: sum(item.split == split for item in exam) for split in exams.SPLITS},
    )

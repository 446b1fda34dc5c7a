"""The lab's corpus: documents and exam of a world drawn by a seed."""

import random

from rubric_influence.core.config import LabCorpus
from rubric_influence.core.records import Document, ExamItem
from rubric_influence.data import exams
from rubric_influence.data.corpora import Corpus, describe
from rubric_influence.lab import world


def build_lab(config: LabCorpus) -> Corpus:
    """A world drawn by the seed. No entity is asked about in two splits, and validation and guard ask about none that
    a document describes, so nothing can leak from them."""
    field = world.load_field(config.field)
    rng = random.Random(config.seed)
    count = config.documents + config.validation_entities + config.guard_entities
    entities = iter(world.draw_entities(field, count, rng))
    sizes = {"dev": config.dev_documents, "test": config.documents - config.dev_documents}
    sizes |= {"validation": config.validation_entities, "guard": config.guard_entities}
    groups = {split: [next(entities) for _ in range(size)] for split, size in sizes.items()}
    documents = [
        Document(world.write_document(field, entity, rng), entity.name, "lab")
        for entity in groups["dev"] + groups["test"]
    ]
    exam = [
        ExamItem(q.question, q.options, q.answer_index, split, q.topic, "lab")
        for split in exams.SPLITS
        for q in world.write_exam(field, groups[split], rng)
    ]
    exams.check_disjoint(exam)
    report = dict(documents_read=len(documents), duplicates_dropped=0, chunks=len(documents))
    return Corpus(documents, exam, report | describe(documents, exam, questions_read=len(exam)))

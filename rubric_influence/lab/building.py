"""The lab's corpus: documents and exam of a world drawn by a seed."""

import random

from rubric_influence.core.corpus_sections import LabCorpus
from rubric_influence.core.records import Document
from rubric_influence.data import exams
from rubric_influence.data.corpora import Corpus, describe
from rubric_influence.lab import world


def build_lab(config: LabCorpus) -> Corpus:
    """The corpus of a world that is drawn by the seed.

    No entity is asked about in two splits. Validation and guard ask about none that a document describes, so no
    document can leak an answer to them.
    """
    field = world.load_field(config.field)
    rng = random.Random(config.seed)
    sizes = {"dev": config.dev_documents, "test": config.documents - config.dev_documents}
    sizes |= {"validation": config.validation_entities, "guard": config.guard_entities}
    entities = iter(world.draw_entities(field, sum(sizes.values()), rng))
    groups = {split: [next(entities) for _ in range(size)] for split, size in sizes.items()}
    described = groups["dev"] + groups["test"]
    documents = [Document(world.write_document(field, entity, rng), entity.name, "lab") for entity in described]
    exam = [item for split in exams.SPLITS for item in world.write_exam(field, groups[split], rng, split)]
    exams.check_disjoint(exam)
    report = dict(documents_read=len(documents), duplicates_dropped=0, chunks=len(documents))
    return Corpus(documents, exam, report | describe(documents, exam, questions_read=len(exam)))

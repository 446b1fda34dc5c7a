"""The section `corpus` of a profile: what a run starts from."""

from typing import Literal

from rubric_influence.core.section import Count, Fraction, Section


class LabCorpus(Section):
    """The embedded lab's world (rubric_influence.lab.world)."""

    kind: Literal["lab"]
    field: str  # the YAML file with the field's table
    documents: Count  # entities with a document; the dev and test questions are about them
    dev_documents: Count  # how many of these are in dev; the others are in test
    validation_entities: Count  # entities without a document that the validation questions are about
    guard_entities: Count  # entities without a document that the guard questions are about; nothing optimises for them
    seed: int

    def model_post_init(self, context: object) -> None:
        dev, documents = self.dev_documents, self.documents
        if dev >= documents:
            raise ValueError(f"dev_documents ({dev}) must be below documents ({documents}): the rest is the test")


class TextCorpus(Section):
    """Real documents (rubric_influence.data.documents) and a real exam (rubric_influence.data.exams)."""

    kind: Literal["text"]
    documents: str  # a folder of .txt, .md or .pdf files, a .jsonl file or PubMedQA's ori_pqal.json
    exam: str  # PubMedQA's ori_pqal.json, a MedQA-style .jsonl, an MMLU-style .csv or a folder of these
    exam_format: Literal["pubmedqa", "medqa", "mmlu"]
    max_documents: Count | None = None  # how many documents are kept, after shuffling by seed; null: all
    max_document_words: Count = 1500  # a longer document is cut into chunks of at most this many words
    validation: Fraction = 0.2
    guard: Fraction = 0.1
    dev: Fraction = 0.2  # the rest of the questions is the test
    max_exam_items: Count | None = None
    seed: int

    def model_post_init(self, context: object) -> None:
        if self.validation + self.guard + self.dev >= 1:
            parts = f"validation ({self.validation}) + guard ({self.guard}) + dev ({self.dev})"
            raise ValueError(f"{parts} must leave a part of the questions for the test: a sum below 1")

"""The section `corpus` of a profile: what a run starts from."""

from typing import Annotated, Literal

from pydantic import Field

from rubric_influence.core.section import Count, Fraction, Section


def check_test_share(validation: float, guard: float, dev: float) -> None:
    """Raise ValueError where these parts of the questions leave none for the test."""
    if validation + guard + dev >= 1:
        parts = f"validation ({validation}) + guard ({guard}) + dev ({dev})"
        raise ValueError(f"{parts} must leave a part of the questions for the test: a sum below 1")


class LabCorpus(Section):
    """The embedded lab's world (rubric_influence.lab.world)."""

    kind: Literal["lab"]  # which of the three corpora this is
    field: str  # the YAML file with the field's table
    documents: Count  # entities with a document; the dev and test questions are about them
    dev_documents: Count  # how many of these are in dev; the others are in test
    validation_entities: Count  # entities without a document that the validation questions are about
    guard_entities: Count  # entities without a document that the guard questions are about; nothing optimises for them
    seed: int  # of the world's facts

    @property
    def inputs(self) -> list[str]:
        """The files and folders that a user brings, documents first."""
        return []  # its table comes with the project

    def model_post_init(self, context: object) -> None:
        dev, documents = self.dev_documents, self.documents
        if dev >= documents:
            raise ValueError(f"dev_documents ({dev}) must be below documents ({documents}): the rest is the test")


class ExamColumns(Section):
    """Which columns of an exam's files hold what. A dot goes into an object: `question.stem`.

    Without question and answer, the columns are told by the names that publishers give them, and what is said here
    goes before that.
    """

    question: str = ""  # a column, or a text with columns in braces: "{passage}\n\n{question}"
    options: str | list[str] = []  # a column with a list or an object, or a column an option; none: open questions
    labels: list[str] = []  # the options of every question, where no column holds them
    answer: str | list[str] = ""  # the right option's key, text or number (several columns agree), or right answers
    answers_are: Literal["keys", "texts", "numbers from 0", "numbers from 1"] | None = None  # where it cannot be told
    topic: str = ""  # a column; without one, questions have no topic
    split: str = ""  # where it says "test", the question is of the publisher's test

    def model_post_init(self, context: object) -> None:
        if bool(self.question) != bool(self.answer) or (self.options and not self.question):
            raise ValueError("give the columns of both question and answer, or leave out question, options and answer")
        if self.options and self.labels:
            raise ValueError(f"give the columns of options ({self.options}) or labels ({self.labels}), not both")


class DocumentColumns(Section):
    """Which columns of a file with rows hold a document."""

    text: Annotated[list[str], Field(min_length=1)] = ["text"]  # several are put together as paragraphs
    title: str = "title"  # a row without one goes by its id


class TextCorpus(Section):
    """Real documents (rubric_influence.data.documents) and a real exam (rubric_influence.data.exam_formats)."""

    kind: Literal["text"]  # which of the three corpora this is
    documents: str  # a file or folder of texts, HTML, Word, EPUB, PDF or files with rows (docs/data.md has the formats)
    document_columns: DocumentColumns = DocumentColumns()  # of files with rows
    skip_faulty_documents: bool = False  # leave them out, listed in the report, in place of refusing the corpus
    exam: str  # a .csv, .tsv, .json, .jsonl, .parquet, .arrow or .xlsx file, or a folder of these
    exam_format: Literal["pubmedqa", "medqa", "mmlu", "table"] = "table"  # table: told by its columns (docs/data.md)
    exam_columns: ExamColumns = ExamColumns()  # of exam_format table
    skip_faulty_questions: bool = False  # leave them out, counted in the report, in place of refusing the exam
    max_documents: Count | None = None  # how many documents are kept, after shuffling by seed; null: all
    max_document_words: Count = 1500  # a longer document is cut into chunks of at most this many words
    documents_together: Count = 1  # in one context, each with those most like it; above 1 for pairs that need several
    validation: Fraction = 0.2  # part of the questions that influence is measured on
    guard: Fraction = 0.1  # part that watches RL, unrewarded
    dev: Fraction = 0.2  # the rest of the questions is the test
    max_exam_items: Count | None = None  # how many questions are kept, after shuffling by seed; null: all
    seed: int  # of every shuffle and of the split

    @property
    def inputs(self) -> list[str]:
        """The files and folders that a user brings, documents first."""
        return [self.documents, self.exam]

    def model_post_init(self, context: object) -> None:
        if self.exam_format != "table" and self.exam_columns != ExamColumns():
            raise ValueError(f"exam_columns are for exam_format: table; exam_format is {self.exam_format}")
        check_test_share(self.validation, self.guard, self.dev)


class BookCorpus(Section):
    """A textbook with its authors' questions, split by module (rubric_influence.data.book_corpora)."""

    kind: Literal["book"]  # which of the three corpora this is
    path: str  # an OpenStax book's repository (a folder, .zip or .tar.gz), or a folder with documents.jsonl
    book: str | None = None  # its slug, where the repository holds several
    chapters: Annotated[list[str], Field(min_length=1)] | None = None  # titles of chapters or units; null: all
    questions: Annotated[list[Literal["multiple_choice", "free_response", "glossary"]], Field(min_length=1)] = [
        "multiple_choice"
    ]  # kinds that are taken; glossary asks for a term's definition
    max_documents: Count | None = None  # from the test's modules in turn; null: all
    max_document_words: Count = 150  # of a chunk of a module's paragraphs
    validation: Fraction = 0.3  # of the questions, as near as whole modules come
    guard: Fraction = 0.1  # part that watches RL, unrewarded
    dev: Fraction = 0.1  # the rest is the test, and its modules' text the documents
    max_exam_items: Count | None = None  # whole modules are taken while their questions are no more than this
    seed: int  # of every shuffle and of the split

    @property
    def inputs(self) -> list[str]:
        """The files and folders that a user brings, documents first."""
        return [self.path]

    def model_post_init(self, context: object) -> None:
        check_test_share(self.validation, self.guard, self.dev)

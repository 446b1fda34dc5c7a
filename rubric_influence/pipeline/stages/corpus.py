"""Stage 1: documents and exam, checked before anything is spent on them."""

import pandas as pd

from rubric_influence.core.config import Config
from rubric_influence.core.corpus_sections import BookCorpus, LabCorpus, TextCorpus
from rubric_influence.core.files import write_json, write_records
from rubric_influence.core.paths import DOCUMENTS, EXAM, METRICS
from rubric_influence.data.book_corpora import build_book
from rubric_influence.data.corpora import Corpus, build_text
from rubric_influence.data.documents import check_lengths
from rubric_influence.data.exams import check_disjoint
from rubric_influence.lab.building import build_lab
from rubric_influence.models.embedders import load_embedder
from rubric_influence.models.loading import load_tokenizer
from rubric_influence.pipeline.preflight import check_target


def make_corpus(config: Config) -> Corpus:
    """Read, check and write documents and exam. Raises ValueError for what would stop a later stage."""
    corpus, models, prompts = build_corpus(config.corpus), config.models, config.prompts
    check_disjoint(corpus.exam)
    for spec, template in ((models.rubric_generator, prompts.rubric), (models.teacher, prompts.pair)):
        if not spec.endpoint:  # whose tokenizer is not known here
            check_lengths(corpus.documents, load_tokenizer(spec), template, config.synthesis.max_prompt_tokens)
    check_target(config, corpus.exam, load_tokenizer(models.target))
    if config.quality.embedder:
        load_embedder(config.quality.embedder)
    write_records(DOCUMENTS, corpus.documents)
    write_records(EXAM, corpus.exam)
    write_json(METRICS / "corpus.json", corpus.report)
    return corpus


def tabulate_exam(corpus: Corpus) -> pd.DataFrame:
    """Questions by split and topic."""
    rows = pd.DataFrame([{"split": item.split, "topic": item.topic or "(unnamed)"} for item in corpus.exam])
    return rows.groupby(["topic", "split"]).size().unstack(fill_value=0)


def build_corpus(config: LabCorpus | TextCorpus | BookCorpus) -> Corpus:
    """The documents and the split exam of a corpus section, with counts of what was read, dropped and cut.

    The report holds documents_read, duplicates_dropped (documents and chunks), chunks (before the cut to
    max_documents), documents, words (min, median, max), questions_read, repeated_questions_dropped and exam (items a
    split). Raises ValueError for anything that cannot be used.
    """
    if isinstance(config, BookCorpus):
        return build_book(config)
    return build_lab(config) if isinstance(config, LabCorpus) else build_text(config)

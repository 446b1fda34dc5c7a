"""Stage 1: documents and exam, checked before anything is spent on them."""

import pandas as pd

from rubric_influence.config import Config
from rubric_influence.corpus import Corpus, build_corpus, check_lengths
from rubric_influence.exams import check_disjoint
from rubric_influence.layout import DOCUMENTS, EXAM, METRICS
from rubric_influence.metrics import write_metrics
from rubric_influence.models import load_tokenizer
from rubric_influence.records import write_records


def make_corpus(config: Config) -> Corpus:
    """Read, check and write documents and exam. Raises ValueError for anything that a later stage would trip over."""
    corpus = build_corpus(config.corpus)
    check_disjoint(corpus.exam)
    for spec, template in (
        (config.models.rubric_generator, config.prompts.rubric),
        (config.models.teacher, config.prompts.pair),
    ):
        check_lengths(corpus.documents, load_tokenizer(spec), template, config.synthesis.max_prompt_tokens)
    write_records(DOCUMENTS, corpus.documents)
    write_records(EXAM, corpus.exam)
    write_metrics(METRICS / "corpus.json", corpus.report)
    return corpus


def tabulate_exam(corpus: Corpus) -> pd.DataFrame:
    """Questions by split and topic."""
    rows = pd.DataFrame([{"split": item.split, "topic": item.topic or "(unnamed)"} for item in corpus.exam])
    return rows.groupby(["topic", "split"]).size().unstack(fill_value=0)

"""Stage 1: documents and exam, checked before anything is spent on them."""

import pandas as pd

from rubric_influence.config import Config
from rubric_influence.corpus import Corpus, build_corpus, check_lengths
from rubric_influence.exams import check_disjoint
from rubric_influence.layout import DOCUMENTS, EXAM, METRICS
from rubric_influence.metrics import write_metrics
from rubric_influence.models import load_tokenizer
from rubric_influence.prompts import ask_answer
from rubric_influence.records import write_records


def make_corpus(config: Config) -> Corpus:
    """Read, check and write documents and exam. Raises ValueError for anything that a later stage would trip over."""
    corpus = build_corpus(config.corpus)
    check_disjoint(corpus.exam)
    for spec, template in (
        (config.models.rubric_generator, config.prompts.rubric),
        (config.models.teacher, config.prompts.pair),
    ):
        if spec.engine != "openai":  # an endpoint's tokenizer is its own affair
            check_lengths(corpus.documents, load_tokenizer(spec), template, config.synthesis.max_prompt_tokens)
    check_pairs_fit(config)
    write_records(DOCUMENTS, corpus.documents)
    write_records(EXAM, corpus.exam)
    write_metrics(METRICS / "corpus.json", corpus.report)
    return corpus


def check_pairs_fit(config: Config) -> None:
    """Raise ValueError where the longest pair that the teacher may write would be cut in training or scoring."""
    opening = load_tokenizer(config.models.target).apply_chat_template(
        ask_answer(config.prompts, ""), add_generation_prompt=True, return_dict=True
    )["input_ids"]
    needed = len(opening) + config.synthesis.max_pair_tokens
    for name, limit in (("warmup", config.warmup.max_tokens), ("finetuning", config.finetuning.max_tokens)):
        if limit < needed:
            raise ValueError(
                f"{name}.max_tokens is {limit}, but a pair may take {needed} tokens (synthesis.max_pair_tokens and "
                f"{len(opening)} for the chat template), so answers could be cut off; raise it or lower max_pair_tokens"
            )


def tabulate_exam(corpus: Corpus) -> pd.DataFrame:
    """Questions by split and topic."""
    rows = pd.DataFrame([{"split": item.split, "topic": item.topic or "(unnamed)"} for item in corpus.exam])
    return rows.groupby(["topic", "split"]).size().unstack(fill_value=0)

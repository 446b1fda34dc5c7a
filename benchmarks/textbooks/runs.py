"""The whole method on a book: every arm's pairs, the target fine-tuned on them, and the authors' exam.

The arms and all that leads to them are those of benchmarks.rubrics. Besides the exam, every fine-tuned target reads
passages of another book: what they lose in likelihood there, the training cost in general ability.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from benchmarks.influence.medquad import tidy
from benchmarks.rubrics.arms import ARMS, SeedRun
from benchmarks.rubrics.runs import fine_tune_arm
from rubric_influence.core.config import Config
from rubric_influence.core.journal import Journal
from rubric_influence.core.paths import UNTUNED
from rubric_influence.core.records import Document, ExamItem, Rubric, content_id
from rubric_influence.core.scratch import scratch_folder
from rubric_influence.core.text import split_words
from rubric_influence.data.book_corpora import build_book
from rubric_influence.data.books import read_book
from rubric_influence.data.chunks import chunk_document
from rubric_influence.evaluation.exam import LOSSES, sit
from rubric_influence.evaluation.intervals import summarise
from rubric_influence.models.examples import Example
from rubric_influence.models.loading import load_model, load_tokenizer
from rubric_influence.models.losses import sweep_losses
from rubric_influence.pipeline.jobs import run_jobs
from rubric_influence.training.fine_tuning import list_checkpoints, load_fine_tuned

BASELINE = "initial"
MEASURES = ("accuracy", "accuracy_by_length", "answer_nats", "option_nats")
PASSAGES, PASSAGE_NATS = 40, "passage_nats"  # how many passages; nats a token of them
DESCRIBED = ("pairs", "kinds", "seconds")
NATS = (*LOSSES, PASSAGE_NATS)  # measures of which less is better
REWARDS = ("paper_reward", "similarity_reward")  # what the optimised arm is compared with besides the baseline


def run_book(config: Config, arms: Sequence[str], other: Path) -> dict:
    """The entry of a book and a target: every arm's measures, means over seeds, and paired gains over the baseline.

    Has `arms` and whatever else every seed has finished before. `other`: the book whose passages are read.
    """
    settings = config.model_dump_json(exclude={"seeds", "machine", "gate"})
    folder = scratch_folder("textbooks", "run", settings, str(other))
    jobs = [(config, seed, arms, other, folder / f"seed-{seed}") for seed in config.seeds]
    found = run_jobs(run_seed, jobs, config.machine)
    known = [arm for arm in (UNTUNED, *ARMS) if all(arm in by_arm for by_arm in found)]
    entry: dict = {arm: {name: [by_arm[arm][name] for by_arm in found] for name in DESCRIBED} for arm in known}
    for measure in (*MEASURES, PASSAGE_NATS):
        values, losses = {arm: np.array([by_arm[arm][measure] for by_arm in found]) for arm in known}, measure in NATS
        for base in (arm for arm in (BASELINE, *REWARDS) if arm in known):
            rows = summarise(values, base, config.evaluation.bootstrap, config.seeds[0], measure, losses)
            for arm in known if base == BASELINE else [arm for arm in known if arm == "optimised"]:
                gain = rows[arm][f"gain_over_{base}"]
                entry[arm] |= {measure: rows[arm]["mean"], f"{measure}_gain_over_{base}": gain}
    return {"seeds": len(found), "questions": len(found[0][BASELINE]["accuracy"]), "arms": entry}


def run_seed(config: Config, seed: int, arms: Sequence[str], other: Path, folder: Path) -> dict[str, dict]:
    """arm -> its measures by question, its number of pairs, the kinds of its rubrics, and the seconds of two parts."""
    results = Journal(folder / "results.jsonl")
    if missing := [arm for arm in arms if arm not in results]:
        corpus, passages = build_book(config.corpus), read_passages(other)
        items = [item for item in corpus.exam if item.split == "test"]
        if UNTUNED in missing:
            results.add(UNTUNED, {"pairs": 0, "kinds": {}, "seconds": {}} | examine(config, items, passages, None))
        run = SeedRun(config, corpus.documents, corpus.exam, seed, folder)
        for arm, (rubrics, pairs) in run.make_sets([arm for arm in missing if arm != UNTUNED]).items():
            began = time.monotonic()
            tuned = fine_tune_arm(config, pairs, seed, folder, arm)
            trained = time.monotonic()
            found = examine(config, items, passages, tuned)
            seconds = {"fine_tuning": round(trained - began), "exam": round(time.monotonic() - trained)}
            results.add(arm, {"pairs": len(pairs), "kinds": count_kinds(config, rubrics), "seconds": seconds} | found)
    return results.values


def examine(config: Config, items: Sequence[ExamItem], passages: Sequence[Document], tuned: Path | None) -> dict:
    """The measures of every question and passage; of the target as it is where `tuned` is None."""
    spec, limit = config.models.target, config.evaluation.batch_tokens
    model: nn.Module = load_fine_tuned(spec, list_checkpoints(tuned)[-1]) if tuned else load_model(spec)
    tokenizer = load_tokenizer(spec)
    sitting = asdict(sit(model, tokenizer, items, config.prompts.answer, limit))
    read = sweep_losses(model, encode_passages(tokenizer, passages), limit)
    return {measure: sitting[measure].tolist() for measure in MEASURES} | {PASSAGE_NATS: read.tolist()}


def encode_passages(tokenizer: PreTrainedTokenizerBase, passages: Sequence[Document]) -> list[Example]:
    """Plain text, each token but the first to be predicted."""
    return [Example(ids, ids) for ids in tokenizer([passage.text for passage in passages])["input_ids"]]


def read_passages(path: Path) -> list[Document]:
    """The first passages of PASSAGES modules of a book, in an order drawn by their ids."""
    modules = sorted(
        (module for module in read_book(str(path)).modules if module.paragraphs), key=lambda m: content_id(m.id)
    )
    return [chunk_document(Document(m.text, m.title, m.id), 150)[0] for m in modules[:PASSAGES]]


def count_kinds(config: Config, rubrics: Sequence[Rubric]) -> dict[str, float]:
    """Seed rubric -> the share of rubrics that are nearest to it, by words in common (Jaccard)."""
    if not config.warm_start or not rubrics:
        return {}
    seeds = {text: set(split_words(text)) for text in config.warm_start.rubrics}

    def name_nearest(words: set[str]) -> str:
        return max(seeds, key=lambda text: len(words & seeds[text]) / len(words | seeds[text]))

    counts = Counter(name_nearest(set(split_words(rubric.text))) for rubric in rubrics)
    return {text: tidy(count / len(rubrics)) for text, count in counts.most_common()}

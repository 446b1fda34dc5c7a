"""Stage 7: every arm's training set, synthesised anew at one pair budget, checked, and traced to what made it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from rubric_influence.core.config import Config
from rubric_influence.core.files import read_records, replace_file, write_json, write_records
from rubric_influence.core.fingerprints import fingerprint
from rubric_influence.core.paths import DOCUMENTS, EXAM, FINAL, GENERATORS, METRICS, WARMUP, list_arms, seed_folder
from rubric_influence.core.records import Document, ExamItem, QAPair, Rubric, content_id, keep_valid
from rubric_influence.core.seeds import seed_final_rubrics
from rubric_influence.core.text import count_words
from rubric_influence.data.contamination import ContaminationIndex
from rubric_influence.engines.base import Engine
from rubric_influence.influence.embeddings import embed
from rubric_influence.models.embedders import Embed, load_embedder
from rubric_influence.models.examples import Example
from rubric_influence.models.loading import load_model, load_tokenizer
from rubric_influence.pipeline.jobs import run_seeds
from rubric_influence.pipeline.sets import ArmSet, read_pairs
from rubric_influence.pipeline.writers import open_writers
from rubric_influence.rl.scores import GUARD, VALIDATION
from rubric_influence.rl.scoring import TargetScorer
from rubric_influence.synthesis import writing
from rubric_influence.synthesis.diversity import measure_diversity
from rubric_influence.synthesis.screening import Flags, Screen, count_flags, remove_flagged
from rubric_influence.synthesis.writing import PAIRS, RUBRICS, PairTask, SynthesisContext, identify

SHOWN = {"near_duplicate": "near duplicates", "exam_words": "with words of the exam"}


class Writers(NamedTuple):
    """Who writes the final sets: the teacher, and the rubric generator before and (None: not there) after training."""

    teacher: Engine
    untrained: Engine
    trained: Engine | None


def make_final_sets(config: Config) -> pd.DataFrame:
    """Write rubrics and pairs of every arm and seed to data/final. Returns how many pairs train, by arm and seed.

    metrics/final.json counts what was written and flagged, and says what it cost.
    """
    results = run_seeds(make_final_set, config)
    counts = {arm: {f"seed-{seed}": by_arm[arm] for seed, (by_arm, _) in results.items()} for arm in list_arms(config)}
    ledgers = {f"seed-{seed}": ledger for seed, (_, ledger) in results.items()}
    write_json(METRICS / "final.json", {"arms": counts, "ledger": ledgers})
    kept = {arm: {name: row["quality"]["kept"] for name, row in by_seed.items()} for arm, by_seed in counts.items()}
    return pd.DataFrame.from_dict(kept, orient="index").rename_axis(index="arm", columns="seed")


def tabulate_sets(config: Config) -> pd.DataFrame:
    """What each arm's valid pairs are like, over all seeds: a row an arm.

    pairs; valid: of those asked for, %; distinct questions, near duplicates and pairs with words of the exam, % of the
    valid ones; words of a question and of an answer, on average; MTLD (words) and HD-D (of 1) of all its pairs as one
    text (synthesis.diversity).
    """
    counts = json.loads((METRICS / "final.json").read_text(encoding="utf-8"))["arms"]
    rows = {}
    for arm, by_seed in counts.items():
        asked, valid = (sum(row["pairs"][name] for row in by_seed.values()) for name in ("requested", "valid"))
        flagged = {name: sum(row["quality"]["flagged"].get(name, 0) for row in by_seed.values()) for name in SHOWN}
        pairs = [pair for seed in config.seeds for pair in read_pairs(FINAL / arm, seed)]
        diversity = measure_diversity(f"{pair.question} {pair.answer}" for pair in pairs)
        rows[arm] = {
            "pairs": len(pairs),
            "valid %": 100 * valid / asked,
            "distinct questions %": 100 * sum(row["distinct_questions"] for row in by_seed.values()) / len(pairs),
            **{f"{label} %": 100 * flagged[name] / valid for name, label in SHOWN.items()},
            "words of a question": np.mean([count_words(pair.question) for pair in pairs]),
            "words of an answer": np.mean([count_words(pair.answer) for pair in pairs]),
            "MTLD": diversity.mtld,
            "HD-D": diversity.hdd,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("arm")


def make_final_set(config: Config, seed: int) -> tuple[dict[str, dict], dict[str, dict]]:
    """Write every arm of one seed; returns the counts of each arm, and what all of them cost (Ledger.report)."""
    documents, exam, models = read_records(DOCUMENTS, Document), read_records(EXAM, ExamItem), config.models
    trained = models.rubric_generator.model_copy(update={"path": str(seed_folder(GENERATORS, seed))})
    asked = [(models.teacher, PAIRS), (models.rubric_generator, RUBRICS), (trained, RUBRICS)]
    engines, context = open_writers("final", config, seed, asked)
    scorer = TargetScorer(config, seed_folder(WARMUP, seed), exam, seed)
    sets = synthesise_arms(config, documents, Writers(*engines), scorer, context)
    write_json(context.journal.path.with_name("effort.json"), context.ledger.report_effort())
    index, embedder = ContaminationIndex(exam), open_embedder(config)
    teacher, before, after = (fingerprint(spec) for spec, _ in asked)
    generators = {"initial": before, "influence_filtered": before, "optimised": after}
    counts, texts = {}, {document.id: document.text for document in documents}
    for arm, (rubrics, pairs) in sets.items():
        flags = Screen(config.quality, exam, embedder).check(pairs, texts)
        kept = remove_flagged(pairs, flags, config.quality.remove)
        folder = seed_folder(FINAL / arm, seed)
        write_records(folder / "rubrics.jsonl", rubrics)
        write_records(folder / "pairs.jsonl", kept)
        write_traces(folder / "traces.jsonl", pairs, flags, scorer)
        # What records do not say by themselves; generator "" where no model wrote the rubrics.
        made_by = {"seed": seed, "teacher": teacher, "generator": generators.get(arm, "")}
        made_by |= {"prompts": content_id(config.prompts.model_dump_json()), "settings": identify(config.synthesis)}
        write_json(folder / "made_by.json", made_by)
        counts[arm] = {
            "rubrics": writing.count_records(rubrics),
            "pairs": writing.count_records(pairs),
            "quality": count_flags(kept, flags),
            **describe_questions(kept, index),
        }
    return counts, context.ledger.report()


def open_embedder(config: Config) -> Embed | None:
    """What compares meanings: quality.embedder, or without it the untuned target; None if none are compared."""
    if config.quality.exam_meaning is None and config.quality.grounding_meaning is None:
        return None
    if config.quality.embedder:
        return load_embedder(config.quality.embedder)
    tokenizer, model = load_tokenizer(config.models.target), load_model(config.models.target)

    def embed_texts(texts: Sequence[str]) -> np.ndarray:
        encoded = tokenizer(list(texts), truncation=True, max_length=config.warmup.max_tokens)["input_ids"]
        return embed(model, [Example(ids, ids) for ids in encoded], config.influence.batch_tokens).numpy()

    return embed_texts


def write_traces(path: Path, pairs: Sequence[QAPair], flags: Sequence[Flags], scorer: TargetScorer) -> None:
    """One line a pair: its id, flags, and influence on the validation and guard questions (null if not valid)."""
    found: Iterator[tuple[float, float]] = iter(())
    if valid := keep_valid(pairs):
        scores = scorer(valid)
        found = zip(scores.whole_n.tolist(), scores.guard_n.tolist(), strict=True)
    with replace_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        for pair, flagged in zip(pairs, flags, strict=True):
            whole, guard = (None, None) if pair.problem else next(found)
            influence = {VALIDATION: whole, GUARD: guard}
            file.write(json.dumps({"id": pair.id, "flags": flagged, "influence": influence}) + "\n")


def describe_questions(pairs: Sequence[QAPair], index: ContaminationIndex) -> dict[str, int]:
    """How many distinct questions the valid pairs ask, and how many pairs' questions contain one of the exam's.

    Where the exam is about the documents, as in the lab, an exam question among the pairs is no leak by itself: its
    answer comes from a document. Elsewhere it is a reason to look.
    """
    questions = [pair.question for pair in keep_valid(pairs)]
    asked = sum(bool(index.find(question)) for question in questions)
    return {"distinct_questions": len(set(questions)), "exam_questions": asked}


def synthesise_arms(
    config: Config, documents: Sequence[Document], writers: Writers, scorer: TargetScorer, context: SynthesisContext
) -> dict[str, ArmSet]:
    """The set of every arm, of one seed; without a trained generator the arm `optimised` is left out."""
    prompts, budget = config.prompts, config.budget.final_pairs
    anew = replace(context, seed=seed_final_rubrics(context.seed))

    def pairs_from(rubrics: list[Rubric]) -> list[QAPair]:
        return writing.write_pairs(writers.teacher, writing.follow_rubrics(documents, rubrics), context)

    alone = [PairTask(document, None, slot) for document in documents for slot in range(budget)]
    sets = {"no_rubric": ArmSet([], writing.write_pairs(writers.teacher, alone, context))}
    for arm, texts in (("expert_rubric", prompts.expert_rubrics), ("privileged_rubric", prompts.privileged_rubrics)):
        if texts:
            rubrics = writing.deal_rubrics(texts, arm, documents, budget)
            sets[arm] = ArmSet(rubrics, pairs_from(rubrics))
    twice = writing.write_rubrics(writers.untrained, documents, 2 * budget, anew)
    candidates = pairs_from(twice)
    half = [rubric for rubric in twice if rubric.slot < budget]
    ids = {rubric.id for rubric in half}
    sets["initial"] = ArmSet(half, [pair for pair in candidates if pair.rubric_id in ids])
    valid = keep_valid(candidates)
    best = scorer(valid).whole_n.argsort(descending=True, stable=True)[: len(documents) * budget].tolist()
    sets["influence_filtered"] = ArmSet(twice, [valid[place] for place in sorted(best)])
    if writers.trained:
        optimised = writing.write_rubrics(writers.trained, documents, budget, anew)
        sets["optimised"] = ArmSet(optimised, pairs_from(optimised))
    return {arm: sets[arm] for arm in list_arms(config) if arm in sets}

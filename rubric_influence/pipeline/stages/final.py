"""Stage 7: every arm's training set, synthesised anew at one pair budget, checked, and traced to what made it."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from rubric_influence.core.config import Config
from rubric_influence.core.files import read_records, replace_file, write_json, write_records
from rubric_influence.core.fingerprints import fingerprint
from rubric_influence.core.journal import Journal
from rubric_influence.core.paths import DOCUMENTS, EXAM, FINAL, GENERATORS, METRICS, WARMUP, list_arms, seed_folder
from rubric_influence.core.records import Document, ExamItem, QAPair, Rubric, content_id, keep_valid
from rubric_influence.core.scratch import answers_path, scratch_folder
from rubric_influence.core.seeds import seed_final_rubrics
from rubric_influence.data.contamination import ContaminationIndex
from rubric_influence.engines.base import Engine
from rubric_influence.engines.ledger import Ledger
from rubric_influence.engines.open import open_engine
from rubric_influence.influence.embeddings import embed
from rubric_influence.influence.examples import Example
from rubric_influence.models.loading import load_model, load_tokenizer
from rubric_influence.pipeline.jobs import run_jobs
from rubric_influence.rl.scores import GUARD, VALIDATION
from rubric_influence.rl.scoring import TargetScorer
from rubric_influence.synthesis.screening import Embed, Flags, Screen, count_flags, remove_flagged
from rubric_influence.synthesis.writing import (
    PAIRS,
    RUBRICS,
    PairTask,
    SynthesisContext,
    count_records,
    deal_rubrics,
    follow_rubrics,
    identify,
    write_pairs,
    write_rubrics,
)


def make_final_sets(config: Config) -> pd.DataFrame:
    """Rubrics and pairs of every arm and seed, in data/final. Returns how many are valid and kept, by arm and seed."""
    results = run_jobs(make_final_set, [(config, seed) for seed in config.seeds], config.machine)
    counts = {
        arm: {f"seed-{seed}": result[arm] for seed, result in zip(config.seeds, results, strict=True)}
        for arm in list_arms(config)
    }
    ledgers = {f"seed-{seed}": result["ledger"] for seed, result in zip(config.seeds, results, strict=True)}
    write_json(METRICS / "final.json", {"arms": counts, "ledger": ledgers})
    return tabulate_counts(counts)


def make_final_set(config: Config, seed: int) -> dict[str, dict]:
    """Write every arm of one seed; returns their counts, and under "ledger" what they cost."""
    documents, exam = read_records(DOCUMENTS, Document), read_records(EXAM, ExamItem)
    models, size = config.models, config.synthesis.batch_size
    trained = models.rubric_generator.model_copy(update={"path": str(seed_folder(GENERATORS, seed))})
    specs = (models.teacher, models.rubric_generator, trained)
    identity = ([fingerprint(spec) for spec in specs], config.prompts, identify(config.synthesis), seed)
    journal = Journal(scratch_folder("final", *identity) / "answers.jsonl")
    ledger = Ledger(config.synthesis.budget_usd, config.synthesis.budget_tokens)
    kept = Journal(answers_path("final", seed))
    scorer = TargetScorer(config, seed_folder(WARMUP, seed), exam, seed)
    engines = Writers(
        *(
            open_engine(spec, size, journal=kept, ledger=ledger, what=what)
            for spec, what in zip(specs, (PAIRS, RUBRICS, RUBRICS), strict=True)
        )
    )
    context = SynthesisContext(config.prompts, config.synthesis, seed, journal, ledger)
    sets = synthesise_arms(config, documents, engines, scorer, context)
    write_json(journal.path.with_name("effort.json"), ledger.report_effort())
    index, embedder = ContaminationIndex(exam), open_embedder(config)
    teacher, untrained_mark, trained_mark = (fingerprint(spec) for spec in specs)
    authors = {"initial": untrained_mark, "influence_filtered": untrained_mark, "optimised": trained_mark}
    counts = {}
    for arm, (rubrics, pairs) in sets.items():
        flags = Screen(config.quality, exam, embedder).check(pairs)
        kept_pairs = remove_flagged(pairs, flags, config.quality.remove)
        folder = seed_folder(FINAL / arm, seed)
        write_records(folder / "rubrics.jsonl", rubrics)
        write_records(folder / "pairs.jsonl", kept_pairs)
        write_traces(folder / "traces.jsonl", pairs, flags, scorer)
        # What records do not say by themselves; generator "" where no model wrote the rubrics.
        write_json(
            folder / "made_by.json",
            {"seed": seed, "teacher": teacher, "generator": authors.get(arm, "")}
            | {"prompts": content_id(config.prompts.model_dump_json()), "settings": identify(config.synthesis)},
        )
        counts[arm] = {
            "rubrics": count_records(rubrics),
            "pairs": count_records(pairs),
            "quality": count_flags(kept_pairs, flags),
            **describe_questions(kept_pairs, index),
        }
    return counts | {"ledger": ledger.report()}


def open_embedder(config: Config) -> Embed | None:
    """Texts -> unit embeddings [n, h] by the untuned target; None where no meanings are compared."""
    if config.quality.exam_meaning is None:
        return None
    tokenizer, model = load_tokenizer(config.models.target), load_model(config.models.target)

    def embed_texts(texts: Sequence[str]) -> np.ndarray:
        encoded = tokenizer(list(texts), truncation=True, max_length=config.warmup.max_tokens)["input_ids"]
        return embed(model, [Example(ids, ids) for ids in encoded], config.influence.batch_tokens).numpy()

    return embed_texts


def write_traces(path: Path, pairs: Sequence[QAPair], flags: Sequence[Flags], scorer: TargetScorer) -> None:
    """One line a pair: its id, flags, and influence on the validation and guard questions (null if not valid)."""
    valid = keep_valid(pairs)
    found = iter([])
    if valid:
        scores = scorer(valid)
        found = zip(scores.whole_n.tolist(), scores.guard_n.tolist(), strict=True)
    with replace_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        for pair, flagged in zip(pairs, flags, strict=True):
            whole, guard = (None, None) if pair.problem else next(found)
            influence = {VALIDATION: whole, GUARD: guard}
            file.write(json.dumps({"id": pair.id, "flags": flagged, "influence": influence}) + "\n")


def describe_questions(pairs: Sequence[QAPair], index: ContaminationIndex) -> dict[str, int]:
    """Of the valid pairs: how many different questions they ask, and how many ask, or hold, one of the exam's.

    An exam question among the pairs is no leak by itself where the documents are what the exam is about, as the lab's
    are: its answer then comes from a document. Elsewhere it is a reason to look.
    """
    questions = [pair.question for pair in keep_valid(pairs)]
    return {
        "distinct_questions": len(set(questions)),
        "exam_questions": sum(1 for question in questions if index.find(question)),
    }


class Writers(NamedTuple):
    """Who writes the final sets: the teacher, and the rubric generator before and (None: not there) after training."""

    teacher: Engine
    untrained: Engine
    trained: Engine | None


class ArmSet(NamedTuple):
    """What one arm has: its rubrics and the pairs that they led to."""

    rubrics: list[Rubric]
    pairs: list[QAPair]


def synthesise_arms(
    config: Config, documents: Sequence[Document], writers: Writers, scorer: TargetScorer, context: SynthesisContext
) -> dict[str, ArmSet]:
    """arm -> its set, of one seed; without a trained generator, without the arm optimised."""
    prompts, budget = config.prompts, config.budget.final_pairs
    anew = replace(context, seed=seed_final_rubrics(context.seed))

    def pairs_from(rubrics: list[Rubric]) -> list[QAPair]:
        return write_pairs(writers.teacher, follow_rubrics(documents, rubrics), context)

    alone = [PairTask(document, None, slot) for document in documents for slot in range(budget)]
    sets = {"no_rubric": ArmSet([], write_pairs(writers.teacher, alone, context))}
    for arm, texts in (("expert_rubric", prompts.expert_rubrics), ("privileged_rubric", prompts.privileged_rubrics)):
        if texts:
            rubrics = deal_rubrics(texts, arm, documents, budget)
            sets[arm] = ArmSet(rubrics, pairs_from(rubrics))
    twice = write_rubrics(writers.untrained, documents, 2 * budget, anew)
    candidates = pairs_from(twice)
    half = [rubric for rubric in twice if rubric.slot < budget]
    ids = {rubric.id for rubric in half}
    sets["initial"] = ArmSet(half, [pair for pair in candidates if pair.rubric_id in ids])
    sets["influence_filtered"] = ArmSet(twice, keep_best(candidates, scorer, len(documents) * budget))
    if writers.trained:
        optimised = write_rubrics(writers.trained, documents, budget, anew)
        sets["optimised"] = ArmSet(optimised, pairs_from(optimised))
    return {arm: sets[arm] for arm in list_arms(config) if arm in sets}


def keep_best(pairs: Sequence[QAPair], scorer: TargetScorer, count: int) -> list[QAPair]:
    """The `count` valid pairs with the highest influence on the validation questions, in their order."""
    valid = keep_valid(pairs)
    best = scorer(valid).whole_n.argsort(descending=True, stable=True)[:count].tolist()
    return [valid[index] for index in sorted(best)]


def tabulate_counts(counts: dict[str, dict]) -> pd.DataFrame:
    rows = [
        {"arm": arm, "seed": seed, "requested": c["pairs"]["requested"], "valid": c["quality"]["kept"]}
        for arm, by_seed in counts.items()
        for seed, c in by_seed.items()
    ]
    return pd.DataFrame(rows).pivot(index="arm", columns="seed", values="valid").loc[list(counts)]


def read_final_pairs(arm: str, seed: int, root: Path = FINAL) -> list[QAPair]:
    return keep_valid(read_records(seed_folder(root / arm, seed) / "pairs.jsonl", QAPair))

"""Stage 7: every arm's training set, synthesised anew at one pair budget, checked, and traced to what made it."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rubric_influence.core.config import Config
from rubric_influence.core.files import read_records, write_json, write_records
from rubric_influence.core.fingerprints import fingerprint
from rubric_influence.core.journal import Journal
from rubric_influence.core.paths import DOCUMENTS, EXAM, FINAL, GENERATORS, METRICS, WARMUP, list_arms, seed_folder
from rubric_influence.core.records import Document, ExamItem, QAPair, Rubric, content_id, keep_valid
from rubric_influence.core.scratch import answers_path, scratch_folder
from rubric_influence.data.contamination import ContaminationIndex
from rubric_influence.engines.base import Engine
from rubric_influence.engines.ledger import Ledger
from rubric_influence.engines.open import open_engine
from rubric_influence.influence.embeddings import embed
from rubric_influence.influence.examples import Example
from rubric_influence.models.loading import load_model, load_tokenizer
from rubric_influence.pipeline.jobs import run_jobs
from rubric_influence.rl.scoring import GUARD, VALIDATION, TargetScorer
from rubric_influence.synthesis.screening import Embed, Flags, Screen, count_flags, remove_flagged
from rubric_influence.synthesis.writing import (
    PAIRS,
    RUBRICS,
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
    sets = synthesise_arms(
        config,
        documents,
        *(
            open_engine(spec, size, journal=kept, ledger=ledger, what=what)
            for spec, what in zip(specs, (PAIRS, RUBRICS, RUBRICS), strict=True)
        ),
        scorer,
        seed,
        journal,
        ledger,
    )
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
    scores = scorer([(pair.question, pair.answer) for pair in valid]) if valid else []
    places = {name: scorer.names.index(name) for name in (VALIDATION, GUARD)}
    rows = iter(scores)
    with path.open("w", encoding="utf-8") as file:
        for pair, found in zip(pairs, flags, strict=True):
            row = None if pair.problem else next(rows)
            influence = {name: None if row is None else float(row[place]) for name, place in places.items()}
            file.write(json.dumps({"id": pair.id, "flags": found, "influence": influence}) + "\n")


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


def synthesise_arms(
    config: Config,
    documents: Sequence[Document],
    teacher: Engine,
    untrained: Engine,
    trained: Engine | None,
    scorer: TargetScorer,
    seed: int,
    journal: Journal,
    ledger: Ledger | None = None,
) -> dict[str, tuple[list[Rubric], list[QAPair]]]:
    """arm -> (rubrics, pairs) of one seed; without `trained`, without the arm optimised."""
    prompts, settings = config.prompts, config.synthesis
    budget = config.budget.final_pairs

    def pairs_from(rubrics: list[Rubric]) -> list[QAPair]:
        return write_pairs(teacher, follow_rubrics(documents, rubrics), prompts, settings, seed, journal, ledger)

    def rubrics_from(generator: Engine, per_document: int) -> list[Rubric]:
        # Offset, so that final rubrics are not the initial set's over again.
        return write_rubrics(generator, documents, per_document, prompts, settings, seed + 7919, journal, ledger)

    sets: dict[str, tuple[list[Rubric], list[QAPair]]] = {}
    alone = [(document, None, slot) for document in documents for slot in range(budget)]
    sets["no_rubric"] = [], write_pairs(teacher, alone, prompts, settings, seed, journal, ledger)
    for arm, texts in (("expert_rubric", prompts.expert_rubrics), ("privileged_rubric", prompts.privileged_rubrics)):
        if texts:
            rubrics = deal_rubrics(texts, arm, documents, budget)
            sets[arm] = rubrics, pairs_from(rubrics)
    twice = rubrics_from(untrained, 2 * budget)
    candidates = pairs_from(twice)
    first = {rubric.id for rubric in twice if rubric.slot < budget}
    sets["initial"] = (
        [rubric for rubric in twice if rubric.slot < budget],
        [pair for pair in candidates if pair.rubric_id in first],
    )
    sets["influence_filtered"] = twice, keep_best(candidates, scorer, len(documents) * budget)
    if trained:
        optimised = rubrics_from(trained, budget)
        sets["optimised"] = optimised, pairs_from(optimised)
    return {arm: sets[arm] for arm in list_arms(config) if arm in sets}


def keep_best(pairs: Sequence[QAPair], scorer: TargetScorer, count: int) -> list[QAPair]:
    """The `count` valid pairs with the highest influence on the validation questions, in their order."""
    valid = keep_valid(pairs)
    influence = scorer([(pair.question, pair.answer) for pair in valid])[:, scorer.names.index(VALIDATION)]
    best = influence.argsort(descending=True, stable=True)[:count].tolist()
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

"""Stage 4: the influence of every initial pair on the warmed-up target."""

from pathlib import Path

import pandas as pd

from rubric_influence.core.config import Config
from rubric_influence.core.files import read_records, write_json
from rubric_influence.core.paths import EXAM, INFLUENCE, INITIAL, METRICS, WARMUP, seed_folder
from rubric_influence.core.records import ExamItem, QAPair, Rubric, keep_valid
from rubric_influence.pipeline.jobs import run_jobs
from rubric_influence.pipeline.stages.warmup import choose_pairs
from rubric_influence.rl.scores import GUARD, VALIDATION, stack_scores
from rubric_influence.rl.scoring import TargetScorer


def score_initial_sets(config: Config) -> pd.DataFrame:
    """One row a pair: seed, ids, rubric, texts, whether the warm-up saw it, influence by direction.

    Written to data/influence by seed. metrics/influence.json has means, the share of positive scores and how the
    scores for validation and guard, which share no question, agree (Spearman).
    """
    tables = run_jobs(score_initial_set, [(config, seed) for seed in config.seeds], config.machine)
    summary = {
        f"seed-{seed}": {
            "pairs": len(table),
            "mean": round(float(table[VALIDATION].mean()), 6),
            "positive_share": round(float((table[VALIDATION] > 0).mean()), 4),
            "validation_guard_spearman": round(float(table[VALIDATION].corr(table[GUARD], method="spearman")), 4),
        }
        for seed, table in zip(config.seeds, tables, strict=True)
    }
    write_json(METRICS / "influence.json", summary)
    return pd.concat(tables, ignore_index=True)


def score_initial_set(config: Config, seed: int) -> pd.DataFrame:
    pairs = keep_valid(read_records(seed_folder(INITIAL, seed) / "pairs.jsonl", QAPair))
    rubrics = {r.id: r.text for r in read_records(seed_folder(INITIAL, seed) / "rubrics.jsonl", Rubric)}
    trained_on = {pair.id for pair in choose_pairs(pairs, config.warmup, seed)}
    scorer = TargetScorer(config, seed_folder(WARMUP, seed), read_records(EXAM, ExamItem), seed)
    scores = stack_scores(scorer(pairs))
    origin = {
        "seed": seed,
        "pair_id": [pair.id for pair in pairs],
        "document_id": [pair.document_id for pair in pairs],
        "rubric": [rubrics.get(pair.rubric_id, "") for pair in pairs],
        "question": [pair.question for pair in pairs],
        "answer": [pair.answer for pair in pairs],
        "in_warmup": [pair.id in trained_on for pair in pairs],
    }
    table = pd.DataFrame(origin).join(pd.DataFrame(scores.numpy(), columns=scorer.directions.names))
    path = Path(f"{seed_folder(INFLUENCE, seed)}.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path, index=False)
    return table


def tabulate_extremes(scores: pd.DataFrame, count: int) -> pd.DataFrame:
    """The pairs with the highest and the lowest influence."""
    ranked = scores.sort_values(VALIDATION, ascending=False, kind="stable")
    return pd.concat([ranked.head(count), ranked.tail(count)])[[VALIDATION, "rubric", "question", "answer"]]

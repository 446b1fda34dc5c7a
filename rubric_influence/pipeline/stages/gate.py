"""Stage 5: does influence predict what training gains? Found out before reinforcement learning spends on it.

Random sets of initial pairs are trained on, each from the warmed-up target; what held-out (guard) questions gained is
held against the sets' mean influence. Where the two do not agree, the stage stops the pipeline.
"""

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
from tqdm import tqdm

from rubric_influence.core.checks import RunStopped
from rubric_influence.core.config import Config
from rubric_influence.core.files import read_records, write_json
from rubric_influence.core.fingerprints import fingerprint, hash_weights
from rubric_influence.core.journal import Journal
from rubric_influence.core.paths import EXAM, GATE, INFLUENCE, METRICS, WARMUP, seed_folder
from rubric_influence.core.records import ExamItem
from rubric_influence.core.scratch import scratch_folder
from rubric_influence.influence.checks.agreement import Agreement, draw_sets, measure_agreement, standardise
from rubric_influence.influence.checks.retraining import Recipe, Retraining
from rubric_influence.influence.embeddings import embedding_similarity
from rubric_influence.influence.examples import Example, encode
from rubric_influence.influence.moments import load_moments
from rubric_influence.models.loading import load_tokenizer
from rubric_influence.pipeline.jobs import run_jobs
from rubric_influence.rl.scores import VALIDATION
from rubric_influence.training.fine_tuning import list_checkpoints, load_fine_tuned

PREDICTORS = {"influence": "influence", "similarity": "embedding similarity"}  # columns of the table of sets


def measure_gate(config: Config) -> pd.DataFrame:
    """Train on every seed's sets. One row a set: seed, set, mean influence, mean embedding similarity, gain.

    Written to data/gate/sets.parquet; metrics/gate.json has the agreement and whether it passes (`judge_gate`).
    Raises ValueError if a seed's pool is too small for sets of gate.set_size.
    """
    table = pd.concat(run_jobs(train_sets, [(config, seed) for seed in config.seeds], config.machine))
    table = table.reset_index(drop=True)
    GATE.mkdir(parents=True, exist_ok=True)
    table.to_parquet(GATE / "sets.parquet", index=False)
    write_json(METRICS / "gate.json", judge_gate(config, table))
    return table


def train_sets(config: Config, seed: int) -> pd.DataFrame:
    """One seed's rows. Sets are drawn from the pairs that the warm-up did not train on, if it left any."""
    scored = pd.read_parquet(f"{seed_folder(INFLUENCE, seed)}.parquet")
    pool = scored[~scored["in_warmup"]]
    pool = (scored if pool.empty else pool).reset_index(drop=True)
    try:
        sets = draw_sets(len(pool), config.gate.sets, config.gate.set_size, seed)
    except ValueError as error:
        raise ValueError(
            f"seed {seed}: {error} (gate.set_size; the pool grows with budget.initial_pairs, and warmup.fraction "
            "leaves a part of it out of the warm-up)"
        ) from None
    checkpoint = list_checkpoints(seed_folder(WARMUP, seed))[-1]
    model = load_fine_tuned(config.models.target, checkpoint)
    exam = read_records(EXAM, ExamItem)
    asked = {
        split: encode_all(config, [(item.question, item.answer) for item in exam if item.split == split])
        for split in ("validation", "guard")
    }
    pairs = list(zip(pool["question"], pool["answer"], strict=True))
    examples = encode_all(config, pairs)
    settings = config.gate
    recipe = Recipe(settings.epochs, settings.batch_size, settings.learning_rate)
    batch_tokens = config.influence.batch_tokens
    similarity = embedding_similarity(model, examples, asked["validation"], batch_tokens).numpy()
    weights = (fingerprint(config.models.target), hash_weights(checkpoint))
    asked_of = [(item.question, item.answer) for item in exam if item.split == "guard"]
    identity = (*weights, pairs, asked_of, config.prompts.answer, config.warmup.max_tokens, repr(recipe), sets.tolist())
    journal = Journal(scratch_folder("gate", *identity) / "gains.jsonl")
    retraining = Retraining(
        model, load_moments(checkpoint / "moments.safetensors"), asked["guard"], recipe, batch_tokens=batch_tokens
    )
    for number, rows in enumerate(tqdm(sets, desc=f"gate, seed {seed}", unit="set", leave=False)):
        if str(number) not in journal:
            journal.add(str(number), retraining.gain([examples[row] for row in rows], seed=number))
    return pd.DataFrame(
        {
            "seed": seed,
            "set": range(len(sets)),
            "influence": pool[VALIDATION].to_numpy()[sets].mean(axis=1),
            "similarity": similarity[sets].mean(axis=1),
            "gain": [journal[str(number)] for number in range(len(sets))],
        }
    )


def encode_all(config: Config, pairs: Sequence[tuple[str, str]]) -> list[Example]:
    tokenizer = load_tokenizer(config.models.target)
    return [encode(tokenizer, q, a, config.prompts.answer, config.warmup.max_tokens) for q, a in pairs]


def agree_over_seeds(table: pd.DataFrame, column: str) -> Agreement:
    """The agreement of a column with the gain over all seeds' sets, both standardised within each seed.

    Seeds differ in their targets, whose gains are on no common scale.
    """
    parts = [rows for _, rows in table.groupby("seed")]
    predicted, gained = (np.concatenate([standardise(rows[name]) for rows in parts]) for name in (column, "gain"))
    return measure_agreement(predicted, gained, seed=0)


def judge_gate(config: Config, table: pd.DataFrame) -> dict:
    """The figures of metrics/gate.json: `passed` if the rank correlation's interval lies above gate.threshold."""
    influence = agree_over_seeds(table, "influence")
    summary: dict = {
        "passed": influence.spearman_ci95[0] > config.gate.threshold,
        "threshold": config.gate.threshold,
        "sets": influence.sets,
    }
    for name, found in (("influence", influence), ("similarity", agree_over_seeds(table, "similarity"))):
        summary[name] = {
            "r2": round(found.r2, 4),
            "r2_ci95": [round(bound, 4) for bound in found.r2_ci95],
            "spearman": round(found.spearman, 4),
            "spearman_ci95": [round(bound, 4) for bound in found.spearman_ci95],
        }
    summary["mean_gain"] = {
        f"seed-{seed}": round(float(rows["gain"].mean()), 5) for seed, rows in table.groupby("seed")
    }
    return summary


def tabulate_agreement(summary: dict) -> pd.DataFrame:
    """R² and rank correlation with their intervals, a row a predictor."""
    return pd.DataFrame.from_dict({label: summary[name] for name, label in PREDICTORS.items()}, orient="index")


def pass_gate(config: Config, summary: dict) -> str:
    """What was decided, in a sentence. Writes data/gate/decision.json, which the next stage waits for.

    Raises RunStopped where the gate is not passed and gate.override is off.
    """
    found, (low, high) = summary["influence"]["spearman"], summary["influence"]["spearman_ci95"]
    figures = (
        f"over {summary['sets']} sets, mean influence and gain have rank correlation {found:.2f} "
        f"(95 % interval {low:.2f} to {high:.2f})"
    )
    if not summary["passed"] and not config.gate.override:
        raise RunStopped(
            f"the reward does not predict gain: {figures}, and gate.threshold asks that the interval lie above "
            f"{summary['threshold']:g}. Reinforcement learning would be paid for noise. metrics/gate.json and "
            "reports/05_gate.ipynb show it; a longer warm-up, more validation questions, more sets or a smaller "
            "gate.learning_rate may help. To go on all the same, set gate.override: true"
        )
    (GATE / "decision.json").write_text(json.dumps({"go_on": True}) + "\n", encoding="utf-8")
    if summary["passed"]:
        return f"Passed: {figures}, above the threshold of {summary['threshold']:g}."
    return f"**Overridden**: {figures}, not above the threshold of {summary['threshold']:g}; gate.override is on."

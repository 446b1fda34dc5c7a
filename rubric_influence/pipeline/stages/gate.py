"""Stage 5: does influence predict what training gains? Measured before reinforcement learning spends on it.

Random sets of initial pairs are trained on, each from the warmed-up target. The gain of a set is how much lower the
loss of held-out (guard) questions is then. Where gains do not follow the sets' mean influence, the pipeline stops.
Baselines that cost no gradient stand beside influence; the verdict is influence's alone.
"""

import json

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
from rubric_influence.influence.lexical import lexical_similarity
from rubric_influence.influence.moments import load_moments
from rubric_influence.models.examples import encode
from rubric_influence.models.loading import load_tokenizer
from rubric_influence.models.losses import sweep_losses
from rubric_influence.pipeline.jobs import run_seeds
from rubric_influence.rl.scores import GUARD, VALIDATION
from rubric_influence.training.fine_tuning import list_checkpoints, load_fine_tuned

PREDICTORS = {  # columns of the table of sets
    "influence": "influence",
    "similarity": "embedding similarity",
    "lexical": "BM25",
    "loss": "the pair's own loss",
}


def measure_gate(config: Config) -> pd.DataFrame:
    """Train on every seed's sets. One row a set: seed, set, the mean of each of PREDICTORS, gain.

    Written to data/gate/sets.parquet; metrics/gate.json has the agreement and whether it passes (`judge_gate`).
    Raises ValueError if a seed's pool is too small for sets of gate.set_size.
    """
    table = pd.concat(run_seeds(train_sets, config).values(), ignore_index=True)
    GATE.mkdir(parents=True, exist_ok=True)
    table.to_parquet(GATE / "sets.parquet", index=False)
    write_json(METRICS / "gate.json", judge_gate(config, table))
    return table


def train_sets(config: Config, seed: int) -> pd.DataFrame:
    """One seed's rows. Sets are drawn from the pairs that the warm-up did not train on, if it left any."""
    settings, target = config.gate, config.models.target
    scored = pd.read_parquet(f"{seed_folder(INFLUENCE, seed)}.parquet")
    unseen = scored[~scored["in_warmup"]]
    pool = (scored if unseen.empty else unseen).reset_index(drop=True)
    try:
        sets = draw_sets(len(pool), settings.sets, settings.set_size, seed)
    except ValueError as error:
        raise ValueError(
            f"seed {seed}: {error} (gate.set_size; the pool grows with budget.initial_pairs, and warmup.fraction "
            "leaves a part of it out of the warm-up)"
        ) from None
    checkpoint, tokenizer = list_checkpoints(seed_folder(WARMUP, seed))[-1], load_tokenizer(target)
    template, limit, batch_tokens = config.prompts.answer, config.warmup.max_tokens, config.influence.batch_tokens
    items, pairs = read_records(EXAM, ExamItem), list(zip(pool["question"], pool["answer"], strict=True))
    validation, guard = ([(i.question, i.answer) for i in items if i.split == split] for split in (VALIDATION, GUARD))
    examples, asked, held_out = (
        [encode(tokenizer, question, answer, template, limit) for question, answer in texts]
        for texts in (pairs, validation, guard)
    )
    model = load_fine_tuned(target, checkpoint)
    found = {
        "influence": pool[VALIDATION].to_numpy(),
        "similarity": embedding_similarity(model, examples, asked, batch_tokens).numpy(),
        "lexical": lexical_similarity([" ".join(pair) for pair in pairs], [" ".join(pair) for pair in validation]),
        "loss": sweep_losses(model, examples, batch_tokens).numpy(),
    }
    recipe = Recipe(settings.epochs, settings.batch_size, settings.learning_rate)
    weights = (fingerprint(target), hash_weights(checkpoint))
    identity = (*weights, pairs, guard, template, limit, repr(recipe), sets.tolist())
    journal = Journal(scratch_folder("gate", *identity) / "gains.jsonl")
    moments = load_moments(checkpoint / "moments.safetensors")
    retraining = Retraining(model, moments, held_out, recipe, batch_tokens=batch_tokens)
    for number, rows in enumerate(tqdm(sets, desc=f"gate, seed {seed}", unit="set", leave=False)):
        if str(number) not in journal:
            journal.add(str(number), retraining.gain([examples[row] for row in rows], seed=number))
    gains = [journal[str(number)] for number in range(len(sets))]
    means = {name: values[sets].mean(axis=1) for name, values in found.items()}
    return pd.DataFrame({"seed": seed, "set": range(len(sets)), **means, "gain": gains})


def standardise_sets(table: pd.DataFrame) -> pd.DataFrame:
    """The table of sets with predictors and gain in deviations within each seed: targets of seeds share no scale."""
    columns = [*PREDICTORS, "gain"]
    deviations = table.groupby("seed")[columns].transform(lambda values: standardise(values.to_numpy()))
    return table.assign(**{name: deviations[name] for name in columns})


def agree_over_seeds(table: pd.DataFrame, column: str) -> Agreement:
    """The agreement of a column with the gain over all seeds' sets, in deviations within each seed.

    A baseline that is the same for all sets, as BM25 is where pairs and questions share no word, explains nothing.
    """
    sets = standardise_sets(table)
    if column != "influence" and not sets[column].any():
        return Agreement(0.0, (0.0, 0.0), 0.0, (0.0, 0.0), len(sets))
    return measure_agreement(sets[column].tolist(), sets["gain"].tolist(), seed=0)


def judge_gate(config: Config, table: pd.DataFrame) -> dict:
    """The figures of metrics/gate.json: `passed` if the rank correlation's interval lies above gate.threshold."""
    found = {name: agree_over_seeds(table, name) for name in PREDICTORS}
    figures = {
        name: {
            "r2": round(agreement.r2, 4),
            "r2_ci95": [round(bound, 4) for bound in agreement.r2_ci95],
            "spearman": round(agreement.spearman, 4),
            "spearman_ci95": [round(bound, 4) for bound in agreement.spearman_ci95],
        }
        for name, agreement in found.items()
    }
    gains = {f"seed-{seed}": round(float(rows["gain"].mean()), 5) for seed, rows in table.groupby("seed")}
    passed = found["influence"].spearman_ci95[0] > config.gate.threshold
    judged = {"passed": passed, "threshold": config.gate.threshold, "sets": found["influence"].sets}
    return {**judged, **figures, "mean_gain": gains}


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

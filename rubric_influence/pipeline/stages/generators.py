"""Stage 6: GRPO on the rubric generator, with influence as its reward."""

import json
from dataclasses import asdict

import pandas as pd

from rubric_influence.core.config import Config
from rubric_influence.core.files import read_records, read_text, write_json
from rubric_influence.core.fingerprints import fingerprint, hash_weights
from rubric_influence.core.journal import Journal
from rubric_influence.core.paths import DOCUMENTS, EXAM, GENERATORS, METRICS, PLOTS, WARMUP, seed_folder
from rubric_influence.core.records import Document, ExamItem
from rubric_influence.core.scratch import Workplace, answers_path, scratch_folder
from rubric_influence.engines.base import Completion, name_model
from rubric_influence.engines.ledger import Ledger
from rubric_influence.engines.open import open_engine
from rubric_influence.models.processes import open_state
from rubric_influence.pipeline.jobs import run_seeds
from rubric_influence.rl.grpo import train_rubric_generator
from rubric_influence.rl.guards import Ending, read_ending
from rubric_influence.rl.scoring import TargetScorer
from rubric_influence.rl.trajectories import read_trajectories
from rubric_influence.training.fine_tuning import list_checkpoints

REWARDS = "pairs for rewards"
LOGGED = (
    *("reward", "influence", "guard_influence", "valid", "distinct_rubrics", "duplicate_pairs", "covered_directions"),
    *("between_documents", "within_rubrics", "length_correlation", "entropy", "kl"),
)


def optimise_generators(config: Config) -> pd.DataFrame:
    """An optimised rubric generator for every seed, in data/generators. Returns the training log, a row a step.

    metrics/generators.json holds the log's `phases`, how each seed ended (`endings`) and its `ledger`.
    """
    logs = run_seeds(optimise_generator, config)
    rows = [
        {"seed": seed, "step": entry["step"]} | {key: entry[key] for key in LOGGED if key in entry}
        for seed, log in logs.items()
        for entry in log
        if "reward" in entry
    ]
    table = pd.DataFrame(rows)
    PLOTS.mkdir(exist_ok=True)
    table.groupby("step").mean().drop(columns="seed").round(5).to_csv(PLOTS / "generators.csv")
    phases = {f"seed-{seed}": compare_phases(log).round(5).to_dict("index") for seed, log in table.groupby("seed")}
    endings = {f"seed-{seed}": asdict(read_ending(log, config.rl.steps)) for seed, log in logs.items()}
    ledgers = {f"seed-{seed}": account_for(config, seed) for seed in config.seeds}
    write_json(METRICS / "generators.json", {"phases": phases, "endings": endings, "ledger": ledgers})
    return table


def optimise_generator(config: Config, seed: int, keep: bool = False) -> list[dict]:
    """The training log of one seed; with `keep`, finished work stays in scratch for the stage to come."""
    settings, state = config.synthesis, open_state()
    if state.num_processes > 1 and config.models.teacher.engine == "vllm":
        raise ValueError(
            f"models.teacher.engine is vllm, which {state.num_processes} processes would each open on the same GPU; "
            "serve the teacher with `vllm serve`, and set engine: openai with its address"
        )
    usd, tokens, processes = settings.budget_usd, settings.budget_tokens, state.num_processes
    ledger = Ledger(usd and usd / processes, tokens and tokens // processes)  # each has its part of the budget
    kept = Journal(answers_path("generators", seed, state.process_index))  # an endpoint is not paid twice for an answer
    teacher = open_engine(config.models.teacher, settings.batch_size, journal=kept, ledger=ledger, what=REWARDS)
    warmup = seed_folder(WARMUP, seed)
    weights = [hash_weights(checkpoint) for checkpoint in list_checkpoints(warmup)]
    # A raised budget, or other workers, go on from where training stopped.
    shaping = config.model_dump(exclude={"machine": {"workers"}, "synthesis": {"budget_usd", "budget_tokens"}})
    identity = (shaping, fingerprint(config.models.teacher), fingerprint(config.models.rubric_generator), weights, seed)
    scorer = TargetScorer(config, warmup, read_records(EXAM, ExamItem), seed)
    place = Workplace(seed_folder(GENERATORS, seed), scratch_folder("generators", *identity), keep)
    return train_rubric_generator(config, read_records(DOCUMENTS, Document), teacher, scorer, seed, place)


def read_endings() -> dict[str, Ending]:
    """By "seed-N", how its training ended, from metrics/generators.json."""
    found = json.loads(read_text(METRICS / "generators.json"))
    return {seed: Ending(**ending) for seed, ending in found["endings"].items()}


def account_for(config: Config, seed: int) -> dict[str, dict]:
    """What the teacher was asked for in a seed's RL, and what that cost (Ledger.report), counted from the trajectories.

    The engine's ledger holds less: only what this process has asked for since the checkpoint that it went on from.
    """
    spec, ledger, prices = config.models.teacher, Ledger(), (0.0, 0.0)
    if spec.endpoint:
        prices = (spec.endpoint.usd_per_million_prompt_tokens, spec.endpoint.usd_per_million_completion_tokens)
    for trajectory in read_trajectories(seed_folder(GENERATORS, seed) / "trajectories.jsonl"):
        used = [Completion("", taught.prompt_tokens, taught.completion_tokens, True) for taught in trajectory.pairs]
        ledger.count(REWARDS, name_model(spec), used, prices)
    return ledger.report()


def compare_phases(table: pd.DataFrame) -> pd.DataFrame:
    """Means of the first and of the last fifth of the steps, over seeds."""
    ordered = table.sort_values("step", kind="stable")
    fifth = max(1, table["step"].nunique() // 5) * table["seed"].nunique()
    phases = {"first fifth": ordered.head(fifth), "last fifth": ordered.tail(fifth)}
    shown = [key for key in LOGGED if key in table]
    return pd.DataFrame({name: rows[shown].mean() for name, rows in phases.items()}).T

"""Stage 3: warm up the target on initial pairs, and keep the optimizer's state that influence is measured with."""

import random
from collections.abc import Sequence

import pandas as pd

from rubric_influence.core.config import Config, Warmup
from rubric_influence.core.files import read_records
from rubric_influence.core.fingerprints import fingerprint
from rubric_influence.core.paths import INITIAL, WARMUP, seed_folder
from rubric_influence.core.records import QAPair, keep_valid
from rubric_influence.core.scratch import Workplace, scratch_folder
from rubric_influence.pipeline.jobs import run_jobs
from rubric_influence.training.fine_tuning import TuningRun, fine_tune


def warm_up_targets(config: Config) -> pd.DataFrame:
    """A warmed-up adapter with its moments for every seed, in data/warmup. Returns the loss by seed and epoch."""
    logs = run_jobs(warm_up_target, [(config, seed) for seed in config.seeds], config.machine)
    return pd.DataFrame(
        [
            {"seed": seed, "epoch": entry["epoch"], "loss": entry["loss"]}
            for seed, log in zip(config.seeds, logs, strict=True)
            for entry in log
            if "loss" in entry
        ]
    )


def choose_pairs(pairs: Sequence[QAPair], settings: Warmup, seed: int) -> list[QAPair]:
    """The random part of the valid initial pairs that the warm-up trains on; the gate measures on the others."""
    return random.Random(seed).sample(pairs, max(1, round(settings.fraction * len(pairs))))


def warm_up_target(config: Config, seed: int, keep: bool = False) -> list[dict]:
    """The training log of one seed; with `keep`, finished work stays in scratch for the stage to come."""
    settings, spec = config.warmup, config.models.target
    chosen = choose_pairs(keep_valid(read_records(seed_folder(INITIAL, seed) / "pairs.jsonl", QAPair)), settings, seed)
    identity = (fingerprint(spec), chosen, config.prompts, config.lora, settings, seed)
    run = TuningRun(
        spec, config.prompts, config.lora, settings, seed, settings.checkpoints, name=f"warm-up, seed {seed}"
    )
    return fine_tune(run, chosen, Workplace(seed_folder(WARMUP, seed), scratch_folder("warmup", *identity), keep))

"""Stage 3: warm up the target on initial pairs, and keep the optimizer's state that influence is measured with."""

import random
from collections.abc import Sequence

import pandas as pd

from rubric_influence.core.config import Config, Warmup
from rubric_influence.core.fingerprints import fingerprint
from rubric_influence.core.paths import INITIAL, WARMUP, seed_folder
from rubric_influence.core.records import QAPair
from rubric_influence.core.scratch import Workplace, scratch_folder
from rubric_influence.pipeline.jobs import run_seeds
from rubric_influence.pipeline.sets import read_pairs
from rubric_influence.training.fine_tuning import TuningRun, fine_tune


def warm_up_targets(config: Config) -> pd.DataFrame:
    """A warmed-up adapter with its moments for every seed, in data/warmup. Returns the loss by seed and epoch."""
    logs = run_seeds(warm_up_target, config)
    entries = [(seed, entry) for seed, log in logs.items() for entry in log if "loss" in entry]
    return pd.DataFrame([{"seed": seed, "epoch": entry["epoch"], "loss": entry["loss"]} for seed, entry in entries])


def choose_pairs(pairs: Sequence[QAPair], settings: Warmup, seed: int) -> list[QAPair]:
    """The random part of the valid initial pairs that the warm-up trains on; the gate measures on the others."""
    return random.Random(seed).sample(pairs, max(1, round(settings.fraction * len(pairs))))


def warm_up_target(config: Config, seed: int, keep: bool = False) -> list[dict]:
    """The training log of one seed; with `keep`, finished work stays in scratch for the stage to come."""
    settings, spec = config.warmup, config.models.target
    chosen = choose_pairs(read_pairs(INITIAL, seed), settings, seed)
    identity = (fingerprint(spec), chosen, config.prompts, config.lora, settings, seed)
    name = f"warm-up, seed {seed}"
    run = TuningRun(spec, config.prompts, config.lora, settings, seed, settings.checkpoints, name)
    return fine_tune(run, chosen, Workplace(seed_folder(WARMUP, seed), scratch_folder("warmup", *identity), keep))

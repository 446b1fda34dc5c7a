"""Stage 8: fine-tune the target on every arm's pairs."""

import pandas as pd

from rubric_influence.core.config import Config
from rubric_influence.core.fingerprints import fingerprint
from rubric_influence.core.paths import FINAL, FINETUNED, list_arms, seed_folder
from rubric_influence.core.scratch import Workplace, scratch_folder
from rubric_influence.pipeline.jobs import run_jobs
from rubric_influence.pipeline.sets import read_pairs
from rubric_influence.training.fine_tuning import TuningRun, fine_tune


def fine_tune_arms(config: Config) -> pd.DataFrame:
    """An adapter for every arm and seed, in data/finetuned. Returns the last training loss of each."""
    jobs = [(config, arm, seed) for arm in list_arms(config) for seed in config.seeds]
    losses = run_jobs(fine_tune_arm, jobs, config.machine)
    rows = [{"arm": arm, "seed": seed, "loss": loss} for (_, arm, seed), loss in zip(jobs, losses, strict=True)]
    return pd.DataFrame(rows)


def fine_tune_arm(config: Config, arm: str, seed: int, keep: bool = False) -> float:
    """The last training loss of one arm and seed; with `keep`, finished work stays in scratch for the stage to come."""
    spec, settings = config.models.target, config.finetuning
    pairs = read_pairs(FINAL / arm, seed)
    identity = (fingerprint(spec), pairs, config.prompts, config.lora, settings, seed)
    run = TuningRun(spec, config.prompts, config.lora, settings, seed, name=f"{arm}, seed {seed}")
    place = Workplace(seed_folder(FINETUNED / arm, seed), scratch_folder("finetuning", *identity), keep)
    return [entry["loss"] for entry in fine_tune(run, pairs, place) if "loss" in entry][-1]

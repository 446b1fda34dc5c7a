"""The training of a stage over processes that accelerate starts, on one machine or several (rubric-influence launch).

Run in the project's root, with the stages before it done; `warmup`, `generators` and `finetuning` can be launched. All
of params.yaml holds, batches too, which the processes share. Results are where the stage itself writes them, and stay
in scratch/ as well, so that `dvc repro` then finds the work done and only makes the stage's figures and report. The
same command goes on from the last checkpoint, if it is of as many processes. See docs/distributed.md.
"""

from datasets import disable_progress_bars

from rubric_influence.core.config import Config
from rubric_influence.core.paths import list_arms
from rubric_influence.models.processes import open_state
from rubric_influence.pipeline.jobs import run_limited
from rubric_influence.pipeline.stages.finetuning import fine_tune_arm
from rubric_influence.pipeline.stages.generators import optimise_generator
from rubric_influence.pipeline.stages.warmup import warm_up_target

STAGES = {"warmup": warm_up_target, "generators": optimise_generator, "finetuning": fine_tune_arm}


def launch_stage(stage: str, config: Config) -> None:
    """Do the stage's jobs one after the other, each over all processes. Raises what the jobs raise."""
    disable_progress_bars()  # of every small step before a training run
    open_state()
    arms = [(arm,) for arm in list_arms(config)] if stage == "finetuning" else [()]
    for arm in arms:
        for seed in config.seeds:
            run_limited(STAGES[stage], (config, *arm, seed, True), config.machine.threads)
    open_state().destroy_process_group()

"""A stage's training over the processes that accelerate starts: `rubric-influence launch`, docs/distributed.md.

The stages before it must be done. Results are where the stage itself writes them, and stay in scratch/ as well: there
the stage finds its work done when `dvc repro` runs it.
"""

from datasets import disable_progress_bars

from rubric_influence.core.config import Config
from rubric_influence.core.paths import list_arms
from rubric_influence.models.processes import open_state
from rubric_influence.pipeline.jobs import run_limited
from rubric_influence.pipeline.stages.finetuning import fine_tune_arm
from rubric_influence.pipeline.stages.generators import optimise_generator
from rubric_influence.pipeline.stages.warmup import warm_up_target


def launch_stage(stage: str, config: Config) -> None:
    """Do the stage's jobs one after the other, each over all processes. Raises what the jobs raise."""
    disable_progress_bars()  # of every small step before a training run
    open_state()
    if stage == "finetuning":
        for arm in list_arms(config):
            for seed in config.seeds:
                run_limited(fine_tune_arm, (config, arm, seed, True), config.machine)
    else:
        train = {"warmup": warm_up_target, "generators": optimise_generator}[stage]
        for seed in config.seeds:
            run_limited(train, (config, seed, True), config.machine)
    open_state().destroy_process_group()

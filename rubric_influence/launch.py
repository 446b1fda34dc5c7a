"""The training of a stage over processes that accelerate starts, on one machine or several.

    accelerate launch --config_file conf/accelerate/node-8gpu.yaml -m rubric_influence.launch generators

Run in the project's root, with the stages before it done; `warmup`, `generators` and `finetuning` can be launched. All
of params.yaml holds, batches too, which the processes share. Results are where the stage itself writes them, and stay
in scratch/ as well, so that `dvc repro` then finds the work done and only makes the stage's figures and report. The
same command goes on from the last checkpoint, if it is of as many processes. See docs/distributed.md.
"""

import argparse
import sys
from collections.abc import Sequence

from datasets import disable_progress_bars

from rubric_influence.config import Config, load_config
from rubric_influence.distributed import open_state
from rubric_influence.jobs import run_limited
from rubric_influence.layout import list_arms
from rubric_influence.ledger import BudgetReached
from rubric_influence.stages.finetuning import fine_tune_arm
from rubric_influence.stages.generators import optimise_generator
from rubric_influence.stages.warmup import warm_up_target

STAGES = {"warmup": warm_up_target, "generators": optimise_generator, "finetuning": fine_tune_arm}


def launch(stage: str, config: Config) -> None:
    """Do the stage's jobs one after the other, each over all processes. Raises what the jobs raise."""
    open_state()
    arms = [(arm,) for arm in list_arms(config)] if stage == "finetuning" else [()]
    for arm in arms:
        for seed in config.seeds:
            run_limited(STAGES[stage], (config, *arm, seed, True), config.machine.threads)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    arguments = parser.parse_args(argv)
    disable_progress_bars()  # of every small step before a training run
    try:
        launch(arguments.stage, load_config())
    except (ValueError, OSError, RuntimeError, BudgetReached) as error:
        print(error, file=sys.stderr)  # of every process: the first to end ends the others
        return 1
    open_state().destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())

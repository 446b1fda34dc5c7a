"""Further benchmarks: tasks of lm-evaluation-harness by name, asked and scored as the harness has them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rubric_influence.evaluation.intervals import Measured
from rubric_influence.models.chat import TEMPLATE_OPTIONS


@dataclass(frozen=True)
class TaskScores:
    """One metric of one task: a value a question, [questions], in the task's order."""

    values: Measured
    losses: bool  # lower is better


@lru_cache(maxsize=1)  # reading the thousands of tasks takes longer than many of them do, and each arm asks for it
def open_index(folder: str | None) -> TaskManager:
    return TaskManager(include_path=folder)


def find_tasks(names: Sequence[str], folder: str | None) -> TaskManager:
    """The harness's index of tasks, with those of YAML files in `folder`. Raises ValueError for a name it lacks."""
    if folder and not Path(folder).is_dir():
        raise ValueError(f"evaluation.tasks_folder is {folder!r}, which is no folder of tasks' YAML files")
    manager = open_index(folder)
    if unknown := [name for name in names if not manager.match_tasks([name])]:
        raise ValueError(
            f"lm-evaluation-harness has no tasks {unknown}; `lm_eval ls tasks` lists its own, and "
            "evaluation.tasks_folder may hold others"
        )
    return manager


def sit_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    manager: TaskManager,
    names: Sequence[str],
    batch_size: int,
    limit: int | None = None,
) -> dict[str, TaskScores]:
    """Scores by "task: metric", for every metric that gives each question a number of its own.

    `limit`: the first questions of a task (None: all). Questions go through the model's chat template, with its own
    options; a group's tasks are told apart. The harness downloads what a task's YAML names, unless it is local.
    """
    harness = HFLM(
        model, tokenizer=tokenizer, batch_size=batch_size, device=str(model.device), chat_template_args=TEMPLATE_OPTIONS
    )
    results = simple_evaluate(
        model=harness,
        tasks=list(names),
        task_manager=manager,
        apply_chat_template=True,
        limit=limit,
        bootstrap_iters=0,
        log_samples=True,
    )
    found = {}
    for task, samples in sorted(results["samples"].items()):
        better = results["higher_is_better"].get(task, {})
        rows = sorted(samples, key=lambda sample: sample["doc_id"])
        for metric in sorted({name for row in rows for name in row["metrics"]}):
            values = [row[metric] for row in rows]
            if all(isinstance(value, (bool, int, float)) for value in values):
                scores = np.array(values, dtype=np.float64)
                found[f"{task}: {metric}"] = TaskScores(scores, losses=not better.get(metric, True))
    return found

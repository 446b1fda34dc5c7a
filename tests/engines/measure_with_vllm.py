"""Losses by VLLMLosses, in a process of its own, which vLLM changes in many ways: thread counts, preloaded libraries.

python tests/engines/measure_with_vllm.py TASK.json FOUND.json     a task has model, adapters, options and examples
"""

import json
import sys
from pathlib import Path

from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.engines.vllm_losses import VLLMLosses, read_shape
from rubric_influence.models.examples import Example


def measure(task: dict) -> dict:
    adapters, examples = [Path(folder) for folder in task["adapters"]], [Example(*part) for part in task["examples"]]
    shape = read_shape(task["model"], adapters)
    losses = VLLMLosses(ModelSpec(path=task["model"], dtype="float32"), shape, **task["options"])
    found = [losses(adapter, examples).tolist() for adapter in [*adapters, adapters[0]]]
    refused = []
    for calls in (
        lambda: losses(adapters[0], [examples[0], Example([5] * losses.engine.room, [5] * losses.engine.room)]),
        lambda: read_shape(task["model"], [task["too_high"]]),
    ):
        try:
            calls()
        except ValueError as error:
            refused.append(str(error))
    return {"shape": [shape.rank, shape.modules], "losses": found, "refused": refused}


if __name__ == "__main__":
    task, out = map(Path, sys.argv[1:])
    out.write_text(json.dumps(measure(json.loads(task.read_text()))))

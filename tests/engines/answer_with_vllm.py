"""Answers of VLLMEngine, in a process of its own, which vLLM changes in many ways: thread counts, preloaded libraries.

python tests/engines/answer_with_vllm.py TASKS.json ANSWERS.json     a task has an engine's spec, options and calls
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.engines.base import Sampling
from rubric_influence.engines.vllm_engine import VLLMEngine
from rubric_influence.synthesis.parsing import PairOutput, RubricOutput

SCHEMAS = {None: None, "RubricOutput": RubricOutput, "PairOutput": PairOutput}


def answer(task: dict) -> dict:
    engine = VLLMEngine(ModelSpec(**task["spec"]), **task["options"])
    answers = []
    for call in task["calls"]:
        try:
            sampling = Sampling(**call["sampling"], schema=SCHEMAS[call.get("schema")])
            answers.append([asdict(c) for c in engine.generate(call["conversations"], sampling)])
        except ValueError as error:
            answers.append(str(error))
    metrics = {m.name: getattr(m, "value", None) for m in engine.llm.get_metrics()}
    return {"name": engine.name, "answers": answers, "cached": metrics["vllm:prefix_cache_hits"]}


if __name__ == "__main__":
    tasks, out = map(Path, sys.argv[1:])
    out.write_text(json.dumps([answer(task) for task in json.loads(tasks.read_text())]))

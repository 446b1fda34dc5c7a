"""The exam: lm-evaluation-harness over a local multiple-choice task, and paired bootstrap intervals."""

from collections.abc import Sequence

import datasets
import numpy as np
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rubric_influence.core.config import Prompts
from rubric_influence.core.records import ExamItem
from rubric_influence.core.text import fill
from rubric_influence.models.chat import TEMPLATE_OPTIONS

TASK = "expert_exam"


def build_task(items: Sequence[ExamItem], prompts: Prompts) -> ConfigurableTask:
    """The items as a harness task: the option with the highest log-likelihood after the question is the answer."""
    rows = [
        {
            "question": fill(prompts.answer, question=item.question),
            "options": list(item.options),
            "answer_index": item.answer_index,
        }
        for item in items
    ]
    return ConfigurableTask(
        config={
            "task": TASK,
            "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "options",
            "doc_to_target": "answer_index",
            "target_delimiter": "",  # the chat template ends where the answer begins
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": 1},
        }
    )


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[ExamItem],
    prompts: Prompts,
    batch_size: int,
) -> np.ndarray:
    """Which items the model answers rightly, bool [len(items)], in the items' order."""
    harness = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=batch_size,
        device=str(model.device),
        chat_template_args=TEMPLATE_OPTIONS,  # the answer then begins where it did in training
    )
    results = simple_evaluate(
        model=harness,
        tasks=[build_task(items, prompts)],
        # Without the harness's own thousands of tasks, whose index takes longer to read than the lab's exam to sit.
        task_manager=TaskManager(include_defaults=False),
        apply_chat_template=True,
        bootstrap_iters=0,
        log_samples=True,
    )
    samples = sorted(results["samples"][TASK], key=lambda sample: sample["doc_id"])
    return np.array([sample["acc"] == 1.0 for sample in samples])

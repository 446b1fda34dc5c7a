"""The exam, as a multiple-choice task of lm-evaluation-harness."""

from collections.abc import Sequence

import datasets
import numpy as np
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rubric_influence.core.config import Prompts
from rubric_influence.core.records import ExamItem
from rubric_influence.core.text import fill
from rubric_influence.models.chat import TEMPLATE_OPTIONS


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[ExamItem],
    prompts: Prompts,
    batch_size: int,
) -> NDArray[np.bool_]:
    """Whether the model finds each item's right option the likeliest after the question, [len(items)], in order."""
    columns = {
        "question": [fill(prompts.answer, question=item.question) for item in items],
        "options": [list(item.options) for item in items],
        "answer_index": [item.answer_index for item in items],
    }
    task = ConfigurableTask(
        config={
            "task": "expert_exam",
            "custom_dataset": lambda **_: {"test": datasets.Dataset.from_dict(columns)},
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
    # With the template's options the answer begins where it did in training.
    harness = HFLM(
        model, tokenizer=tokenizer, batch_size=batch_size, device=str(model.device), chat_template_args=TEMPLATE_OPTIONS
    )
    results = simple_evaluate(
        model=harness,
        tasks=[task],
        # The index of the harness's own thousands of tasks takes longer to read than the lab's exam to sit.
        task_manager=TaskManager(include_defaults=False),
        apply_chat_template=True,
        bootstrap_iters=0,
        log_samples=True,
    )
    (samples,) = results["samples"].values()
    return np.array([sample["acc"] == 1.0 for sample in sorted(samples, key=lambda sample: sample["doc_id"])])

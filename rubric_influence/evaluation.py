"""The exam: lm-evaluation-harness over a local multiple-choice task, and paired bootstrap intervals."""

from collections.abc import Sequence

import datasets
import numpy as np
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rubric_influence.config import Prompts
from rubric_influence.generation import TEMPLATE_OPTIONS
from rubric_influence.prompts import fill
from rubric_influence.records import ExamItem

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


def bootstrap_means(correct_asi: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Mean accuracy of every arm under `count` resamplings, [count, arms].

    correct_asi is bool [arms, seeds, items]. Seeds and items are both drawn with replacement, the same draw for
    every arm, so that differences between arms are paired.
    """
    arms, seeds, items = correct_asi.shape
    rng = np.random.default_rng(seed)
    means = np.empty((count, arms))
    for b in range(count):
        drawn = correct_asi[:, rng.integers(seeds, size=seeds)][:, :, rng.integers(items, size=items)]
        means[b] = drawn.mean(axis=(1, 2))
    return means


def interval(values: np.ndarray) -> list[float]:
    """The central 95 % of the values."""
    return [round(float(q), 4) for q in np.quantile(values, [0.025, 0.975])]


def summarise(correct: dict[str, np.ndarray], baseline: str, count: int, seed: int) -> dict[str, dict]:
    """For every arm: accuracy by seed, mean, 95 % interval, and the gain over the baseline with its paired interval.

    `correct` maps an arm to bool [seeds, items], the same seeds and items for all. Raises ValueError if shapes differ
    or the baseline is not an arm.
    """
    if baseline not in correct:
        raise ValueError(f"baseline {baseline!r} is not one of the arms {list(correct)}")
    shapes = {arm: array.shape for arm, array in correct.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"arms were not evaluated on the same seeds and items: shapes {shapes}")
    arms = list(correct)
    means = bootstrap_means(np.stack([correct[arm] for arm in arms]), count, seed)
    base = arms.index(baseline)
    return {
        arm: {
            "accuracy": [round(float(a), 4) for a in correct[arm].mean(axis=1)],
            "mean": round(float(correct[arm].mean()), 4),
            "ci95": interval(means[:, i]),
            f"gain_over_{baseline}": {
                "mean": round(float(correct[arm].mean() - correct[baseline].mean()), 4),
                "ci95": interval(means[:, i] - means[:, base]),
            },
        }
        for i, arm in enumerate(arms)
    }

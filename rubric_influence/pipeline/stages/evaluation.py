"""Stage 9: the exam, sat by the target as it is and after fine-tuning on every arm."""

import numpy as np
import pandas as pd

from rubric_influence.core.config import Config
from rubric_influence.core.files import read_records, write_json
from rubric_influence.core.paths import ANSWERS, EXAM, FINETUNED, METRICS, PLOTS, UNTUNED, list_arms, seed_folder
from rubric_influence.core.records import ExamItem
from rubric_influence.evaluation.harness import evaluate
from rubric_influence.evaluation.intervals import summarise
from rubric_influence.models.loading import load_model, load_tokenizer
from rubric_influence.pipeline.jobs import run_jobs
from rubric_influence.training.fine_tuning import list_checkpoints, load_fine_tuned

BASELINE = "initial"


def evaluate_arms(config: Config) -> dict:
    """Accuracy on the test split by arm, with paired bootstrap intervals; also metrics/evaluation.json.

    data/evaluation/answers.parquet says for every arm, seed and item whether the answer was right.
    """
    items = [item for item in read_records(EXAM, ExamItem) if item.split == "test"]
    jobs = [(config, arm, seed) for arm in list_arms(config) for seed in config.seeds]
    rows = run_jobs(evaluate_arm, [(config, UNTUNED, config.seeds[0]), *jobs], config.machine)
    correct = {UNTUNED: np.stack([rows[0]] * len(config.seeds))}
    for arm in list_arms(config):
        correct[arm] = np.stack([row for (_, name, _), row in zip(jobs, rows[1:], strict=True) if name == arm])
    arms = summarise(correct, BASELINE, config.evaluation.bootstrap, config.seeds[0])
    results = {
        "arms": arms,
        "items": len(items),
        "seeds": len(config.seeds),
        "chance": round(float(np.mean([1 / len(item.options) for item in items])), 4),
        "corpus": config.corpus.kind,
        "target_parameters": load_model(config.models.target).num_parameters(),
    }
    write_json(METRICS / "evaluation.json", results)
    ANSWERS.parent.mkdir(parents=True, exist_ok=True)
    tabulate_answers(correct, items, config.seeds).to_parquet(ANSWERS, index=False)
    PLOTS.mkdir(exist_ok=True)
    accuracy = pd.DataFrame([{"arm": arm, "accuracy": row["mean"]} for arm, row in arms.items()])
    accuracy.to_csv(PLOTS / "evaluation.csv", index=False)
    return results


def evaluate_arm(config: Config, arm: str, seed: int) -> np.ndarray:
    """Which test items the target answers rightly after fine-tuning on an arm's pairs, bool [items]."""
    items = [item for item in read_records(EXAM, ExamItem) if item.split == "test"]
    spec = config.models.target
    if arm == UNTUNED:
        model = load_model(spec)
    else:
        model = load_fine_tuned(spec, list_checkpoints(seed_folder(FINETUNED / arm, seed))[-1])
    return evaluate(model, load_tokenizer(spec), items, config.prompts, config.evaluation.batch_size)


def tabulate_answers(correct: dict[str, np.ndarray], items: list[ExamItem], seeds: list[int]) -> pd.DataFrame:
    tables = []
    for arm, array in correct.items():
        for seed, row in zip(seeds, array, strict=True):
            ids, topics = [item.id for item in items], [item.topic for item in items]
            tables.append(pd.DataFrame({"arm": arm, "seed": seed, "item_id": ids, "topic": topics, "correct": row}))
    return pd.concat(tables, ignore_index=True)

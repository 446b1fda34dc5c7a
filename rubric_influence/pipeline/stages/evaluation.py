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


def evaluate_arms(config: Config) -> dict:
    """Accuracy on the test split by arm, with paired bootstrap intervals; also metrics/evaluation.json.

    data/evaluation/answers.parquet says for every arm, seed and item whether the answer was right.
    """
    items = [item for item in read_records(EXAM, ExamItem) if item.split == "test"]
    arms, seeds = list_arms(config), config.seeds
    jobs = [(config, items, UNTUNED, seeds[0]), *((config, items, arm, seed) for arm in arms for seed in seeds)]
    untuned, *tuned = run_jobs(evaluate_arm, jobs, config.machine)
    by_arm = np.stack(tuned).reshape(len(arms), len(seeds), len(items))
    correct = {UNTUNED: np.stack([untuned] * len(seeds)), **dict(zip(arms, by_arm, strict=True))}
    figures = summarise(correct, "initial", config.evaluation.bootstrap, seeds[0])
    results = {
        "arms": figures,
        "items": len(items),
        "seeds": len(seeds),
        "chance": round(float(np.mean([1 / len(item.options) for item in items])), 4),
        "corpus": config.corpus.kind,
        "target_parameters": load_model(config.models.target).num_parameters(),
    }
    write_json(METRICS / "evaluation.json", results)
    asked = {"item_id": [item.id for item in items], "topic": [item.topic for item in items]}
    answers = [
        pd.DataFrame({"arm": arm, "seed": seed, **asked, "correct": row})
        for arm, by_seed in correct.items()
        for seed, row in zip(seeds, by_seed, strict=True)
    ]
    ANSWERS.parent.mkdir(parents=True, exist_ok=True)
    pd.concat(answers, ignore_index=True).to_parquet(ANSWERS, index=False)
    PLOTS.mkdir(exist_ok=True)
    accuracy = pd.Series({arm: row["mean"] for arm, row in figures.items()}, name="accuracy")
    accuracy.to_csv(PLOTS / "evaluation.csv", index_label="arm")
    return results


def evaluate_arm(config: Config, items: list[ExamItem], arm: str, seed: int) -> np.ndarray:
    """Which items the target answers rightly after fine-tuning on an arm's pairs, bool [items]."""
    spec = config.models.target
    if arm == UNTUNED:
        model = load_model(spec)
    else:
        checkpoint = list_checkpoints(seed_folder(FINETUNED / arm, seed))[-1]
        model = load_fine_tuned(spec, checkpoint)  # type: ignore[assignment]  # a PeftModel does what its model does
    return evaluate(model, load_tokenizer(spec), items, config.prompts, config.evaluation.batch_size)

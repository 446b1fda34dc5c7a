"""Stage 8: the exam, sat by the target as it is and after fine-tuning on every arm."""

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from rubric_influence.config import Config
from rubric_influence.evaluation import evaluate, summarise
from rubric_influence.layout import ANSWERS, EXAM, FINETUNED, METRICS, PLOTS, UNTUNED, list_arms, seed_folder
from rubric_influence.metrics import write_metrics
from rubric_influence.models import load_model, load_tokenizer
from rubric_influence.records import ExamItem, read_records
from rubric_influence.sft import list_checkpoints, load_fine_tuned

BASELINE = "initial"


def evaluate_arms(config: Config) -> dict:
    """Accuracy on the test split by arm, with paired bootstrap intervals; also metrics/evaluation.json.

    data/evaluation/answers.parquet says for every arm, seed and item whether the answer was right.
    """
    items = [item for item in read_records(EXAM, ExamItem) if item.split == "test"]
    settings, spec = config.evaluation, config.models.target
    tokenizer = load_tokenizer(spec)
    untuned = evaluate(load_model(spec), tokenizer, items, config.prompts, settings.batch_size)
    correct = {UNTUNED: np.stack([untuned] * len(config.seeds))}
    for arm in tqdm(list_arms(config), desc="exam", unit="arm"):
        rows = []
        for seed in config.seeds:
            model = load_fine_tuned(spec, list_checkpoints(seed_folder(FINETUNED / arm, seed))[-1])
            rows.append(evaluate(model, tokenizer, items, config.prompts, settings.batch_size))
        correct[arm] = np.stack(rows)
    arms = summarise(correct, BASELINE, settings.bootstrap, config.seeds[0])
    chance = float(np.mean([1 / len(item.options) for item in items]))
    summary = {"arms": arms, "items": len(items), "seeds": len(config.seeds), "chance": round(chance, 4)}
    write_metrics(METRICS / "evaluation.json", summary)
    table = tabulate_answers(correct, items, config.seeds)
    ANSWERS.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(ANSWERS, index=False)
    PLOTS.mkdir(exist_ok=True)
    pd.DataFrame([{"arm": arm, "accuracy": row["mean"]} for arm, row in arms.items()]).to_csv(
        PLOTS / "evaluation.csv", index=False
    )
    return summary


def tabulate_answers(correct: dict[str, np.ndarray], items: list[ExamItem], seeds: list[int]) -> pd.DataFrame:
    tables = []
    for arm, array in correct.items():
        for seed, row in zip(seeds, array, strict=True):
            ids, topics = [item.id for item in items], [item.topic for item in items]
            tables.append(pd.DataFrame({"arm": arm, "seed": seed, "item_id": ids, "topic": topics, "correct": row}))
    return pd.concat(tables, ignore_index=True)

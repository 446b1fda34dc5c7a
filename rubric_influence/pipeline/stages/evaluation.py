"""Stage 9: the exam, sat by the target as it is and after fine-tuning on every arm."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rubric_influence.core.config import Config
from rubric_influence.core.files import read_records, write_json
from rubric_influence.core.paths import ANSWERS, EXAM, FINETUNED, METRICS, PLOTS, UNTUNED, list_arms, seed_folder
from rubric_influence.core.records import ExamItem
from rubric_influence.evaluation.exam import LOSSES, MAIN, Sitting, mark_written, sit
from rubric_influence.evaluation.intervals import Measured, summarise
from rubric_influence.evaluation.tasks import TaskScores, find_tasks, sit_tasks
from rubric_influence.models.loading import load_model, load_tokenizer
from rubric_influence.pipeline.jobs import run_jobs
from rubric_influence.training.fine_tuning import list_checkpoints, load_fine_tuned

Values = dict[str, Measured]  # arm -> [seeds, items]
Examined = tuple[Sitting, dict[str, TaskScores]]


def evaluate_arms(config: Config) -> dict:
    """Every measure on the test split by arm, with paired bootstrap intervals; also metrics/evaluation.json.

    The figures are those of `compare_sittings`, and what they depend on. data/evaluation/answers.parquet has a row for
    every arm, seed and item.
    """
    items = [item for item in read_records(EXAM, ExamItem) if item.split == "test"]
    arms, seeds = list_arms(config), config.seeds
    if config.evaluation.tasks:
        find_tasks(config.evaluation.tasks, config.evaluation.tasks_folder)  # a misspelt one ends it here
    jobs = [(config, items, UNTUNED, seeds[0]), *((config, items, arm, seed) for arm in arms for seed in seeds)]
    untuned, *tuned = run_jobs(evaluate_arm, jobs, config.machine)
    sat = {UNTUNED: [untuned] * len(seeds)}
    sat |= {arm: tuned[place * len(seeds) :][: len(seeds)] for place, arm in enumerate(arms)}
    results = compare_sittings(config, sat, "initial")
    options = [len(item.options) for item in items if item.options]
    results |= {
        "items": len(items),
        "seeds": len(seeds),
        "chance": round(float(np.mean([1 / count for count in options])), 4) if options else None,
        "corpus": config.corpus.kind,
        "target_parameters": load_model(config.models.target).num_parameters(),
    }
    write_json(METRICS / "evaluation.json", results)
    asked = {"item_id": [item.id for item in items], "topic": [item.topic for item in items]}
    answers = [
        pd.DataFrame({"arm": arm, "seed": seed, **asked, **asdict(sitting)})
        for arm, by_seed in sat.items()
        for seed, (sitting, _) in zip(seeds, by_seed, strict=True)
    ]
    ANSWERS.parent.mkdir(parents=True, exist_ok=True)
    pd.concat(answers, ignore_index=True).to_parquet(ANSWERS, index=False)
    PLOTS.mkdir(exist_ok=True)
    plotted = pd.Series({arm: row["mean"] for arm, row in results["arms"].items()}, name="mean")
    plotted.to_csv(PLOTS / "evaluation.csv", index_label="arm")
    return results


def compare_sittings(config: Config, sat: dict[str, list[Examined]], baseline: str) -> dict:
    """The figures of every arm, each with what it gains over the baseline; `sat` has what every seed was examined to.

    `arms` has those of `measure`: accuracy, or answer_nats for an exam of open questions alone. `measures` has those of
    all others that apply to some item, `tasks` those of evaluation.tasks, each by arm.
    """

    def compare(values: Values, name: str, losses: bool) -> dict:
        return {"arms": summarise(values, baseline, config.evaluation.bootstrap, config.seeds[0], name, losses)}

    measures, tasks = {}, {}
    for measure in Sitting.__dataclass_fields__:
        values = {arm: np.stack([getattr(sitting, measure) for sitting, _ in by_seed]) for arm, by_seed in sat.items()}
        applies = ~np.isnan(values[baseline][0])
        if applies.any():
            chosen = {arm: rows[:, applies] for arm, rows in values.items()}
            measures[measure] = compare(chosen, measure, measure in LOSSES) | {"items": int(applies.sum())}
    for name, scores in sat[baseline][0][1].items():
        values = {arm: np.stack([found[name].values for _, found in by_seed]) for arm, by_seed in sat.items()}
        tasks[name] = compare(values, name, scores.losses)
    main = next(measure for measure in MAIN if measure in measures)
    return {"measure": main, "arms": measures.pop(main)["arms"], "measures": measures, "tasks": tasks}


def evaluate_arm(config: Config, items: list[ExamItem], arm: str, seed: int) -> Examined:
    """What the target makes of the exam after fine-tuning on an arm's pairs."""
    checkpoint = None if arm == UNTUNED else list_checkpoints(seed_folder(FINETUNED / arm, seed))[-1]
    return examine(config, items, checkpoint)


def examine(config: Config, items: list[ExamItem], checkpoint: Path | None) -> Examined:
    """What the target makes of the exam, and of evaluation.tasks, with a checkpoint's adapter or (None) without."""
    spec, settings, template = config.models.target, config.evaluation, config.prompts.answer
    model: Any = load_fine_tuned(spec, checkpoint) if checkpoint else load_model(spec)
    tokenizer = load_tokenizer(spec)
    sitting = sit(model, tokenizer, items, template, settings.batch_tokens)
    if settings.answer_tokens:
        written = mark_written(model, tokenizer, items, template, settings.answer_tokens, settings.batch_tokens)
        sitting = replace(sitting, exact_match=written[0], token_f1=written[1])
    if not settings.tasks:
        return sitting, {}
    manager = find_tasks(settings.tasks, settings.tasks_folder)
    scores = sit_tasks(model, tokenizer, manager, settings.tasks, settings.task_batch_size, settings.task_items)
    return sitting, scores

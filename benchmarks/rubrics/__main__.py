"""Does rubric optimisation pay, in every field and for every target, and what else would have done as well?

    python -m benchmarks.rubrics --json FILE [--cells FIELD/TARGET ...] [--arms ARM ...]

A cell is the lab's whole pipeline for a field and a target, under the default profile's settings: nothing is tuned for
it. Beside the pipeline's arms it has those that tell why the method works: GRPO with the paper's reward, with that of
the published code, with embedding similarity, with influence dealt out at random among a step's rubrics, and with
random numbers; and selection by embedding similarity. Accuracies are means over three seeds, with paired bootstrap
intervals over seeds and questions.

Writes FILE and prints a table in Markdown. What is finished is kept in scratch/rubrics, and FILE's other cells stay:
cells can be run one by one.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.influence.__main__ import describe_machine
from benchmarks.rubrics.arms import ARMS, SeedRun
from benchmarks.rubrics.cells import Cell, configure, parse_cell
from rubric_influence.config import Config
from rubric_influence.corpus import build_corpus
from rubric_influence.evaluation import bootstrap_means, evaluate, interval, summarise
from rubric_influence.jobs import run_jobs
from rubric_influence.journal import Journal, scratch_folder
from rubric_influence.lab.coverage import tabulate_choices
from rubric_influence.lab.world import load_field
from rubric_influence.layout import UNTUNED, fingerprint
from rubric_influence.metrics import write_metrics
from rubric_influence.models import load_model, load_tokenizer
from rubric_influence.sft import fine_tune, list_checkpoints, load_fine_tuned

BASELINE = "initial"


def run_seed(config: Config, seed: int, arms: tuple[str, ...], folder: Path) -> dict[str, dict]:
    """arm -> {"correct": a 0 or 1 for every test question, "topics": shares of its rubrics' topics} of one seed."""
    results = Journal(folder / "results.jsonl")
    if all(arm in results for arm in arms):
        return {arm: results[arm] for arm in arms}
    corpus = build_corpus(config.corpus)
    items = [item for item in corpus.exam if item.split == "test"]
    spec, tokenizer = config.models.target, load_tokenizer(config.models.target)
    field = load_field(config.corpus.field)

    def sit(model: torch.nn.Module) -> list[int]:
        return evaluate(model, tokenizer, items, config.prompts, config.evaluation.batch_size).astype(int).tolist()

    if UNTUNED in arms and UNTUNED not in results:
        results.add(UNTUNED, {"correct": sit(load_model(spec)), "topics": {}})
    run = SeedRun(config, corpus.documents, corpus.exam, seed, folder)
    for arm, (rubrics, pairs) in run.make_sets([a for a in arms if a not in results]).items():
        tuned, name = folder / "finetuned" / arm, f"{arm}, seed {seed}"
        tune = (spec, pairs, config.prompts, config.lora, config.finetuning, seed)
        fine_tune(*tune, out=tuned, scratch=folder / "scratch/finetuning" / arm, name=name)
        shares = tabulate_choices(field, [rubric.text for rubric in rubrics])["topic"]
        topics = {topic: round(float(shares[topic]), 4) for topic in field.exam_topics}
        correct = sit(load_fine_tuned(spec, list_checkpoints(tuned)[-1]))
        results.add(arm, {"correct": correct, "topics": topics if rubrics else {}})
    return {arm: results[arm] for arm in arms}


def run_cell(cell: Cell, arms: tuple[str, ...], changes: dict | None = None) -> dict:
    """The cell's entry in the JSON file."""
    config = configure(cell, changes)
    models = [fingerprint(spec) for spec in (config.models.rubric_generator, config.models.target)]
    folder = scratch_folder("rubrics", config, models)
    jobs = [(config, seed, arms, folder / f"seed-{seed}") for seed in config.seeds]
    found = run_jobs(run_seed, jobs, config.machine)
    correct = {arm: np.array([entry[arm]["correct"] for entry in found], dtype=bool) for arm in arms}
    summary = summarise(correct, BASELINE, config.evaluation.bootstrap, config.seeds[0])
    for arm, row in summary.items():
        row["ci_low_vs_initial"] = row["gain_over_initial"]["ci95"][0]
        if found[0][arm]["topics"]:
            row["topics_by_seed"] = [entry[arm]["topics"] for entry in found]
    for other in ("paper_reward", "privileged_rubric"):
        if other in correct:
            summary["optimised"][f"gain_over_{other}"] = compare(correct["optimised"], correct[other], config)
    about = {"field": cell.field, "target": cell.target, "teacher": cell.teacher}
    return about | {"seeds": len(config.seeds), "items": correct[BASELINE].shape[1], **summary}


def compare(one: np.ndarray, other: np.ndarray, config: Config) -> dict:
    """How much more accurate one arm is than another, bool [seeds, items] each, with its paired interval."""
    means = bootstrap_means(np.stack([one, other]), config.evaluation.bootstrap, config.seeds[0])
    difference = round(float(one.mean() - other.mean()), 4)
    return {"mean": difference, "ci95": interval(means[:, 0] - means[:, 1])}


def tabulate(cells: list[dict]) -> str:
    """Accuracy by arm, a column a cell, in Markdown: % with its interval; best arms of the first cell first."""
    first = cells[0]
    arms = [arm for arm in (UNTUNED, *ARMS) if any(arm in cell for cell in cells)]
    arms.sort(key=lambda arm: -first[arm]["mean"] if arm in first else 0)
    rows = [["arm", *(f"{cell['field']}, {cell['target']}" for cell in cells)], ["---"] * (len(cells) + 1)]
    for arm in arms:
        row = [arm]
        for cell in cells:
            if arm in cell:
                low, high = (100 * bound for bound in cell[arm]["ci95"])
                row.append(f"{100 * cell[arm]['mean']:.1f} ({low:.1f} to {high:.1f})")
            else:
                row.append("")
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file to write; cells that it holds are kept")
    parser.add_argument("--cells", nargs="+", default=["medicine/qwen3", "history/qwen3"], metavar="FIELD/TARGET")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, metavar="ARM", help=", ".join(ARMS))
    arguments = parser.parse_args()
    try:
        cells = [parse_cell(text) for text in arguments.cells]
    except ValueError as error:
        parser.error(str(error))
    # The baselines of every comparison are always there.
    arms = tuple(arm for arm in (UNTUNED, *ARMS) if arm in (UNTUNED, BASELINE, "optimised", *arguments.arms))
    written = json.loads(arguments.json.read_text(encoding="utf-8")) if arguments.json.is_file() else {"cells": []}
    for cell in cells:
        print(f"cell {cell}: {len(arms)} arms", file=sys.stderr, flush=True)
        entry = run_cell(cell, arms)
        kept = [old for old in written["cells"] if (old["field"], old["target"]) != (cell.field, cell.target)]
        written = {"machine": describe_machine(1), "cells": [*kept, entry], "transfer": []}
        write_metrics(arguments.json, written)
    print(tabulate(written["cells"]))


if __name__ == "__main__":
    main()

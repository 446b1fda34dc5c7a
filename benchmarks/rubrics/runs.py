"""Runs of a cell's seeds, arm by arm, and of generators optimised for one target and used for another.

Between fields there is no such transfer to measure in the lab: its tokenizers hold the words of one field, a token
each. Two fields share about 90 of their 500 words, nearly all with other numbers, so that another field's documents,
their names, values and topics, are unknown words to a generator.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.rubrics.arms import ARMS, SeedRun
from benchmarks.rubrics.cells import Cell, configure, open_folder
from benchmarks.rubrics.summary import BASELINE, find_best_baseline
from rubric_influence.core.config import Config
from rubric_influence.core.journal import Journal
from rubric_influence.core.paths import UNTUNED
from rubric_influence.core.records import QAPair
from rubric_influence.core.scratch import Workplace
from rubric_influence.data.corpora import Corpus
from rubric_influence.evaluation.exam import sit
from rubric_influence.evaluation.intervals import bootstrap_means, interval, summarise
from rubric_influence.lab.coverage import tabulate_choices
from rubric_influence.lab.world import load_field
from rubric_influence.models.loading import load_model, load_tokenizer
from rubric_influence.pipeline.jobs import run_jobs
from rubric_influence.pipeline.stages.corpus import build_corpus
from rubric_influence.training.fine_tuning import TuningRun, fine_tune, list_checkpoints, load_fine_tuned

RESULTS, TRANSFER = "results.jsonl", "transfer.jsonl"


def run_seed(config: Config, seed: int, arms: tuple[str, ...], folder: Path) -> dict[str, dict]:
    """arm -> {"correct": a 0 or 1 for every test question, "topics": shares of its rubrics' topics} of one seed.

    With `arms`, every other arm that the folder holds the result of.
    """
    results = Journal(folder / RESULTS)
    if not all(arm in results for arm in arms):
        corpus = build_corpus(config.corpus)
        field = load_field(config.corpus.field)
        if UNTUNED in arms and UNTUNED not in results:
            results.add(UNTUNED, {"correct": sit_exam(config, corpus, None), "topics": {}})
        run = SeedRun(config, corpus.documents, corpus.exam, seed, folder)
        for arm, (rubrics, pairs) in run.make_sets([a for a in arms if a not in results]).items():
            tuned = fine_tune_arm(config, pairs, seed, folder, arm)
            shares = tabulate_choices(field, [rubric.text for rubric in rubrics])["topic"]
            topics = {topic: round(float(shares[topic]), 4) for topic in field.exam_topics}
            correct = sit_exam(config, corpus, tuned)
            results.add(arm, {"correct": correct, "topics": topics if rubrics else {}})
    return {arm: results[arm] for arm in (UNTUNED, *ARMS) if arm in results}


def fine_tune_arm(config: Config, pairs: Sequence[QAPair], seed: int, folder: Path, arm: str) -> Path:
    """The folder of the target fine-tuned on an arm's pairs."""
    tuned, name = folder / "finetuned" / arm, f"{arm}, seed {seed}"
    run = TuningRun(config.models.target, config.prompts, config.lora, config.finetuning, seed, name=name)
    fine_tune(run, pairs, Workplace(tuned, folder / "scratch/finetuning" / arm))
    return tuned


def sit_exam(config: Config, corpus: Corpus, tuned: Path | None) -> list[int]:
    """A 0 or 1 for every test question; of the target as it is where `tuned` is None."""
    spec = config.models.target
    items = [item for item in corpus.exam if item.split == "test"]
    model = load_fine_tuned(spec, list_checkpoints(tuned)[-1]) if tuned else load_model(spec)
    sitting = sit(model, load_tokenizer(spec), items, config.prompts.answer, config.evaluation.batch_tokens)
    return sitting.accuracy.astype(int).tolist()


def run_cell(cell: Cell, arms: tuple[str, ...], changes: dict | None = None, kept: dict | None = None) -> dict:
    """The cell's entry in the JSON file: `arms`, all others that every seed has finished before, and those of `kept`.

    `kept` is an earlier entry of the cell. What the optimised arm gains over another has an interval only where both
    were run together. Raises ValueError where an arm of `kept` comes out otherwise now.
    """
    config = configure(cell, changes)
    folder = open_folder(config)
    found = run_jobs(run_seed, [(config, seed, arms, folder / f"seed-{seed}") for seed in config.seeds], config.machine)
    finished = [arm for arm in (UNTUNED, *ARMS) if all(arm in entry for entry in found)]
    correct = {arm: np.array([entry[arm]["correct"] for entry in found], dtype=bool) for arm in finished}
    rows = summarise(correct, BASELINE, config.evaluation.bootstrap, config.seeds[0])
    for arm, row in rows.items():
        row["ci_low_vs_initial"] = row["gain_over_initial"]["ci95"][0]
        if found[0][arm]["topics"]:
            row["topics_by_seed"] = [entry[arm]["topics"] for entry in found]
    kept = kept or {}
    rows = merge_rows(cell, kept, rows)
    best = find_best_baseline(rows)
    if best != kept.get("best_baseline"):  # what was gained over another is not over this one
        rows.get("optimised", {}).pop("gain_over_best_baseline", None)
    others = {"paper_reward": "paper_reward", "privileged_rubric": "privileged_rubric", "best_baseline": best}
    for name, other in others.items():
        if "optimised" in correct and other in correct:
            rows["optimised"][f"gain_over_{name}"] = compare(correct["optimised"], correct[other], config)
    return {
        "field": cell.field,
        "target": cell.target,
        "teacher": cell.teacher,
        "seeds": len(config.seeds),
        "items": correct[BASELINE].shape[1],
        "best_baseline": best,
        **rows,
    }


def merge_rows(cell: Cell, kept: dict, rows: dict[str, dict]) -> dict[str, dict]:
    """arm -> its row, of an earlier entry and of this run; where both have an arm, with the figures of both."""
    for arm, row in rows.items():
        if arm in kept and kept[arm]["accuracy"] != row["accuracy"]:
            raise ValueError(
                f"{arm} of cell {cell} has the accuracies {row['accuracy']} now, and {kept[arm]['accuracy']} in the "
                "JSON file: other code, settings or machine. Take the cell out of the file, or write another, and run "
                "it whole"
            )
    known = [arm for arm in (UNTUNED, *ARMS) if arm in kept or arm in rows]
    return {arm: kept.get(arm, {}) | rows.get(arm, {}) for arm in known}


def compare(one: np.ndarray, other: np.ndarray, config: Config) -> dict:
    """How much more accurate one arm is than another, bool [seeds, items] each, with its paired interval."""
    means = bootstrap_means(np.stack([one, other]), config.evaluation.bootstrap, config.seeds[0])
    difference = round(float(one.mean() - other.mean()), 4)
    return {"mean": difference, "ci95": interval(means[:, 0] - means[:, 1])}


def run_transfer(source: Cell, cell: Cell, changes: dict | None = None) -> dict | None:
    """`cell`'s target fine-tuned on the final set of the generator optimised for `source`'s target.

    optimised_mean is its accuracy, own_target_mean that of the generator optimised for the cell's own target, and
    initial_mean that of the untrained one. None where the work of one of the two cells is not there, or not finished.
    """
    theirs, config = configure(source, changes), configure(cell, changes)
    origin, folder = open_folder(theirs), open_folder(config)
    kept = [Journal(folder / f"seed-{seed}" / RESULTS) for seed in config.seeds]
    there = all((origin / f"seed-{seed}/generators/optimised/trajectories.jsonl").is_file() for seed in config.seeds)
    if not there or not all(arm in journal for journal in kept for arm in (BASELINE, "optimised")):
        return None
    jobs = [(theirs, config, seed, origin / f"seed-{seed}", folder / f"seed-{seed}") for seed in config.seeds]
    rows = {"optimised": run_jobs(transfer_seed, jobs, config.machine)}
    rows |= {arm: [journal[own]["correct"] for journal in kept] for arm, own in
             ((BASELINE, BASELINE), ("own_target", "optimised"))}  # fmt: skip
    correct = {arm: np.array(answers, dtype=bool) for arm, answers in rows.items()}
    summary = summarise(correct, BASELINE, config.evaluation.bootstrap, config.seeds[0])
    return {
        "field": cell.field,
        "teacher": cell.teacher,
        "from_target": source.target,
        "to_target": cell.target,
        "seeds": len(config.seeds),
        "optimised_mean": summary["optimised"]["mean"],
        "optimised_ci95": summary["optimised"]["ci95"],
        "gain_over_initial": summary["optimised"]["gain_over_initial"],
        "initial_mean": summary[BASELINE]["mean"],
        "own_target_mean": summary["own_target"]["mean"],
        "gain_over_own_target": compare(correct["optimised"], correct["own_target"], config),
    }


def transfer_seed(theirs: Config, config: Config, seed: int, origin: Path, folder: Path) -> list[int]:
    """A 0 or 1 for every test question, of the target of `config` on the final set that `theirs` optimised."""
    results, arm = Journal(folder / TRANSFER), f"from-{origin.parent.name}"
    if arm not in results:
        corpus = build_corpus(config.corpus)
        sets = SeedRun(theirs, corpus.documents, corpus.exam, seed, origin).make_sets(["optimised"])
        tuned = fine_tune_arm(config, sets["optimised"][1], seed, folder, arm)
        results.add(arm, {"correct": sit_exam(config, corpus, tuned)})
    return results[arm]["correct"]

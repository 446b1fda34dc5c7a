"""Which way of scoring predicts best what training on a set gains? Every open setting of the score, one at a time.

    python -m benchmarks.influence.ablations --json FILE

For every seed and length of the warm-up, random sets of candidates are trained on once, from the warmed-up target with
its optimizer's state, and what held-out questions gain is held against the sets' mean score by every variant. Sets are
pooled over seeds, predictions and gains standardised within each. R^2 and Spearman come with 95 % intervals, and so
does each R^2 less the reference's, by a bootstrap over sets that gives both the same resamples. Intervals are of other
sets from the same three pools; they do not tell what another field or model would say.

Prints a table in Markdown and writes FILE. Finished seeds are kept in scratch/ablations, and not measured again. It
takes 10 minutes of one slow core.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.influence import variants
from benchmarks.influence.__main__ import describe_machine
from benchmarks.influence.fidelity import NEAR, SET_SIZE
from benchmarks.influence.lab import WARM_UP, make_case
from benchmarks.influence.variants import BATCH_TOKENS, REFERENCE, score_variants
from benchmarks.rubrics.summary import render
from rubric_influence.core.files import write_json
from rubric_influence.core.journal import Journal
from rubric_influence.core.scratch import scratch_folder
from rubric_influence.influence.checks.agreement import correlate, draw_sets, measure_agreement, standardise
from rubric_influence.influence.checks.retraining import Retraining

SEEDS = (0, 1, 2)
LENGTHS = (WARM_UP.epochs, 3, 1)  # epochs of warm-up; the first, the pipeline's, is the table's
SETS = 32  # a seed and length
RESAMPLES = 2000


def measure_seed(seed: int, epochs: int, sets: int = SETS) -> dict:
    """{"gains": a set's gain [sets], "means": {variant: a set's mean score [sets]}}, of the lab case of a seed.

    Candidates and sets are the seed's, whatever the warm-up's length.
    """
    case = make_case(seed, epochs=epochs)
    scores = score_variants(case, seed)
    drawn = draw_sets(len(case.candidates), sets, SET_SIZE, seed)
    retraining = Retraining(case.model, case.moments, case.held_out, NEAR, batch_tokens=BATCH_TOKENS)
    name = f"seed {seed}, warm-up of {epochs}"
    gains = [
        retraining.gain([case.candidates[row] for row in rows], number)
        for number, rows in enumerate(tqdm(drawn, desc=name, unit="set", leave=False))
    ]
    return {"gains": gains, "means": {variant: found[drawn].mean(axis=1).tolist() for variant, found in scores.items()}}


def pool_seeds(measured: Sequence[dict]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Gains, and means by variant, of all seeds' sets, standardised within each seed: they are on no common scale."""
    gains = np.concatenate([standardise(entry["gains"]) for entry in measured])
    names = measured[0]["means"]
    return gains, {name: np.concatenate([standardise(entry["means"][name]) for entry in measured]) for name in names}


def compare_r2(
    one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray], seed: int
) -> tuple[float, tuple[float, float]]:
    """R^2 of one (predictions, gains) less that of the other, and its 95 % interval by a bootstrap over sets.

    Entry i of all four is of the same set, and a resample takes the same sets for both.
    """

    def r2(pair: tuple[np.ndarray, np.ndarray], rows: np.ndarray) -> np.ndarray:
        return correlate(pair[0][rows], pair[1][rows], -1) ** 2

    count = len(one[0])
    drawn = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    low, high = np.nanpercentile(r2(one, drawn) - r2(other, drawn), [2.5, 97.5])
    everything = np.arange(count)
    return float(r2(one, everything) - r2(other, everything)), (float(low), float(high))


def summarise(measured: dict[int, list[dict]]) -> dict:
    """{epochs of warm-up: {variant: figures}} from {epochs: what each seed's `measure_seed` gave}.

    Differences are to the reference at the same length; the reference's own are to itself at the table's.
    """
    pooled = {epochs: pool_seeds(entries) for epochs, entries in measured.items()}
    first_gains, first_means = next(iter(pooled.values()))
    summary: dict = {}
    for epochs, (gains, means) in pooled.items():
        summary[str(epochs)] = {}
        for name, values in means.items():
            found = measure_agreement(values, gains, seed=0, resamples=RESAMPLES)
            base = (first_means[REFERENCE], first_gains) if name == REFERENCE else (means[REFERENCE], gains)
            difference, interval = compare_r2((values, gains), base, seed=0)
            figures = dataclasses.asdict(found) | {"r2_less_reference": difference, "r2_less_reference_ci95": interval}
            summary[str(epochs)][name] = figures
    return summary


def show_agreement(figures: dict, is_reference: bool) -> list[str]:
    """Three cells of a table, each with its interval: R^2, Spearman, and R^2 less the reference's, "" if it is that."""

    def show(name: str, sign: str = "") -> str:
        low, high = figures[f"{name}_ci95"]
        return f"{figures[name]:{sign}.2f} ({low:{sign}.2f} to {high:{sign}.2f})"

    return [show("r2"), show("spearman"), "" if is_reference else show("r2_less_reference", "+")]


def tabulate(summary: dict) -> str:
    """The table in Markdown: figures of the first length with intervals, and R^2 at the others."""
    main, *others = summary
    heads = ["score", "R²", "Spearman", "R² less the reference's", *(f"R², warm-up of {epochs}" for epochs in others)]
    rows = [heads]
    for name, figures in summary[main].items():
        at_others = [f"{summary[epochs][name]['r2']:.2f}" for epochs in others]
        rows.append([name, *show_agreement(figures, name == REFERENCE), *at_others])
    return render(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    code = Path(variants.__file__).read_text(encoding="utf-8")  # seeds scored by other code are not pooled with these
    journal = Journal(scratch_folder("ablations", repr(WARM_UP), repr(NEAR), SET_SIZE, SETS, code) / "seeds.jsonl")
    measured: dict[int, list[dict]] = {epochs: [] for epochs in LENGTHS}
    for epochs in LENGTHS:
        for seed in SEEDS:
            key = f"{epochs}/{seed}"
            if key not in journal:
                print(f"warm-up of {epochs} epochs, seed {seed}", file=sys.stderr, flush=True)
                journal.add(key, measure_seed(seed, epochs))
            measured[epochs].append(journal[key])
    summary = summarise(measured)
    gains = {str(epochs): [float(np.mean(e["gains"])) for e in entries] for epochs, entries in measured.items()}
    settings = {"seeds": SEEDS, "sets_a_seed": SETS, "set_size": SET_SIZE, "recipe": dataclasses.asdict(NEAR)}
    found = {"machine": describe_machine(arguments.threads), "settings": settings, "mean_gain": gains}
    write_json(arguments.json, found | {"agreement_by_warm_up": summary})
    print(tabulate(summary))


if __name__ == "__main__":
    main()

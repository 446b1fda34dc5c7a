"""How much of the truth could any first-order score tell, and where does ours lose? The unrolled oracle and the rest.

    python -m benchmarks.influence.truth --json FILE

On the lab's target after its warm-up, for three seeds. Two truths, in nats a token of held-out questions:

sets    Random sets of 16 candidates are each trained on from the checkpoint: their gain, against their mean score.
tenths  All candidates are trained on in one epoch, once whole and once without each random tenth (its losses weighed
        0, so that all other batches stay): the rise of the loss, against the sum of the scores left out. The rank
        correlation is the linear datamodelling score of the field. `best`: the rise without the best 1 % and 10 % by
        each score, and without random ones.

What the unrolled oracle goes through is a whole training, so there are two of it:

whole pool   the one epoch of all candidates at weight 1, the very training that tenths leave something out of
random sets  trainings as those of the sets measured, but on other random sets and at weight 1/4. A set of 16 is one
             batch, and most are clipped at weight 1: then more of all its samples makes the same step, their scores
             sum to 0, and nothing is said of sets. At 1/4 few are, and a gain is the integral over weights from 0 to 1.

All scores are along the loss of the validation questions, but for those named so. Prints tables in Markdown and writes
FILE. Finished parts are kept in scratch/truth, and not measured again. It takes 6 minutes of one slow core.
"""

import argparse
import dataclasses
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.influence.__main__ import describe_machine
from benchmarks.influence.ablations import RESAMPLES, compare_r2, pool_seeds, show_agreement
from benchmarks.influence.fidelity import BATCH_TOKENS, NEAR, SET_SIZE
from benchmarks.influence.lab import WARM_UP, Case, make_case
from benchmarks.rubrics.summary import render
from rubric_influence.core.files import write_json
from rubric_influence.core.journal import Journal
from rubric_influence.core.scratch import scratch_folder
from rubric_influence.influence.checks.agreement import draw_sets, measure_agreement
from rubric_influence.influence.checks.retraining import Recipe, Retraining
from rubric_influence.influence.checks.unrolled import unrolled_scores
from rubric_influence.influence.directions import validation_gradients
from rubric_influence.influence.embeddings import embedding_similarity
from rubric_influence.influence.lexical import lexical_similarity
from rubric_influence.influence.scorers import open_scorer
from rubric_influence.models.losses import sweep_losses

SEEDS = (0, 1, 2)
CANDIDATES = 192
SETS, TENTHS, DRAWS = 24, 16, 4  # a seed; draws are of random hundredths
WHOLE = Recipe(epochs=1, batch_size=NEAR.batch_size, learning_rate=NEAR.learning_rate)
SHARES = (0.01, 0.1)  # of the best, left out
REFERENCE = "influence (adam, dot product)"
WEIGHT = 0.25  # of the samples in random sets
RANDOM_SETS, POOL = "unrolled, random sets", "unrolled, whole pool"
ON_HELD_OUT = "influence along the held-out loss"
LINEAR_ON_HELD_OUT = "linear along the held-out loss"
LINEAR, GRADIENT, SIMILARITY = "linear, dot product", "gradient, cosine", "embedding similarity"
BM25, LOSS = "BM25", "the pair's own loss"
BEST_BY = (REFERENCE, LINEAR, GRADIENT, POOL, SIMILARITY, BM25, LOSS)
Scores = dict[str, np.ndarray]  # name -> [candidates], positive is good


def unroll(case: Case, rows: np.ndarray, recipe: Recipe, seed: int, weight: float = 1.0) -> np.ndarray:
    """The unrolled oracle's scores of those candidates in a training on them, each at that weight."""
    examples = [case.candidates[row] for row in rows]
    settings = {"batch_tokens": BATCH_TOKENS, "weights_n": torch.full((len(rows),), weight)}
    return unrolled_scores(case.model, examples, case.validation, case.moments, recipe, seed, **settings).numpy()


def unroll_random_sets(case: Case, seed: int) -> np.ndarray:
    """Every candidate's score in a training on one random set of SET_SIZE, [candidates]."""
    order = np.random.default_rng([seed, 1]).permutation(len(case.candidates))
    found = np.zeros(len(order))
    for number, rows in enumerate(np.split(order, range(SET_SIZE, len(order), SET_SIZE))):
        found[rows] = unroll(case, rows, NEAR, number, WEIGHT)
    return found


def score_candidates(case: Case, seed: int) -> Scores:
    """Every score of every candidate."""
    model, candidates, everything = case.model, case.candidates, np.arange(len(case.candidates))
    losses = case.validation, case.held_out
    gradients = [validation_gradients(model, part, None, BATCH_TOKENS)["all"] for part in losses]

    def score(estimator: str, normalise: bool = False) -> np.ndarray:
        settings = {"momentum": False, "normalise": normalise, "batch_tokens": BATCH_TOKENS}
        return (
            open_scorer(estimator, model, torch.stack(gradients), case.moments, **settings).score(candidates).T.numpy()
        )

    influence, linear = score("adam"), score("linear")
    step = Retraining(model, case.moments, case.validation, Recipe(1, 1, NEAR.learning_rate), batch_tokens=BATCH_TOKENS)
    found = {
        REFERENCE: influence[0],
        "cosine": score("adam", normalise=True)[0],
        LINEAR: linear[0],
        "forward": score("forward")[0],
        GRADIENT: score("gradient", normalise=True)[0],
        "one real step": np.array([step.gain([example], seed=0) for example in candidates]),
        RANDOM_SETS: unroll_random_sets(case, seed),
        POOL: unroll(case, everything, WHOLE, seed),
        SIMILARITY: embedding_similarity(model, candidates, case.validation, BATCH_TOKENS).numpy(),
        BM25: lexical_similarity(case.texts, case.asked),
        LOSS: sweep_losses(model, candidates, BATCH_TOKENS).numpy(),
        ON_HELD_OUT: influence[1],
        LINEAR_ON_HELD_OUT: linear[1],
    }
    return {name: values.astype(float) for name, values in found.items()}


def measure_sets(case: Case, scores: Scores, seed: int) -> dict:
    """{"gains": each set's, "means": {score: each set's mean}}."""
    sets = draw_sets(len(case.candidates), SETS, SET_SIZE, seed)
    retraining = Retraining(case.model, case.moments, case.held_out, NEAR, batch_tokens=BATCH_TOKENS)
    gains = [retraining.gain([case.candidates[row] for row in rows], number) for number, rows in enumerate(sets)]
    means = {name: values[sets].mean(axis=1).tolist() for name, values in scores.items()}
    return {"gains": gains, "means": means}


def measure_tenths(case: Case, scores: Scores, seed: int) -> dict:
    """{"gains": the rise without each tenth, "means": {score: its sum there}, "best": ..., "random": ...}.

    best: {share: {score: rise}}. random: {share: the rise of each draw}.
    """
    count = len(case.candidates)
    retraining = Retraining(case.model, case.moments, case.held_out, WHOLE, batch_tokens=BATCH_TOKENS)
    whole = retraining.gain(case.candidates, seed)

    def leave_out(rows: np.ndarray) -> float:
        weights_n = torch.ones(count)
        weights_n[rows] = 0.0
        return whole - retraining.gain(case.candidates, seed, weights_n)

    tenths = draw_sets(count, TENTHS, round(SHARES[1] * count), seed)
    hundredths = draw_sets(count, DRAWS, round(SHARES[0] * count), seed)
    rises = [leave_out(rows) for rows in tenths]
    best = {
        f"{share:g}": {
            name: leave_out(np.argsort(-scores[name], kind="stable")[: round(share * count)]) for name in BEST_BY
        }
        for share in SHARES
    }
    random = {f"{SHARES[0]:g}": [leave_out(rows) for rows in hundredths], f"{SHARES[1]:g}": rises}
    sums = {name: values[tenths].sum(axis=1).tolist() for name, values in scores.items()}
    return {"gains": rises, "means": sums, "best": best, "random": random, "whole": whole}


def summarise_agreement(measured: list[dict]) -> dict[str, dict]:
    """{score: its agreement over all seeds' sets, and its R^2 less the reference's}, from what a measure_... gave."""
    gains, means = pool_seeds(measured)
    summary = {}
    for name, values in means.items():
        agreement = dataclasses.asdict(measure_agreement(values, gains, seed=0, resamples=RESAMPLES))
        difference, interval = compare_r2((values, gains), (means[REFERENCE], gains), seed=0)
        summary[name] = agreement | {"r2_less_reference": difference, "r2_less_reference_ci95": interval}
    return summary


def summarise_best(measured: list[dict]) -> dict[str, dict]:
    """{share: {score: the rise by seed}, and of random draws their mean and deviation by seed}."""
    return {
        share: {
            "random_mean": [float(np.mean(entry["random"][share])) for entry in measured],
            "random_sd": [float(np.std(entry["random"][share], ddof=1)) for entry in measured],
            "by_score": {
                name: [entry["best"][share][name] for entry in measured] for name in measured[0]["best"][share]
            },
        }
        for share in measured[0]["best"]
    }


def tabulate_agreement(summary: dict[str, dict]) -> str:
    heads = ["score", "R²", "Spearman", "R² less influence's"]
    return render([heads, *([name, *show_agreement(figures, name == REFERENCE)] for name, figures in summary.items())])


def tabulate_best(best: dict[str, dict]) -> str:
    """Rises in 1e-3 nats a token, means over seeds."""
    rows = [["left out, best by", *(f"{float(share):.0%}".replace("%", " %") for share in best)]]
    for name in next(iter(best.values()))["by_score"]:
        rows.append([name, *(f"{1e3 * np.mean(figures['by_score'][name]):.2f}" for figures in best.values())])
    means = [f"{1e3 * np.mean(f['random_mean']):.2f} ± {1e3 * np.mean(f['random_sd']):.2f}" for f in best.values()]
    rows.append(["random ones, with their deviation", *means])
    return render(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # Parts measured by other code are not pooled with these.
    code = [
        inspect.getsource(function)
        for function in (unroll, unroll_random_sets, score_candidates, measure_sets, measure_tenths)
    ]
    numbers = WEIGHT, CANDIDATES, SETS, SET_SIZE, TENTHS, DRAWS, SHARES
    journal = Journal(scratch_folder("truth", repr((WARM_UP, NEAR, WHOLE, numbers)), *code) / "parts.jsonl")
    parts: dict[str, Callable[[Case, Scores, int], dict]] = {"sets": measure_sets, "tenths": measure_tenths}
    for seed in SEEDS:
        missing = [part for part in parts if f"{part}/{seed}" not in journal]
        if not missing:
            continue
        case = make_case(seed, candidates=CANDIDATES)
        if f"scores/{seed}" not in journal:
            print(f"seed {seed}: scores", file=sys.stderr, flush=True)
            journal.add(f"scores/{seed}", {name: v.tolist() for name, v in score_candidates(case, seed).items()})
        scores = {name: np.array(values) for name, values in journal[f"scores/{seed}"].items()}
        for part in missing:
            print(f"seed {seed}: {part}", file=sys.stderr, flush=True)
            journal.add(f"{part}/{seed}", parts[part](case, scores, seed))
    sets, tenths = ([journal[f"{part}/{seed}"] for seed in SEEDS] for part in parts)
    found = {
        "machine": describe_machine(arguments.threads),
        "settings": {
            "seeds": SEEDS,
            "candidates": CANDIDATES,
            "sets_a_seed": SETS,
            "set_size": SET_SIZE,
            "tenths_a_seed": TENTHS,
            "random_hundredths_a_seed": DRAWS,
            "weight_in_random_sets": WEIGHT,
            "recipe_of_sets": dataclasses.asdict(NEAR),
            "recipe_of_tenths": dataclasses.asdict(WHOLE),
        },
        "mean_gain_of_sets": [float(np.mean(entry["gains"])) for entry in sets],
        "gain_of_the_whole_pool": [entry["whole"] for entry in tenths],
        "sets": summarise_agreement(sets),
        "tenths": summarise_agreement(tenths),
        "best_left_out": summarise_best(tenths),
    }
    write_json(arguments.json, found)
    print(tabulate_agreement(found["sets"]), tabulate_agreement(found["tenths"]), sep="\n\n")
    print(f"\n{tabulate_best(found['best_left_out'])}")


if __name__ == "__main__":
    main()

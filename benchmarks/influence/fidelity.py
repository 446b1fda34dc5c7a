"""Are the scores right? Against batch-1 fp64 autograd, a real optimizer step, and what training on sets gains."""

import copy

import numpy as np
from scipy.stats import spearmanr

from benchmarks.influence.lab import Case
from rubric_influence.influence.checks.agreement import draw_sets, measure_agreement
from rubric_influence.influence.checks.oracle import one_step_gains
from rubric_influence.influence.checks.reference import reference_scores
from rubric_influence.influence.checks.retraining import Recipe, Retraining
from rubric_influence.influence.directions import validation_gradients
from rubric_influence.influence.embeddings import embedding_similarity
from rubric_influence.influence.moments import match_moments
from rubric_influence.influence.scorers import GradientScorer

BATCH_TOKENS = 4096
STEP = 1e-6  # the oracle's learning rate: small, so that the score's first order is all there is
SET_SIZE = 16
NEAR = Recipe(epochs=4, batch_size=16, learning_rate=3e-4)
FAR = Recipe(epochs=4, batch_size=16, learning_rate=3e-3)  # steps nearly the warm-up's own: sets are overfitted


def measure_cosine_error(case: Case, count: int = 64) -> dict:
    """The largest difference of `count` cosines, along grad L_V, from the reference's, with momentum and without."""
    direction = validation_gradients(case.model, case.validation, None, BATCH_TOKENS)["all"][None]
    examples = case.candidates[:count]
    reference = copy.deepcopy(case.model).cpu()
    moments = match_moments(case.moments, reference)
    errors = []
    for momentum in (False, True):
        scorer = GradientScorer(case.model, direction, moments, momentum=momentum, batch_tokens=BATCH_TOKENS)
        slow = reference_scores(reference, examples, direction.cpu(), moments, momentum=momentum)
        errors.append((scorer.score(examples) - slow).abs().max().item())
    return {"max_abs_cosine_error_vs_fp64": max(errors), "cosines_compared": 2 * len(examples)}


def measure_one_step(case: Case, count: int = 128) -> dict:
    """Spearman's correlation of the dot products, momentum included, with the gains of real AdamW steps."""
    direction = validation_gradients(case.model, case.validation, None, BATCH_TOKENS)["all"][None]
    scorer = GradientScorer(
        case.model, direction, case.moments, momentum=True, normalise=False, batch_tokens=BATCH_TOKENS
    )
    examples = case.candidates[:count]
    scores = scorer.score(examples)[:, 0]
    gains = one_step_gains(case.model, examples, case.validation, case.moments, STEP, batch_tokens=BATCH_TOKENS)
    found = spearmanr(scores.numpy(), gains.numpy()).statistic
    return {"one_step_spearman": float(found), "one_step_candidates": len(examples)}


def measure_gains(case: Case, sets: int = 64, far_sets: int = 32) -> dict:
    """How a set's mean influence, and its mean embedding similarity, agree with what training on it gains.

    Sets are random, influence is the pipeline's default (the estimator adam's dot product, without momentum) along
    grad L_V, and the gain is on held-out questions. Figures of the paper's cosine begin with
    cosine_. Figures of training far from the checkpoint, where a score of one step is out of its depth, end
    in _far; they are of the first `far_sets`.
    """
    direction = validation_gradients(case.model, case.validation, None, BATCH_TOKENS)["all"][None]

    def score(normalise: bool) -> np.ndarray:
        settings = {"momentum": False, "normalise": normalise, "batch_tokens": BATCH_TOKENS}
        return GradientScorer(case.model, direction, case.moments, **settings).score(case.candidates)[:, 0].numpy()

    predictors = {
        "": score(normalise=False),
        "cosine_": score(normalise=True),
        "embedding_": embedding_similarity(case.model, case.candidates, case.validation, BATCH_TOKENS).numpy(),
    }
    drawn = draw_sets(len(case.candidates), sets, SET_SIZE, seed=0)
    found: dict = {}
    for suffix, recipe, chosen in (("", NEAR, drawn), ("_far", FAR, drawn[:far_sets])):
        retraining = Retraining(case.model, case.moments, case.held_out, recipe, batch_tokens=BATCH_TOKENS)
        gains = [retraining.gain([case.candidates[row] for row in rows], seed) for seed, rows in enumerate(chosen)]
        for prefix, scores in predictors.items():
            agreement = measure_agreement(scores[chosen].mean(axis=1), gains, seed=0)
            for name in ("r2", "r2_ci95", "spearman", "spearman_ci95"):
                found[f"{prefix}gain_{name}{suffix}"] = getattr(agreement, name)
        found |= {f"gain_mean{suffix}": sum(gains) / len(gains), f"gain_sets{suffix}": len(gains)}
    return found

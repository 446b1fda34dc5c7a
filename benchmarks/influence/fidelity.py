"""Are the scores right? Against batch-1 fp64 autograd, and against what a real optimizer step does."""

import copy

from scipy.stats import spearmanr

from benchmarks.influence.lab import Case
from rubric_influence.influence.directions import validation_gradients
from rubric_influence.influence.moments import match_moments
from rubric_influence.influence.oracle import one_step_gains
from rubric_influence.influence.reference import reference_scores
from rubric_influence.influence.scorers import GradientScorer

BATCH_TOKENS = 4096
STEP = 1e-6  # the oracle's learning rate: small, so that the score's first order is all there is


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

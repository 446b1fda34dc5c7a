import numpy as np
import pytest
import torch

from benchmarks.influence.ablations import compare_r2, pool_seeds, summarise, tabulate
from benchmarks.influence.lab import make_case
from benchmarks.influence.published import PROJECTED
from benchmarks.influence.variants import FORWARD, REFERENCE, EpsInsideScorer, project, score_variants
from rubric_influence.influence.directions import validation_gradients
from rubric_influence.influence.gradients import example_gradients
from rubric_influence.influence.layers import flatten
from rubric_influence.influence.moments import match_moments
from rubric_influence.influence.scorers import GradientScorer, open_scorer


@pytest.fixture(scope="module")
def case():
    return make_case(seed=0, warm_up=16, validation=2, candidates=6, epochs=2)


@pytest.fixture(scope="module")
def found(case):
    return score_variants(case, seed=0)


def entry(gains, **means):
    return {"gains": gains, "means": {REFERENCE: gains, **means}}


def test_every_seeds_sets_are_standardised_on_their_own():
    gains, means = pool_seeds([entry([1, 3], other=[5, 3]), entry([100, 500], other=[0, 1])])
    assert gains.tolist() == [-1, 1, -1, 1]
    assert means[REFERENCE].tolist() == [-1, 1, -1, 1] and means["other"].tolist() == [1, -1, -1, 1]


def test_difference_of_r2_is_of_the_same_resamples():
    gains = np.array([1.0, 2, 3, 4])
    perfect, other = (-gains, gains), (np.array([2.0, 1, 3, 4]), gains)  # correlations -1 and 0.8
    difference, (low, high) = compare_r2(perfect, other, seed=0)
    assert difference == pytest.approx(1 - 0.8**2) and 0 <= low < difference < high <= 1
    assert compare_r2(other, other, seed=0) == (0, (0, 0))


def test_summary_holds_each_length_against_its_own_default_and_the_default_against_the_first():
    rng = np.random.default_rng(0)
    gains, noise = rng.normal(size=12), rng.normal(size=12)
    first, second = entry(gains, noise=noise), {"gains": gains, "means": {REFERENCE: noise, "noise": gains}}
    summary = summarise({3: [first], 10: [second]})
    r2 = np.corrcoef(gains, noise)[0, 1] ** 2
    assert summary["3"][REFERENCE]["r2"] == pytest.approx(1) and summary["3"][REFERENCE]["r2_less_reference"] == 0
    assert summary["3"]["noise"]["r2_less_reference"] == pytest.approx(r2 - 1)
    assert summary["10"][REFERENCE]["r2_less_reference"] == pytest.approx(r2 - 1)
    assert summary["10"]["noise"]["r2_less_reference"] == pytest.approx(1 - r2)
    head, _, *rows = tabulate(summary).splitlines()
    assert head.endswith("| R², warm-up of 10 |") and len(rows) == 2
    assert rows[0].startswith(f"| {REFERENCE} | 1.00 (1.00 to 1.00) |") and rows[0].endswith(f"|  | {r2:.2f} |")


def test_projection_keeps_products_in_expectation_and_is_the_seeds():
    vectors = torch.nn.functional.normalize(torch.randn(3, 50, generator=torch.Generator().manual_seed(0)), dim=1)
    found = project(vectors, 8192, seed=1)
    assert found.shape == (3, 8192) and found.equal(project(vectors, 8192, seed=1))
    assert not found.equal(project(vectors, 8192, seed=2))
    products = (vectors @ vectors.T).double()
    assert torch.allclose(found @ found.T, products, atol=0.05)  # deviation at most sqrt(2 / 8192) = 0.016


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("corrected", [False, True])
def test_eps_inside_is_the_published_formula(case, corrected, momentum):
    moments = match_moments(case.moments, case.model)
    direction = validation_gradients(case.model, case.validation, None, 4096)["all"]
    settings = {"momentum": momentum, "batch_tokens": 4096}
    found = EpsInsideScorer(case.model, direction[None], moments, corrected=corrected, **settings)
    g = example_gradients(case.model, case.candidates, 4096).double()
    m, v = flatten(moments.exp_avg).double() * momentum, flatten(moments.exp_avg_sq).double()
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    if corrected:
        m, v = m / (1 - 0.9 ** (moments.step + 1)), v / (1 - 0.999 ** (moments.step + 1))
    expected = torch.cosine_similarity(m / (v + 1e-8).sqrt(), direction.double()[None])
    assert torch.allclose(found.score(case.candidates)[:, 0].double(), expected, atol=1e-5)
    outside = GradientScorer(case.model, direction[None], moments, **settings).score(case.candidates)[:, 0]
    assert not torch.allclose(outside.double(), expected, atol=1e-3)


def test_every_variant_scores_every_candidate_and_no_two_alike(found):
    assert len(found) == 15
    for name, scores in found.items():
        assert scores.shape == (6,) and np.isfinite(scores).all() and np.ptp(scores) > 0, name
    assert not [{a, b} for a in found for b in found if a < b and np.allclose(found[a], found[b], rtol=1e-5)]
    assert np.abs(found[f"projected to {PROJECTED}"] - found[REFERENCE]).max() < 0.06  # the noise is 0.011


def test_variants_are_what_the_scorers_give(case, found):
    def score(topics, estimator="adam", momentum=False, normalise=True):
        directions = torch.stack(list(validation_gradients(case.model, case.validation, topics, 4096).values()))
        settings = {"momentum": momentum, "normalise": normalise, "batch_tokens": 4096}
        scorer = open_scorer(estimator, case.model, directions, case.moments, **settings)
        return scorer.score(case.candidates).mean(dim=1).numpy()

    assert np.allclose(found[REFERENCE], score(None), atol=1e-5)
    assert np.allclose(found["with momentum"], score(None, momentum=True), atol=1e-5)
    assert np.allclose(found["mean over topics"], score(case.topics), atol=1e-5)
    assert np.allclose(found["gradient"], score(None, "gradient"), atol=1e-5)
    assert np.allclose(found["linear, dot product"], score(None, "linear", normalise=False), rtol=1e-3, atol=1e-2)
    assert np.allclose(found[FORWARD], found["linear, dot product"], rtol=0.02, atol=1e-2)

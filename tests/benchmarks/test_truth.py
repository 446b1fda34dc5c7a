import numpy as np
import pytest

from benchmarks.influence import truth
from benchmarks.influence.fidelity import BATCH_TOKENS, NEAR
from benchmarks.influence.lab import make_case
from benchmarks.influence.truth import BEST_BY, LINEAR, POOL, RANDOM_SETS, REFERENCE, WHOLE
from rubric_influence.influence.checks.retraining import Retraining


@pytest.fixture(scope="module", autouse=True)
def few():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"SETS": 2, "TENTHS": 2, "DRAWS": 2, "SET_SIZE": 4, "SHARES": (0.1, 0.3)}.items():
            patch.setattr(truth, name, value)
        yield


@pytest.fixture(scope="module")
def case():
    return make_case(seed=0, warm_up=16, validation=2, candidates=10, epochs=2)


@pytest.fixture(scope="module")
def scores(case):
    return truth.score_candidates(case, seed=0)


def test_every_score_is_of_every_candidate_and_no_two_are_alike(scores):
    for name, values in scores.items():
        assert values.shape == (10,) and np.isfinite(values).all() and np.ptp(values) > 0, name
    assert not [{a, b} for a in scores for b in scores if a < b and np.allclose(scores[a], scores[b], rtol=1e-5)]
    # near the checkpoint all first-order scores of the same losses are about the same thing
    together = np.corrcoef([scores[name] for name in (RANDOM_SETS, POOL, LINEAR, "one real step")])
    assert together.min() > 0.3


def test_sets_are_predicted_by_their_means(case, scores):
    found = truth.measure_sets(case, scores, seed=0)
    assert len(found["gains"]) == 2 and found["means"].keys() == scores.keys()
    for name, means in found["means"].items():
        assert min(scores[name]) < min(means) < max(means) < max(scores[name])


def test_what_is_left_out_is_weighed_0_in_the_training_on_the_whole_pool(case, scores):
    found = truth.measure_tenths(case, scores, seed=0)
    retraining = Retraining(case.model, case.moments, case.held_out, WHOLE, batch_tokens=BATCH_TOKENS)
    assert found["whole"] == retraining.gain(case.candidates, 0)
    assert found["best"].keys() == found["random"].keys() == {"0.1", "0.3"}
    assert found["random"]["0.3"] == found["gains"] and len(set(found["gains"])) == 2
    best = scores[REFERENCE].argmax()
    weights_n = truth.torch.ones(10)
    weights_n[best] = 0
    assert found["best"]["0.1"][REFERENCE] == found["whole"] - retraining.gain(case.candidates, 0, weights_n)
    assert list(found["best"]["0.3"]) == list(BEST_BY)


def test_summaries_pool_seeds_and_hold_each_score_against_influence():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, 8))
    entries = [
        {
            "gains": gains,
            "means": {REFERENCE: -gains, "noise": other},
            "best": {"0.01": {REFERENCE: seed + 1.0, "noise": 0.5}},
            "random": {"0.01": [0.001, 0.003]},
        }
        for seed, (gains, other) in enumerate(zip(rng.normal(size=(2, 8)), noise, strict=True))
    ]
    summary = truth.summarise_agreement(entries)
    assert summary[REFERENCE]["r2"] == pytest.approx(1) and summary[REFERENCE]["spearman"] == pytest.approx(-1)
    assert summary[REFERENCE]["r2_less_reference"] == 0 and summary["noise"]["sets"] == 16
    assert summary["noise"]["r2_less_reference"] == pytest.approx(summary["noise"]["r2"] - 1)
    rows = truth.tabulate_agreement(summary).splitlines()
    assert rows[2].startswith(f"| {REFERENCE} | 1.00 (1.00 to 1.00) | -1.00") and rows[2].endswith("|  |")
    best = truth.summarise_best(entries)
    assert best["0.01"]["by_score"][REFERENCE] == [1, 2] and best["0.01"]["random_mean"] == pytest.approx([0.002] * 2)
    assert truth.tabulate_best(best).splitlines() == [
        "| left out, best by | 1 % |",
        "| --- | --- |",
        f"| {REFERENCE} | 1500.00 |",
        "| noise | 500.00 |",
        "| random ones, with their deviation | 2.00 ± 1.41 |",
    ]


def test_both_trainings_are_alike_but_for_their_length():
    assert (WHOLE.batch_size, WHOLE.learning_rate) == (NEAR.batch_size, NEAR.learning_rate)

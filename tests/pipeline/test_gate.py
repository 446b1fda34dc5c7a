"""The gate: its verdict on tables made by hand, and the sets of a small real warm-up."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rubric_influence.core.files import write_records
from rubric_influence.core.paths import EXAM, GATE, INFLUENCE, WARMUP, seed_folder
from rubric_influence.core.scratch import Workplace
from rubric_influence.influence.checks.retraining import Retraining
from rubric_influence.pipeline.stages.corpus import build_corpus
from rubric_influence.pipeline.stages.gate import judge_gate, pass_gate, tabulate_agreement, train_sets
from rubric_influence.rl.scores import stack_scores
from rubric_influence.rl.scoring import TargetScorer
from rubric_influence.training.fine_tuning import TuningRun, fine_tune


def make_sets(noise, seeds=(0, 1), count=24):
    """Sets whose gain is their influence, on a scale of each seed's own, plus noise; the baselines are unrelated."""
    rng = np.random.default_rng(0)
    tables = []
    for seed in seeds:
        influence = rng.normal(size=count)
        gain = (influence + noise * rng.normal(size=count)) * 10**seed + 5 * seed
        baselines = {name: rng.normal(size=count) for name in ("similarity", "lexical", "loss")}
        tables.append(pd.DataFrame(dict(seed=seed, influence=influence, **baselines, gain=gain)))
    return pd.concat(tables, ignore_index=True)


@pytest.fixture
def gate_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    GATE.mkdir(parents=True)


def test_a_reward_that_predicts_gain_passes_and_seeds_need_no_common_scale(lab_config, gate_folder):
    config = lab_config()
    summary = judge_gate(config, make_sets(noise=0.3))
    assert summary["passed"] and summary["sets"] == 48
    assert summary["influence"]["spearman"] > 0.9 > 0.5 > summary["similarity"]["r2"]
    assert pass_gate(config, summary).startswith("Passed: over 48 sets")
    assert json.loads((GATE / "decision.json").read_text()) == {"go_on": True}


def test_a_reward_that_predicts_nothing_stops_the_run_and_says_what_to_do(lab_config, gate_folder):
    config = lab_config()
    summary = judge_gate(config, make_sets(noise=50.0))
    assert not summary["passed"]
    with pytest.raises(RuntimeError, match="does not predict gain: over 48 sets, .* above 0.*set gate.override: true"):
        pass_gate(config, summary)
    assert not (GATE / "decision.json").exists()


def test_a_reward_that_predicts_the_opposite_does_not_pass(lab_config):
    table = make_sets(noise=0.3)
    assert not judge_gate(lab_config(), table.assign(gain=-table["gain"]))["passed"]


def test_the_threshold_and_the_override_are_parameters(lab_config, gate_folder):
    table = make_sets(noise=0.3)
    strict = lab_config({"gate": {"threshold": 0.99}})
    with pytest.raises(RuntimeError, match="above 0.99"):
        pass_gate(strict, judge_gate(strict, table))
    overridden = lab_config({"gate": {"threshold": 0.99, "override": True}})
    assert pass_gate(overridden, judge_gate(overridden, table)).startswith("**Overridden**")
    assert (GATE / "decision.json").exists()


def test_the_table_has_a_row_for_influence_and_one_for_each_that_it_has_to_beat(lab_config):
    shown = tabulate_agreement(judge_gate(lab_config(), make_sets(noise=0.3)))
    assert list(shown.index) == ["influence", "embedding similarity", "BM25", "the pair's own loss"]
    assert list(shown.columns) == ["r2", "r2_ci95", "spearman", "spearman_ci95"]


def test_a_baseline_that_is_the_same_for_all_sets_explains_nothing_and_influence_must_differ(lab_config):
    table = make_sets(noise=0.3)
    summary = judge_gate(lab_config(), table.assign(lexical=0.0))
    assert summary["passed"] and summary["lexical"] == {
        "r2": 0.0, "r2_ci95": [0.0, 0.0], "spearman": 0.0, "spearman_ci95": [0.0, 0.0]
    }  # fmt: skip
    with pytest.raises(ValueError, match="all predictions are 0"):
        judge_gate(lab_config(), table.assign(influence=0.5))


@pytest.fixture
def scored(lab_config, draw_pairs, gate_folder):
    """A profile, and on disk what the gate reads of seed 0: exam, warm-up, and the scores of 12 pairs, 4 trained on."""
    config = lab_config({"gate": {"sets": 8, "set_size": 3, "epochs": 1}, "lora": {"r": 4, "alpha": 8}})
    pairs = draw_pairs(12)
    write_records(EXAM, build_corpus(config.corpus).exam)
    warmup = seed_folder(WARMUP, 0)
    run = TuningRun(config.models.target, config.prompts, config.lora, config.warmup, 0)
    fine_tune(run, pairs[:4], Workplace(warmup, Path("scratch/warmup")))
    scorer = TargetScorer(config, warmup, build_corpus(config.corpus).exam, seed=0)
    texts = [(pair.question, pair.answer) for pair in pairs]
    table = pd.DataFrame(texts, columns=["question", "answer"]).assign(in_warmup=[n < 4 for n in range(12)])
    INFLUENCE.mkdir(parents=True)
    pd.concat(
        [table, pd.DataFrame(stack_scores(scorer(pairs)).numpy(), columns=scorer.directions.names)], axis=1
    ).to_parquet(f"{seed_folder(INFLUENCE, 0)}.parquet")
    return config


def test_sets_are_of_pairs_that_the_warm_up_did_not_see_and_resume_without_training(scored, monkeypatch):
    table = train_sets(scored, 0)
    assert len(table) == 8 and table["gain"].nunique() > 1 and np.isfinite(table["gain"]).all()
    unseen = pd.read_parquet(f"{seed_folder(INFLUENCE, 0)}.parquet").query("not in_warmup")["validation"]
    assert table["influence"].between(unseen.min(), unseen.max()).all()
    assert table.drop(columns="seed").nunique().min() > 1 and (table[["lexical", "loss"]] > 0).all(axis=None)
    monkeypatch.setattr(Retraining, "gain", lambda *_, **__: pytest.fail("trained again"))
    pd.testing.assert_frame_equal(train_sets(scored, 0), table)


def test_too_small_a_pool_is_refused_with_the_parameters_that_decide(scored):
    larger = scored.model_copy(update={"gate": scored.gate.model_copy(update={"set_size": 5})})
    with pytest.raises(ValueError, match="seed 0: 8 samples are too few .*gate.set_size.*budget.initial_pairs"):
        train_sets(larger, 0)

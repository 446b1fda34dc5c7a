"""Times by stage: from rates given by hand, and rates of the lab's own models."""

import dataclasses
import os

import pytest

from rubric_influence.core.config import Config
from rubric_influence.pipeline.plan import make_plan
from rubric_influence.pipeline.rehearsal import Rates, describe_times, estimate_seconds, measure_rates
from rubric_influence.pipeline.stages.corpus import build_corpus

SMALL = {
    "seeds": [0, 1],
    "corpus": {"documents": 10, "dev_documents": 2, "validation_entities": 3, "guard_entities": 3},
    "budget": {"initial_pairs": 3, "final_pairs": 5},
    "warmup": {"fraction": 0.5, "epochs": 3, "batch_size": 4},
    "influence": {"clusters": 6},
    "gate": {"sets": 8, "set_size": 5, "epochs": 2, "batch_size": 3},
    "rl": {"steps": 7, "documents_per_step": 2, "group_size": 2},
    "machine": {"workers": 1, "threads": 1},
}


@pytest.fixture
def config(lab_config) -> Config:
    return lab_config(SMALL)


def test_times_are_those_counted_by_hand(config: Config):
    rates = Rates(start=1, opened=10, rubric=2, pair=3, trained=4, scored=5, examined=6, update=7)
    plan = make_plan(config)
    found = estimate_seconds(config, plan, rates)
    judged = 2 * sum(plan.size[split] for split in ("validation", "guard", "dev"))
    assert found["initial"] == 1 + 2 * 10 + 60 * 2 + 60 * 3
    assert found["warmup"] == 1 + 2 * 15 * 3 * 4
    assert found["influence"] == 1 + (60 + judged) * 5
    assert found["gate"] == pytest.approx(1 + 2 * 8 * 5 * 2 * 4 + 2 * 8 * plan.size["guard"] * 5 / 3)
    assert found["generators"] == 1 + 2 * 10 + judged * 5 + 2 * 7 * 7
    arms = len([stage for stage in plan.stages if stage.startswith("final")])
    assert found["final"] == 1 + 2 * 10 + 3 * 100 * 2 + arms * 100 * (3 + 5) + judged * 5
    assert found["finetuning"] == 1 + arms * 100 * config.finetuning.epochs * 4
    assert found["evaluation"] == 1 + plan.size["test"] * (2 * arms + 1) * 6
    assert describe_times({"initial": 90.0, "warmup": 30.0}).splitlines()[1:] == [
        "initial          1.5",
        "warmup           0.5",
        "all              2.0",
    ]


def test_seeds_side_by_side_share_the_time_where_there_are_cores(config: Config, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    rates, plan = Rates(0, 0, 1, 1, 1, 1, 1, 1), make_plan(config)
    alone = estimate_seconds(config, plan, rates)
    machine = config.machine.model_copy(update={"workers": 3})
    shared = estimate_seconds(config.model_copy(update={"machine": machine}), plan, rates)
    assert all(shared[stage] == alone[stage] / 2 for stage in alone)  # two seeds
    wide = machine.model_copy(update={"threads": 4})
    assert estimate_seconds(config.model_copy(update={"machine": wide}), plan, rates) == alone


def test_every_rate_is_measured_and_nothing_is_left_behind(config: Config, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    rates = measure_rates(config, build_corpus(config.corpus))
    assert all(seconds > 0 for seconds in dataclasses.asdict(rates).values())
    assert not list(tmp_path.glob("rehearsal-*"))

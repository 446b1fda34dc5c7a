"""Every committed profile loads, validates and can be planned without weights."""

import re
from pathlib import Path

import pytest

from rubric_influence.core.paths import list_arms
from rubric_influence.core.profiles import load_config
from rubric_influence.pipeline.plan import make_plan

ROOT = Path(__file__).parents[2]
PROFILES = [ROOT / "params.yaml", *sorted((ROOT / "conf").glob("*.yaml"))]


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_profile_loads_and_every_stage_is_planned(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    config = load_config(path)
    plan = make_plan(config)
    stages = {name.partition(":")[0] for name in plan.stages}
    assert stages == {"initial", "warmup", "influence", "gate", "generators", "final", "finetuning", "evaluation"}
    for arm in list_arms(config):
        assert {f"final: {arm}", f"finetuning: {arm}"} <= plan.stages.keys()
    assert plan.stages["generators"]["steps"] == config.rl.steps * len(config.seeds)


def test_the_labs_plan_counts_what_its_budget_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    config = load_config("params.yaml")
    plan = make_plan(config)
    documents, seeds = config.corpus.documents, len(config.seeds)
    assert plan.stages["initial"]["pairs"] == documents * config.budget.initial_pairs * seeds
    assert plan.stages["final: optimised"]["pairs"] == documents * config.budget.final_pairs * seeds
    assert plan.stages["final: influence_filtered"]["scored"] == 2 * documents * config.budget.final_pairs * seeds


def test_a_profile_that_a_stage_would_trip_over_cannot_be_planned(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match="tokens"):
        make_plan(load_config("params.yaml", {"synthesis": {"max_prompt_tokens": 20}}))
    with pytest.raises(ValueError, match="nothing-here"):
        make_plan(load_config("params.yaml", {"corpus": {"field": "data/lab/fields/nothing-here.yaml"}}))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"modles": 1}, "  modles: unknown parameter (value 1); did you mean models?"),
        ({"rl": {"stepz": 3}}, "  rl.stepz: unknown parameter (value 3); did you mean steps?"),
        ({"corpus": {"documnts": 3}}, "  corpus.lab.documnts: unknown parameter (value 3); did you mean documents?"),
        ({"rl": {"lora": {"r": 4, "alpha": 4, "target": "x"}}}, "rl.lora.target: .*; did you mean targets?"),
        ({"budget": {"xyz": 1}}, "budget.xyz: .*; there is initial_pairs, final_pairs"),
        (
            {"models": {"teacher": {"endpoint": {"base_url": "http://localhost/v1", "tmeout": 1}}}},
            "did you mean timeout?",
        ),
    ],
)
def test_an_unknown_parameter_is_told_with_the_nearest_of_its_section(changes, line):
    with pytest.raises(ValueError) as caught:
        load_config(ROOT / "params.yaml", changes)
    assert re.search(re.escape(line).replace(r"\.\*", ".*"), str(caught.value))


def test_the_papers_profile_holds_the_papers_numbers():
    config = load_config(ROOT / "conf/paper.yaml")
    assert (config.lora.r, config.lora.alpha, config.lora.targets) == (
        128,
        512,
        ["q_proj", "k_proj", "v_proj", "o_proj"],
    )
    assert (config.rl.temperature, config.rl.group_size, config.rl.kl, config.rl.learning_rate) == (1.5, 5, 0.001, 1e-6)
    assert (config.rl.reward, config.influence.directions, config.influence.momentum) == ("influence", "mean", True)
    assert (config.finetuning.epochs, config.finetuning.learning_rate) == (3, 1e-5)

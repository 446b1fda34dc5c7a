import json
import random
import sys
import time
from dataclasses import replace

import pytest
import torch

from benchmarks.influence import costs, peers, speed
from benchmarks.influence.__main__ import GOALS, begin, describe_machine, list_measurements, list_peers, list_rows
from benchmarks.influence.cases import load_case, save_case
from benchmarks.influence.fidelity import measure_cosine_error, measure_gains, measure_one_step
from benchmarks.influence.lab import BASE, draw_candidates, make_case
from rubric_influence.influence.layers import scored_parameters
from rubric_influence.lab import world
from rubric_influence.models.loading import load_tokenizer

TINY = speed.Size(hidden_size=128, layers=1, vocabulary=64, tokens=12, batch=2, samples=4)


@pytest.fixture(scope="module")
def case():
    return make_case(seed=0, warm_up=16, validation=2, candidates=33)


@pytest.fixture
def tiny():
    return speed.build_workload(TINY, seed=0)


def test_candidates_are_right_of_other_topics_and_with_anothers_answer(medicine):
    def draw(seed):
        rng = random.Random(seed)
        return draw_candidates(medicine, world.draw_entities(medicine, 4, rng), 30, rng)

    assert draw(1) == draw(1) != draw(2)
    assert len(draw(1)) == 30


def test_case_is_a_warmed_up_target_with_questions_about_others_than_the_candidates(case, medicine):
    wordings = sum(len(medicine.attributes[topic].technical) for topic in medicine.exam_topics)
    assert len(case.validation) == len(case.topics) == len(case.held_out) == 2 * wordings
    assert sorted(set(case.topics)) == sorted(medicine.exam_topics) and len(case.candidates) == 33
    assert case.moments.step == 10 and not case.model.training  # ten epochs of one batch
    names = set(load_tokenizer(BASE).convert_tokens_to_ids(medicine.entity_names))
    validation, held_out, candidates = (
        names & {i for example in part for i in example.input_ids}
        for part in (case.validation, case.held_out, case.candidates)
    )
    assert len(validation) == len(held_out) == 2 and candidates
    assert not (validation & held_out or (validation | held_out) & candidates)


def test_the_larger_model_has_20_million_parameters_and_samples_of_256_tokens():
    work = speed.build_workload(speed.Size(samples=1), seed=0)
    assert sum(parameter.numel() for parameter in work.model.parameters()) >= 20e6
    assert [len(example.input_ids) for example in work.examples] == [256]


def test_fidelity_parts_hold_what_the_goals_ask_for(case):
    found = measure_cosine_error(case, count=6) | measure_one_step(case, count=9)
    gains = measure_gains(case, sets=9, far_sets=8)
    assert (found | gains).keys() >= {name for section, name in GOALS if section == "fidelity"}
    assert (gains["gain_sets"], gains["gain_sets_far"]) == (9, 8) and gains["gain_mean"] != gains["gain_mean_far"]
    for prefix in ("", "embedding_"):
        low, high = gains[f"{prefix}gain_r2_ci95"]
        assert 0 <= low <= high <= 1 and 0 <= gains[f"{prefix}gain_r2_far"] <= 1
    assert 0 < found["max_abs_cosine_error_vs_fp64"] <= 1e-5 and found["cosines_compared"] == 12
    assert found["one_step_spearman"] >= 0.99 and found["one_step_candidates"] == 9


def test_speed_parts_hold_their_figures_and_the_lab_has_names_of_its_own(case, tiny):
    lab = speed.use_case(case)
    found = speed.measure_exact(tiny, repeats=1) | speed.measure_exact(lab, repeats=1)
    found |= speed.measure_forward_only(tiny, repeats=1)
    elsewhere = {"memory_over_plain_step", "exact_over_published_path"}
    wanted = {name for section, name in GOALS if section == "speed"} - elsewhere
    assert found.keys() >= wanted | {"exact_over_plain_step_lab", "exact_over_batch1"}
    assert all(value > 0 for value in found.values())


def test_passes_leave_weights_and_no_gradients(tiny):
    before = {name: parameter.clone() for name, parameter in tiny.model.named_parameters()}
    speed.train_without_step(tiny)
    speed.run_forward(tiny)
    speed.open_exact(tiny).score(tiny.examples)
    for name, parameter in tiny.model.named_parameters():
        assert parameter.equal(before[name]) and parameter.grad is None
    assert all(parameter.requires_grad for parameter in scored_parameters(tiny.model).values())


def test_plain_pass_sees_the_batches_that_are_scored(tiny):
    batches = speed.make_batches(tiny)
    assert [batch["input_ids"].shape for batch in batches] == [(2, 12), (2, 12)]
    assert all((batch["labels"][:, 1:] == batch["input_ids"][:, 1:]).all() for batch in batches)


@pytest.mark.skipif(not costs.STATUS.exists(), reason="memory is read from Linux's /proc")
def test_peak_is_what_was_held_at_most_and_given_back():
    def hold(mebibytes):
        block = torch.ones(mebibytes << 18)
        time.sleep(0.1)
        del block

    for mebibytes in (64, 256):
        assert costs.peak_while(lambda size=mebibytes: hold(size)) / 2**20 == pytest.approx(mebibytes, abs=16)


def test_without_traker_the_published_path_is_null(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trak", None)
    monkeypatch.setattr(speed, "PYTHON", tmp_path / "bin/python")
    found = speed.measure_published(tiny, columns=128)
    assert found == {"exact_over_published_path": None, "published_path_samples_per_second": None}


def test_table_says_which_goals_are_met():
    found = {
        "speed": {"exact_over_plain_step": 1.2, "exact_over_batch1_lab": 4.0, "exact_over_batch1": 1.5},
        "fidelity": {"one_step_spearman": 0.999, "gain_r2_ci95": (0.25, 0.75)},
    }
    rows = {name: rest for name, *rest in list_rows(found)}
    assert rows["exact_over_plain_step"] == ["1.2", "<= 1", "NOT MET"]
    assert rows["exact_over_batch1_lab"] == ["4", ">= 4", "met"]
    assert rows["gain_r2_ci95"] == ["0.25 to 0.75", "", ""]
    assert rows["one_step_spearman"] == ["0.999", ">= 0.99", "met"]
    assert rows["memory_over_plain_step"] == ["not measured", "<= 1.05", ""]
    assert rows["exact_over_batch1"] == ["1.5", "", ""]


def test_peers_table_has_ours_beside_each_and_what_went_wrong():
    entry = {"seconds": 2.0, "ours_seconds": 1.0, "ours_over_peer": 0.5, "peak_mib": 30.0}
    found = {
        "ours lab 9": {"peak_mib": 20.0},
        "bergson lab 9": entry | {"estimator": "linear", "max_abs_difference": 2.5e-7},
        "dattri lab 9": {"error": "TimeoutError: it took more than 300 s"},
    }
    assert list_peers({"peers": found})[2:] == [
        "| bergson | lab | 9 | 2 | 1 | 0.5 | 30 | 20 | 2.5e-07 (linear) |",
        "| dattri | lab | 9 | - | - | - | - | 20 | TimeoutError: it took more than 300 s |",
    ]


def test_parts_that_are_not_measured_stay_if_the_machine_is_the_same(tmp_path):
    path, machine = tmp_path / "found.json", {"cpu": "x"}
    path.write_text(json.dumps({"machine": machine, "speed": {"a": 1}, "peers": {"b": 2}, "fidelity": {"c": 3}}))
    expected = {"machine": machine, "speed": {}, "peers": {"b": 2}, "fidelity": {"c": 3}}
    assert begin(path, machine, ["speed"]) == expected
    with pytest.raises(ValueError, match="measure all parts anew"):
        begin(path, {"cpu": "y"}, ["speed"])


def test_a_saved_case_has_the_directions_asked_for_and_the_scores_of_the_model_itself(tiny, tmp_path):
    directions = speed.draw_directions(tiny, 3, seed=0)
    save_case(tmp_path, tiny.model, directions, tiny.moments, tiny.examples, tiny.batch_tokens)
    case = load_case(tmp_path, 2)
    expected = replace(tiny, directions=directions[:2])
    assert torch.allclose(peers.open_ours(case)(), speed.open_exact(expected).score(tiny.examples), atol=1e-6)
    assert list(case.directions) == list(scored_parameters(tiny.model))


def test_passes_take_turns_until_the_limit():
    turns = []
    both = {name: lambda name=name: turns.append(name) for name in "ab"}
    assert all(seconds >= 0 for seconds in costs.time_alternately(both, repeats=2).values())
    assert turns == ["a", "b"] * 2
    costs.time_alternately(both, repeats=5, limit=0)
    assert turns == ["a", "b"] * 3


@pytest.mark.skipif(not peers.PYTHON.exists(), reason="needs `make setup-peers`")
def test_dattri_llm_computes_the_same_score(tiny, tmp_path):
    directions = speed.draw_directions(tiny, 2, seed=0)
    save_case(tmp_path, tiny.model, directions, tiny.moments, tiny.examples, tiny.batch_tokens)
    entry = peers.run_alone("dattri-llm", tmp_path, 2, "time", limit=60)
    assert entry["max_abs_difference"] < 1e-5


def test_without_peers_nothing_of_theirs_is_measured(case):
    kept = list_measurements(TINY, case, seed=0, peers=False)
    every = list_measurements(TINY, case, seed=0, peers=True)
    assert {section for section, _, _ in kept} == {"speed", "fidelity"}
    assert {section for section, _, _ in every} == {"speed", "fidelity", "peers"}


def test_machine_is_described():
    found = describe_machine(threads=1)
    assert found["threads"] == 1 and found["torch"] == torch.__version__ and found["cpu"]
    assert found.keys() == {"cpu", "cores", "threads", "gpu", "torch", "python"}

import random
import sys
import time

import pytest
import torch

from benchmarks.influence import speed
from benchmarks.influence.__main__ import GOALS, describe_machine, list_measurements, list_rows
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


@pytest.mark.skipif(not speed.STATUS.exists(), reason="memory is read from Linux's /proc")
def test_peak_is_what_was_held_at_most_and_given_back():
    def hold(mebibytes):
        block = torch.ones(mebibytes << 18)
        time.sleep(0.1)
        del block

    for mebibytes in (64, 256):
        assert speed.peak_while(lambda size=mebibytes: hold(size)) / 2**20 == pytest.approx(mebibytes, abs=16)


def test_without_traker_the_published_path_is_null(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trak", None)
    monkeypatch.setattr(speed, "PYTHON", tmp_path / "bin/python")
    found = speed.measure_published(tiny, columns=128)
    assert found == {"exact_over_published_path": None, "published_path_samples_per_second": None}


def test_table_says_which_goals_are_met():
    found = {
        "speed": {"exact_over_plain_step": 1.2, "exact_over_batch1_lab": 4.0, "exact_over_batch1": 1.5},
        "fidelity": {"one_step_spearman": 0.999, "gain_r2_ci95": (0.25, 0.75)},
        "peers": {"bergson": {"exact_over_peer": 1.25}, "dattri": {"exact_over_peer": None}},
    }
    rows = {name: rest for name, *rest in list_rows(found)}
    assert rows["exact_over_plain_step"] == ["1.2", "<= 1.15", "NOT MET"]
    assert rows["exact_over_batch1_lab"] == ["4", ">= 4", "met"]
    assert rows["gain_r2_ci95"] == ["0.25 to 0.75", "", ""]
    assert rows["one_step_spearman"] == ["0.999", ">= 0.99", "met"]
    assert rows["memory_over_plain_step"] == ["not measured", "<= 1.2", ""]
    assert rows["exact_over_batch1"] == ["1.5", "", ""]
    assert rows["exact_over_bergson"] == ["1.25", "", ""]
    assert rows["exact_over_dattri"] == ["not measured", "", ""]


def test_without_peers_nothing_of_theirs_is_measured(case):
    kept = list_measurements(TINY, case, seed=0, peers=False)
    every = list_measurements(TINY, case, seed=0, peers=True)
    assert {section for section, _, _ in kept} == {"speed", "fidelity"}
    assert {section for section, _, _ in every} == {"speed", "fidelity", "peers"}


def test_machine_is_described():
    found = describe_machine(threads=1)
    assert found["threads"] == 1 and found["torch"] == torch.__version__ and found["cpu"]
    assert found.keys() == {"cpu", "cores", "threads", "gpu", "torch", "python"}

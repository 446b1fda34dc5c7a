import dataclasses
import json
import random
import sys

import pytest

from benchmarks.influence import medquad
from benchmarks.influence.medquad import HISTORY, MEDQUAD, POOLS, Settings

SETTINGS = Settings(warm_up=40, validation=30, held_out=30, pool=50)
TINY = dataclasses.replace(
    SETTINGS,
    **dict(vocabulary=600, hidden_size=32, layers=1, pretraining_steps=2, pretraining_batch=2, max_tokens=112),
    **dict(warm_up=8, validation=3, held_out=3, pool=8, sets=8, set_size=3, alone_sets=1, epochs=1),
    learning_rates=(1e-3, 1e-4),
)


@pytest.fixture(scope="module")
def folder(real_data):
    return [real_data(name) for name in (MEDQUAD, HISTORY)][0].parents[1]


@pytest.fixture(scope="module")
def subjects(folder):
    return medquad.read_subjects(folder)


@pytest.fixture(scope="module")
def parts(folder, subjects):
    return medquad.divide(subjects, medquad.read_history(folder, random.Random(0)), SETTINGS)


def test_no_two_answers_begin_alike_or_are_short(subjects):
    answers = [answer for pairs in subjects.values() for _, answer in pairs]
    assert len(answers) > 4000 and len({answer[:200] for answer in answers}) == len(answers)
    assert min(len(answer.split()) for answer in answers) == 30


def test_parts_share_no_subject_question_or_answer(subjects, parts):
    subject_of = {pair: subject for subject, pairs in subjects.items() for pair in pairs}
    by_question = {question: subject for (question, _), subject in subject_of.items()}
    drawn = [
        parts.warm_up,
        parts.validation,
        parts.held_out,
        *(parts.pools[name] for name in POOLS if name != "history"),
    ]
    assert [len(part) for part in drawn] == [40, 30, 30, 50, 50, 50]
    named = [by_question[question] for part in drawn for question, _ in part]
    assert len(set(named)) == len(named)
    assert not set(named) & {subject_of[pair] for pair in parts.pretraining}
    trained_on = {answer for _, answer in parts.pretraining}
    assert not any(answer in trained_on for part in drawn for _, answer in part)


def test_in_domain_pairs_are_medquads_own(subjects, parts):
    own = {pair for pairs in subjects.values() for pair in pairs}
    for part in (parts.pools["in_domain"], parts.warm_up, parts.validation, parts.held_out, parts.pretraining):
        assert set(part) <= own


def test_shuffled_answers_are_another_subjects(subjects, parts):
    own = {pair for pairs in subjects.values() for pair in pairs}
    shuffled = parts.pools["shuffled"]
    assert not own & set(shuffled)
    answer_of = {answer: question for question, answer in own}
    assert {answer_of[answer] for _, answer in shuffled} == {question for question, _ in shuffled}


def test_truncated_answers_are_the_first_words_of_their_own(subjects, parts):
    answers = {}
    for pairs in subjects.values():
        for question, answer in pairs:
            answers.setdefault(question, []).append(answer)
    for question, answer in parts.pools["truncated"]:
        assert len(answer.split()) == SETTINGS.truncated_words
        assert any(whole.startswith(answer + " ") for whole in answers[question])


def test_history_asks_for_each_heading_once_and_never_an_introduction(parts):
    questions = [question for question, _ in parts.pools["history"]]
    assert len(set(questions)) == 50
    assert "What is known about Introduction ?" not in questions


def test_other_seeds_draw_other_parts(folder, subjects, parts):
    history = medquad.read_history(folder, random.Random(0))
    assert medquad.divide(subjects, history, SETTINGS) == parts
    other = medquad.divide(subjects, history, dataclasses.replace(SETTINGS, seed=1))
    assert set(other.held_out) != set(parts.held_out)


def test_cut_answers_have_no_end_and_truncated_ones_do(parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = medquad.load_tokenizer(medquad.pretrain(parts.pretraining[:200], TINY))
    end = tokenizer.eos_token_id
    whole = medquad.encode_all(tokenizer, parts.pools["in_domain"], TINY)
    cut = [example for example in whole if len(example.labels) == TINY.max_tokens]
    assert len(cut) > 25 and all(end not in example.labels for example in cut)
    assert all(end in e.labels for e in medquad.encode_all(tokenizer, parts.pools["truncated"], SETTINGS))


def test_all_is_measured_and_the_pretrained_model_is_kept(folder, subjects, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parts = medquad.divide(subjects, medquad.read_history(folder, random.Random(0)), TINY)
    parts = dataclasses.replace(parts, pretraining=parts.pretraining[:200])
    found = medquad.measure(parts, TINY)
    assert list(found["pools"]) == list(POOLS)
    assert all(list(pool["gain"]) == ["0.001", "0.0001", "single"] for pool in found["pools"].values())
    assert -1 <= found["gradients_cosine"] <= 1
    assert all(abs(pool["influence"]) <= 1 >= abs(pool["influence_on_held_out"]) for pool in found["pools"].values())
    assert found["other_rates"].keys() == {"0.0001"}
    for figures in (found, found["other_rates"]["0.0001"]):
        for draw in ("uniform", "in_domain"):
            assert figures[draw]["sets"] == 8
            for predictor in ("influence", "similarity"):
                low, high = figures[draw][predictor]["r2_ci95"]
                assert 0 <= low <= high <= 1 and -1 <= figures[draw][predictor]["spearman"] <= 1
    written = json.dumps(found)
    assert json.loads(written) == found and not any(question in written for question, _ in parts.held_out)
    assert len(medquad.list_rows(found)) == 9
    (kept,) = tmp_path.glob("scratch/medquad/*")
    stamp = (kept / "done").stat().st_mtime_ns
    medquad.pretrain(parts.pretraining, TINY)
    assert (kept / "done").stat().st_mtime_ns == stamp


def test_too_few_subjects_are_refused_with_their_number(subjects):
    with pytest.raises(ValueError, match=r"3 subjects .* more than 250"):
        medquad.divide(dict(list(subjects.items())[:3]), [("q", "a")] * 50, SETTINGS)


def test_a_folder_without_the_data_ends_with_a_message(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["medquad", "--data", str(tmp_path), "--json", str(tmp_path / "out.json")])
    with pytest.raises(SystemExit) as stopped:
        medquad.main()
    assert f"no {MEDQUAD} in {tmp_path}" in str(stopped.value.code)  # a text: printed, exit status 1
    assert not (tmp_path / "out.json").exists()

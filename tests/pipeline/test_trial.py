import json

import pytest

from rubric_influence.pipeline.stages.corpus import build_corpus
from rubric_influence.pipeline.trial import describe_trial, try_set

SMALL = {"seeds": [0, 1], "machine": {"workers": 1}, "finetuning": {"epochs": 12, "batch_size": 4}}


def test_a_set_of_the_exams_own_answers_gains_and_a_stopped_trial_goes_on(lab_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = lab_config(SMALL)
    learnt = [item for item in build_corpus(config.corpus).exam if item.split == "test"]
    rows = [{"id": item.id, "question": item.question, "answer": item.answer} for item in learnt]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = try_set(config, tmp_path / "pairs.jsonl")
    assert found["arms"]["set"]["gain_over_untuned"]["mean"] > 0.3
    assert found["measures"]["answer_nats"]["arms"]["set"]["gain_over_untuned"]["ci95"][0] > 0
    shown = describe_trial(found).splitlines()
    assert shown[0].startswith(f"{len(rows)} pairs;") and shown[1].startswith("accuracy %: ")
    stamp = [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("adapter_model.safetensors"))]
    assert try_set(config, tmp_path / "pairs.jsonl") == found and len(stamp) == 2
    assert stamp == [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("adapter_model.safetensors"))]


def test_what_is_no_set_is_refused(lab_config, tmp_path):
    with pytest.raises(ValueError, match=r"no \*.parquet in"):
        try_set(lab_config(), tmp_path)
    (tmp_path / "other.jsonl").write_text('{"id": "a", "question": "what ?"}\n')
    with pytest.raises(ValueError, match="no answer; its keys are"):
        try_set(lab_config(), tmp_path / "other.jsonl")

"""The corpus stage refuses what a later stage would trip over."""

import pytest

from rubric_influence.pipeline.stages.corpus import make_corpus


def test_a_pair_that_training_would_cut_is_refused_before_anything_is_spent(lab_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"warmup.max_tokens is 60, but a pair may take 6\d tokens"):
        make_corpus(lab_config({"warmup": {"max_tokens": 60}}))


def test_a_document_longer_than_the_prompt_limit_is_refused_with_its_length(lab_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="prompts longer than 30 tokens"):
        make_corpus(lab_config({"synthesis": {"max_prompt_tokens": 30}}))


def test_an_embedder_that_is_none_is_refused_before_anything_is_spent(lab_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = lab_config()
    quality = {"embedder": config.models.target.path}
    with pytest.raises(ValueError, match="medicine-qwen3 has no modules.json, so it is no model of sentence-transf"):
        make_corpus(lab_config({"quality": quality}))
    assert not list(tmp_path.iterdir())

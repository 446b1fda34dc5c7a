"""The rubric generator's warm start, on a tiny random model."""

import json

import pytest

from rubric_influence.models.chat import encode_prompts
from rubric_influence.models.examples import IGNORED, encode
from rubric_influence.models.loading import load_model, load_tokenizer
from rubric_influence.models.losses import sweep_losses
from rubric_influence.pipeline.stages.corpus import build_corpus
from rubric_influence.synthesis.prompts import ask_rubric
from rubric_influence.training.warm_start import make_generator, write_samples

SEEDS = ["Ask which term fits.", "Ask why it is so."]


@pytest.fixture
def configure(lab_config, subword_model, tmp_path, monkeypatch):
    """A function from seed rubrics to a profile whose generator is made in a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    spec = {"dtype": "float32", "attention": "eager"}

    def make(rubrics):
        warm_start = {
            "base": spec | {"path": str(subword_model)},
            "rubrics": rubrics,
            "rubrics_per_document": 4,
            "epochs": 12,
            "batch_size": 4,
        }
        warm_start |= {"learning_rate": 0.01, "max_tokens": 512}
        generator = spec | {"path": str(tmp_path / "generator")}
        return lab_config({"warm_start": warm_start, "models": {"rubric_generator": generator}})

    return make


def test_samples_deal_the_seed_rubrics_out_under_the_prompt_of_generation(configure):
    config = configure(SEEDS)
    documents, tokenizer = build_corpus(config.corpus).documents, load_tokenizer(config.warm_start.base)
    samples = write_samples(config, documents)
    dealt = [json.loads(sample.answer)["rubric"] for sample in samples]
    assert len(samples) == 4 * len(documents) and dealt.count(SEEDS[0]) == dealt.count(SEEDS[1])
    prompts = encode_prompts(tokenizer, [ask_rubric(config.prompts, document.text) for document in documents])
    for place, sample in enumerate(samples):
        example = encode(tokenizer, sample.question, sample.answer)
        asked = example.input_ids[: sum(label == IGNORED for label in example.labels)]
        assert asked == prompts[place // 4][: len(asked)] and len(prompts[place // 4]) - len(asked) <= 1


def test_the_generator_finds_the_seed_rubrics_likely_and_is_made_once(configure):
    config = configure(SEEDS)
    documents = build_corpus(config.corpus).documents
    assert make_generator(config, documents)
    nats = {}
    for name, spec in (("base", config.warm_start.base), ("made", config.models.rubric_generator)):
        tokenizer = load_tokenizer(spec)
        examples = [encode(tokenizer, sample.question, sample.answer) for sample in write_samples(config, documents)]
        nats[name] = sweep_losses(load_model(spec), examples, 4000).mean().item()
    assert nats["made"] < 0.7 * nats["base"]
    assert not make_generator(config, documents)


def test_a_folder_made_of_something_else_is_refused(configure, tmp_path):
    config = configure(SEEDS)
    (tmp_path / "generator").mkdir()
    with pytest.raises(ValueError, match="made of something else"):
        make_generator(config, build_corpus(config.corpus).documents)


def test_a_profile_without_the_section_is_refused(lab_config):
    with pytest.raises(ValueError, match="no section warm_start"):
        make_generator(lab_config(), [])

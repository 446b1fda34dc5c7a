import random

import pytest
import torch

from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.engines.base import Sampling
from rubric_influence.engines.open import open_engine
from rubric_influence.lab import world
from rubric_influence.lab.networks import build_model, build_tokenizer, list_words
from rubric_influence.lab.pretraining import draw_example
from rubric_influence.models.loading import load_model, load_tokenizer
from rubric_influence.synthesis.parsing import parse_pair, parse_rubric
from rubric_influence.synthesis.prompts import ask_answer, ask_pair, ask_rubric


@pytest.fixture(scope="module")
def shipped(lab_config):
    """The repository's trained base model, as its profile's teacher."""
    return open_engine(lab_config().models.teacher, batch_size=64)


def draw_documents(field, count, seed):
    rng = random.Random(seed)
    entities = world.draw_entities(field, count, rng)
    return entities, [world.write_document(field, entity, rng) for entity in entities], rng


def test_the_chat_template_frames_turns_by_words(medicine):
    tokenizer = build_tokenizer(medicine)
    turns = [{"role": "user", "content": "the dose"}, {"role": "assistant", "content": "a drug ."}]
    prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    assert prompt.split() == ["<|user|>", "the", "dose", "<|end|>", "<|assistant|>"]
    assert whole.split() == [*prompt.split(), "a", "drug", ".", "<|end|>"]


def test_the_vocabulary_depends_on_the_field_alone(medicine):
    assert list_words(medicine) == sorted(set(list_words(medicine)))
    assert build_tokenizer(medicine).get_vocab() == build_tokenizer(medicine).get_vocab()


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_a_family_has_its_own_architecture_and_seeded_weights(medicine, family):
    tokenizer = build_tokenizer(medicine)
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(build_model(tokenizer, family, hidden_size=16, layers=2))
    assert models[0].config.model_type == family
    assert models[0].get_input_embeddings().weight is models[0].get_output_embeddings().weight
    for name, weight in models[0].state_dict().items():
        assert torch.equal(weight, models[1].state_dict()[name]), name


def test_the_default_size_is_about_a_million_parameters(medicine):
    count = build_model(build_tokenizer(medicine)).num_parameters()
    assert 0.8e6 < count < 1.1e6


def test_an_unknown_family_is_refused_with_those_that_there_are(medicine):
    with pytest.raises(ValueError, match=r"family is 'gpt'; the lab builds \['qwen3', 'llama'\]"):
        build_model(build_tokenizer(medicine), "gpt")


def test_the_shipped_tokenizer_is_the_one_that_its_field_gives(lab_config, medicine):
    shipped = load_tokenizer(lab_config().models.target)
    assert shipped.get_vocab() == build_tokenizer(medicine).get_vocab()
    assert shipped.chat_template == build_tokenizer(medicine).chat_template


def test_the_profiles_prompts_are_those_that_the_base_model_was_trained_on(lab_config, medicine):
    prompts, rng = lab_config().prompts, random.Random(0)
    trained = [draw_example(medicine, rng, most_facts=8)[0] for _ in range(200)]
    for prompt in trained:
        if " facts : " in prompt:
            continue
        if not prompt.startswith("document : "):
            assert ask_answer(prompts, prompt)[0]["content"] == prompt
            continue
        document, _, rest = prompt.removeprefix("document : ").partition(" rubric : ")
        if prompt.endswith(" rubric :"):
            asked = ask_rubric(prompts, prompt.removeprefix("document : ").removesuffix(" rubric :"))
        elif rest:
            asked = ask_pair(prompts, document, rest.removesuffix(" pair :"))
        else:
            asked = ask_pair(prompts, document.removesuffix(" pair :"), None)
        assert asked[0]["content"] == prompt


def test_nine_of_ten_rubrics_of_the_shipped_model_state_a_choice(shipped, lab_config, medicine):
    _, documents, _ = draw_documents(medicine, 64, seed=1)
    asked = [ask_rubric(lab_config().prompts, document) for document in documents]
    rubrics = [parse_rubric(c.text) for c in shipped.generate(asked, Sampling(0, 32))]
    choices = [world.read_choice(medicine, rubric.text) for rubric in rubrics if not rubric.problem]
    assert sum(choice is not None for choice in choices) >= 0.9 * 64
    # Untrained, it prefers nothing: every kind of question is asked, and no topic makes up half.
    assert {choice.question_type for choice in choices if choice} == set(world.QUESTION_TYPES)
    topics = [choice.topic for choice in choices if choice]
    assert max(topics.count(topic) for topic in topics) < 32


def test_nine_of_ten_pairs_of_the_shipped_model_parse(shipped, lab_config, medicine):
    _, documents, rng = draw_documents(medicine, 64, seed=2)
    rubrics = [world.write_rubric(medicine, world.draw_choice(medicine, rng), rng) for _ in documents]
    asked = [ask_pair(lab_config().prompts, d, r) for d, r in zip(documents, rubrics, strict=True)]
    pairs = [parse_pair(c.text) for c in shipped.generate(asked, Sampling(0, 64))]
    assert sum(not pair.problem for pair in pairs) >= 0.9 * 64


def test_four_of_five_short_answers_of_the_shipped_model_are_the_documents_fact(shipped, lab_config, medicine):
    entities, documents, rng = draw_documents(medicine, 64, seed=3)
    choices = [world.Choice("short answer", rng.choice(medicine.topics), "technical", "concise") for _ in documents]
    asked = [
        ask_pair(lab_config().prompts, document, world.write_rubric(medicine, choice, rng))
        for document, choice in zip(documents, choices, strict=True)
    ]
    pairs = [parse_pair(c.text) for c in shipped.generate(asked, Sampling(0, 64))]
    right = [p.answer == e.facts[c.topic] for p, e, c in zip(pairs, entities, choices, strict=True)]
    assert sum(right) >= 0.8 * 64


def test_the_shipped_weights_hold_no_parameter_that_is_not_finite(lab_config):
    spec = lab_config().models.target
    assert isinstance(spec, ModelSpec) and spec.dtype == "float32"
    assert all(torch.isfinite(weight).all() for weight in load_model(spec).state_dict().values())

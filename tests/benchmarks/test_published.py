import random
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model

from benchmarks.influence.published import PublishedScorer
from rubric_influence.influence.directions import validation_gradients
from rubric_influence.influence.moments import capture_moments
from rubric_influence.influence.scorers import GradientScorer
from rubric_influence.lab import world
from rubric_influence.lab.networks import build_model, build_tokenizer
from rubric_influence.models.examples import collate, encode


def draw_examples(field, tokenizer, count, seed):
    rng = random.Random(seed)
    examples = []
    for _ in range(count):
        entity = world.draw_entity(field, rng.choice(field.entity_names), rng)
        pair = world.write_pair(field, entity, world.draw_choice(field, rng), rng, field.topics)
        examples.append(encode(tokenizer, *pair))
    return examples


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def case(request, medicine):
    """(model, directions, moments, examples): a tiny LoRA model after a few AdamW steps; 18 samples, two flushes."""
    tokenizer = build_tokenizer(medicine)
    torch.manual_seed(0)
    base = build_model(tokenizer, request.param, hidden_size=32, layers=2)
    model = get_peft_model(base, LoraConfig(r=4, lora_dropout=0.1, target_modules="all-linear"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for seed in range(4):
        model(**collate(draw_examples(medicine, tokenizer, 8, seed), pad_token_id=0)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    validation = draw_examples(medicine, tokenizer, 12, seed=9)
    directions = torch.stack(list(validation_gradients(model, validation, ["a"] * 5 + ["b"] * 7, 200).values()))
    moments = capture_moments(model, optimizer, learning_rate=1e-3)
    return model, directions, moments, draw_examples(medicine, tokenizer, 18, seed=5)


@pytest.mark.parametrize("momentum", [True, False])
def test_without_projection_the_batched_scorer_gives_the_same_scores(case, momentum):
    model, directions, moments, examples = case
    batched = GradientScorer(model, directions, moments, momentum=momentum, batch_tokens=300).score(examples)
    published = PublishedScorer(model, directions, moments, momentum=momentum, projection=None).score(examples)
    assert published.shape == (18, 2)
    assert (published - batched).abs().max() < 1e-5


def test_projection_is_unbiased_noise_about_the_exact_score(case):
    # The cosine of vectors projected to D dimensions differs by (1 - cos^2) / sqrt(D) in standard deviation: at
    # most 0.011 at 8192. Five of those bound the largest of 36.
    pytest.importorskip("trak", reason="traker is not installed; `make setup-peers`")
    model, directions, moments, examples = case
    exact = PublishedScorer(model, directions, moments, momentum=False, projection=None).score(examples)
    projected = PublishedScorer(model, directions, moments, momentum=False, projection=8192).score(examples)
    assert 0 < (projected - exact).abs().max() < 5 * 8192**-0.5


def test_without_traker_a_projection_says_what_to_install(case, monkeypatch):
    model, directions, moments, _ = case
    monkeypatch.setitem(sys.modules, "trak.projectors", None)  # import raises ModuleNotFoundError
    with pytest.raises(ModuleNotFoundError, match="make setup-peers"):
        PublishedScorer(model, directions, moments, momentum=False)

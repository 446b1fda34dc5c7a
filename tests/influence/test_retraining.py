import copy

import pytest
import torch
from conftest import draw_examples

from rubric_influence.influence.checks.oracle import one_step_gains
from rubric_influence.influence.checks.retraining import MAX_GRAD_NORM, Recipe, Retraining
from rubric_influence.influence.gradients import example_gradients

TOKENS = 2048


@pytest.fixture
def retraining(warmed, tokenizer):
    model, _, moments = warmed
    held_out = draw_examples(tokenizer, 6, seed=5)
    return Retraining(model, moments, held_out, Recipe(2, 4, 1e-3), batch_tokens=TOKENS)


def test_one_sample_and_one_epoch_is_the_oracles_step(warmed, tokenizer):
    model, _, moments = warmed
    drawn, held_out = draw_examples(tokenizer, 8, seed=2), draw_examples(tokenizer, 6, seed=5)
    norms = example_gradients(model, drawn, TOKENS).norm(dim=1)
    samples = [sample for sample, norm in zip(drawn, norms, strict=True) if norm < MAX_GRAD_NORM]
    assert len(samples) >= 3  # the oracle does not clip
    retraining = Retraining(model, moments, held_out, Recipe(1, 1, 1e-3), batch_tokens=TOKENS)
    gains = [retraining.gain([sample], seed=0) for sample in samples]
    expected = one_step_gains(model, samples, held_out, moments, 1e-3, batch_tokens=TOKENS)
    # fp32 losses are good to some 1e-7
    assert gains == pytest.approx(expected.tolist(), abs=2e-6)
    assert min(map(abs, gains)) > 1e-5


def test_training_on_the_held_out_examples_helps_them(retraining):
    assert retraining.gain(retraining.held_out, seed=0) > 0


def test_every_gain_starts_from_the_same_weights_and_moments(retraining, tokenizer):
    samples = draw_examples(tokenizer, 8, seed=3)
    first = retraining.gain(samples, seed=0)
    retraining.gain(draw_examples(tokenizer, 8, seed=4), seed=1)
    assert retraining.gain(samples, seed=0) == first
    assert retraining.gain(samples, seed=1) != first  # other batches


def test_the_given_model_is_left_as_it_was(warmed, tokenizer):
    model, _, moments = warmed
    before = copy.deepcopy(model.state_dict())
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    samples = draw_examples(tokenizer, 8, seed=3)
    Retraining(model, moments, samples, Recipe(1, 4, 1e-2), batch_tokens=TOKENS).gain(samples, seed=0)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert trainable == [name for name, p in model.named_parameters() if p.requires_grad]


def test_bad_input_is_refused(warmed, tokenizer):
    model, _, moments = warmed
    samples = draw_examples(tokenizer, 4, seed=3)
    with pytest.raises(ValueError, match="no held-out examples"):
        Retraining(model, moments, [], Recipe(1, 4, 1e-3), batch_tokens=TOKENS)
    with pytest.raises(ValueError, match="learning rate above 0"):
        Recipe(1, 4, 0.0)
    with pytest.raises(ValueError, match="diverged; lower it"):
        Retraining(model, moments, samples, Recipe(3, 4, 1e30), batch_tokens=TOKENS).gain(samples, seed=0)

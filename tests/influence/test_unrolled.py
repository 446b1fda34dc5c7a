import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import WORDS, Bigram, draw_examples, make_moments
from torch import nn

from rubric_influence.influence.checks.oracle import AdamCopy, example_losses
from rubric_influence.influence.checks.retraining import MAX_GRAD_NORM, Recipe, Retraining
from rubric_influence.influence.checks.unrolled import unrolled_scores
from rubric_influence.models.examples import Example

WORDINGS = [(0, 1, 2), (2, 1, 0), (2, 0, 0), (0, 2, 1), (2, 2, 1)]


class Steep(Bigram):
    """With gradients so long that some batches' are clipped."""

    def forward(self, **inputs):
        return SimpleNamespace(logits=8 * super().forward(**inputs).logits)


@pytest.fixture(params=[Bigram, Steep])
def bigram(request):
    """In float64."""
    torch.manual_seed(0)
    model = request.param().double()
    moments = make_moments(0.1 * torch.randn(WORDS, WORDS), 0.1 * torch.rand(WORDS, WORDS))
    examples = [Example([a, b, c], [-100, b, c]) for a, b, c in WORDINGS]
    return model, moments, examples, examples[3:]


def train_weighed(model, moments, examples, validation, recipe, seed, weights):
    """The validation loss after torch's own AdamW, and the norms of the batches' gradients."""
    tuned, norms = AdamCopy(model, moments), []
    optimizer = tuned.restart(recipe.learning_rate)
    for rows in recipe.draw_batches(len(examples), seed):
        optimizer.zero_grad()
        losses = example_losses(tuned.model, [examples[row] for row in rows])
        (weights[rows] * losses).mean().backward()
        norms.append(nn.utils.clip_grad_norm_(tuned.parameters.values(), MAX_GRAD_NORM).item())
        optimizer.step()
    with torch.no_grad():
        return example_losses(tuned.model, validation).mean().item(), norms


def test_score_is_the_hand_computed_one():
    # The state and the step are those of test_oracle.py's hand-computed gain: words 0 and 1 with p = 1/2 each, gradient
    # g = (-1/2, 1/2), m^ = (-2/3, 1), v^ = 1, eps 0.5. Gamma has the derivative
    #   (0.5/0.75) / 1.5 - m^ * (0.25 * g / 0.4375) / (1 * 1.5^2):   (4/9 - 16/189, 4/9 - 8/63) = (68/189, 60/189)
    # so Gamma' * g = (-34/189, 30/189). After the step of 0.9 the logits are (0.4, -0.6), p1 = 1 / (1 + e), and
    # grad L_V = (-p1, p1):   s = 0.9 * p1 * (34 + 30) / 189
    model = Bigram().double()
    m, v = torch.zeros(WORDS, WORDS), torch.zeros(WORDS, WORDS)
    with torch.no_grad():
        model.linear.weight.zero_()[2] = -40
    m[0, 0], m[1, 0], v[:2, 0] = -0.5, 1.0, 0.5
    v += 1e-30  # at 0 the root has no derivative
    example = Example([0, 0], [-100, 0])
    scores = unrolled_scores(model, [example], [example], make_moments(m, v), Recipe(1, 1, 0.9), 0, batch_tokens=8)
    assert scores.tolist() == pytest.approx([0.9 * 64 / 189 / (1 + math.e)], rel=1e-12)


@pytest.mark.parametrize("batch_size", [2, 5])
def test_scores_are_the_weights_derivatives_through_all_steps(bigram, batch_size):
    model, moments, examples, validation = bigram
    recipe, step = Recipe(3, batch_size, 0.05), 1e-5
    found = unrolled_scores(model, examples, validation, moments, recipe, 7, batch_tokens=8)
    expected, norms = [], []
    for row in range(len(examples)):
        losses = []
        for sign in (1, -1):
            weights = torch.ones(len(examples), dtype=torch.float64)
            weights[row] += sign * step
            loss, norms = train_weighed(model, moments, examples, validation, recipe, 7, weights)
            losses.append(loss)
        expected.append((losses[1] - losses[0]) / (2 * step))
    assert (max(norms) > MAX_GRAD_NORM) == isinstance(model, Steep)
    # central differences in float64 err by step^2 and by 1e-16 / step
    assert found.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert found.dtype == torch.float64 and found.abs().min() > 1e-6 and found.min() < 0 < found.max()


@pytest.mark.parametrize("bigram", [Bigram], indirect=True)  # nothing is clipped, so the loss is smooth
def test_scores_at_all_weights_sum_to_what_training_gains(bigram):
    model, moments, examples, validation = bigram
    recipe, count = Recipe(3, 2, 0.05), len(examples)
    nodes, shares = np.polynomial.legendre.leggauss(6)  # on [-1, 1]
    total = 0.0
    for node, share in zip((nodes + 1) / 2, shares / 2, strict=True):
        weights_n = torch.full((count,), node)
        scores = unrolled_scores(model, examples, validation, moments, recipe, 7, batch_tokens=8, weights_n=weights_n)
        total += share * scores.sum().item()
    without, trained = (
        train_weighed(model, moments, examples, validation, recipe, 7, torch.full((count,), float(weight)))[0]
        for weight in (0, 1)
    )
    assert without - trained > 1e-3
    assert total == pytest.approx(without - trained, rel=1e-4)  # six nodes


@pytest.mark.parametrize("bigram", [Steep], indirect=True)
def test_where_one_batch_is_clipped_more_of_all_its_samples_changes_nothing(bigram):
    model, moments, examples, validation = bigram
    with torch.no_grad():
        model.linear.weight.mul_(4)
    _, norms = train_weighed(model, moments, examples, validation, Recipe(1, 5, 0.05), 0, torch.ones(5))
    assert min(norms) > MAX_GRAD_NORM
    scores = unrolled_scores(model, examples, validation, moments, Recipe(1, 5, 0.05), 0, batch_tokens=8)
    assert abs(scores.sum()) < 1e-5 * scores.abs().max()  # the norm is divided by with 1e-6 added to it


@pytest.mark.parametrize("bigram", [Bigram], indirect=True)  # nothing is clipped
def test_one_small_step_is_adams_derivative_at_the_batchs_gradient(bigram):
    model, moments, examples, validation = bigram
    rate = 1e-7
    found = unrolled_scores(model, examples, validation, moments, Recipe(1, 5, rate), 0, batch_tokens=8)

    def gradient(example):
        return torch.autograd.grad(example_losses(model, [example]).sum(), model.linear.weight)[0]

    g = torch.stack([gradient(example) for example in examples]).mean(dim=0)
    direction = torch.stack([gradient(example) for example in validation]).mean(dim=0)
    m, v = (part["linear.weight"].double() for part in (moments.exp_avg, moments.exp_avg_sq))
    m, v = (0.5 * m + 0.5 * g) / 0.75, (0.75 * v + 0.25 * g**2) / 0.4375
    slope = (0.5 / 0.75) / (v.sqrt() + 0.5) - m * (0.25 * g / 0.4375) / (v.sqrt() * (v.sqrt() + 0.5) ** 2)
    expected = [rate / 5 * (direction * slope * gradient(example)).sum().item() for example in examples]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_scores_are_those_of_retraining_a_lora_model(warmed, tokenizer):
    model, _, moments = warmed
    examples, validation = draw_examples(tokenizer, 6, seed=2), draw_examples(tokenizer, 6, seed=5)
    recipe, step = Recipe(2, 4, 3e-3), 0.03
    found = unrolled_scores(model, examples, validation, moments, recipe, 3, batch_tokens=300)
    retraining = Retraining(model, moments, validation, recipe, batch_tokens=300)
    for row in range(len(examples)):
        weights = torch.ones(2, len(examples))
        weights[:, row] += torch.tensor([step, -step])
        gains = [retraining.gain(examples, 3, weighed) for weighed in weights]
        # gains are good to some 1e-7, as losses are float32, and the difference to that over 2 * step
        assert found[row].item() == pytest.approx((gains[0] - gains[1]) / (2 * step), abs=1e-5)
    assert found.abs().max() > 1e-3


def test_batches_of_the_validation_do_not_matter_and_the_model_is_left_as_it_was(warmed, tokenizer):
    model, _, moments = warmed
    before, training = copy.deepcopy(model.state_dict()), model.training
    examples, validation = draw_examples(tokenizer, 4, seed=2), draw_examples(tokenizer, 6, seed=5)
    once, again = (
        unrolled_scores(model, examples, validation, moments, Recipe(1, 2, 1e-3), 0, batch_tokens=tokens)
        for tokens in (1, 300)
    )
    assert torch.allclose(once, again, rtol=1e-3) and model.training == training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_wrong_input_is_refused(bigram):
    model, moments, examples, validation = bigram
    settings = dict(recipe=Recipe(1, 2, 0.1), seed=0, batch_tokens=8)
    with pytest.raises(ValueError, match="5 examples and 0 validation examples"):
        unrolled_scores(model, examples, [], moments, **settings)
    with pytest.raises(ValueError, match=r"weights of shape \[3\] for 5 examples"):
        unrolled_scores(model, examples, validation, moments, **settings, weights_n=torch.ones(3))
    with pytest.raises(ValueError, match="0 examples and 2 validation examples"):
        unrolled_scores(model, [], validation, moments, **settings)
    with pytest.raises(
        ValueError, match=r"unrolled score of example 0 is not finite \(1 of 1 are not\).*second moment of 0"
    ):
        still = make_moments(torch.zeros(WORDS, WORDS), torch.zeros(WORDS, WORDS))
        unrolled_scores(model, examples[:1], validation, still, **settings)

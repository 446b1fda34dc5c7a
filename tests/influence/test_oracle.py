import copy
import math

import pytest
import torch
from conftest import WORDS, Bigram, draw_examples, make_moments

from rubric_influence.influence.checks.oracle import mean_loss, one_step_gains
from rubric_influence.influence.directions import validation_gradients
from rubric_influence.influence.moments import AdamMoments, capture_moments
from rubric_influence.influence.scorers import GradientScorer
from rubric_influence.models.examples import Example


@pytest.fixture
def bigram():
    torch.manual_seed(0)
    model = Bigram()
    m, v = 0.1 * torch.randn(WORDS, WORDS), 0.1 * torch.rand(WORDS, WORDS)
    examples = [Example([a, b, c], [-100, b, c]) for a, b, c in [(0, 1, 2), (1, 1, 0), (2, 0, 0), (0, 2, 1)]]
    return model, make_moments(m, v), examples[:3], examples[2:]


def test_gain_is_the_hand_computed_one():
    # The third word has logit -40, as good as none, so after word 0 come the words 0 and 1 with p = 1/2 each.
    # The example 0 -> 0 has gradient (-1/2, 1/2) there. betas (0.5, 0.75), eps 0.5, t = 1: 1 - 0.5^2 = 0.75 and
    # 1 - 0.75^2 = 0.4375.   First:  m -0.5, v 0.5: m' = -0.25 - 0.25 = -0.5, v' = 0.375 + 0.0625 = 0.4375
    #                        Gamma = (-0.5 / 0.75) / (1 + 0.5) = -4/9
    # Second: m 1, v 0.5: m' = 0.5 + 0.25 = 0.75, v' as before, Gamma = (0.75 / 0.75) / 1.5 = 2/3
    # A step of 0.9 makes the logits (0.4, -0.6): the loss of 0 -> 0 falls from log 2 to log(1 + e^-1).
    model = Bigram()
    m, v = torch.zeros(WORDS, WORDS), torch.zeros(WORDS, WORDS)
    with torch.no_grad():
        model.linear.weight.zero_()[2] = -40
    m[0, 0], m[1, 0], v[:2, 0] = -0.5, 1.0, 0.5
    example = Example([0, 0], [-100, 0])
    gains = one_step_gains(model, [example], [example], make_moments(m, v), learning_rate=0.9, batch_tokens=8)
    assert gains.dtype == torch.float64
    assert gains.tolist() == pytest.approx([math.log(2) - math.log(1 + math.exp(-1))], rel=1e-12)


def test_gain_is_the_score_to_first_order_and_the_rest_of_second(bigram):
    model, moments, examples, validation = bigram
    direction = validation_gradients(model, validation, None, batch_tokens=8)["all"][None]
    scorer = GradientScorer(model, direction, moments, momentum=True, normalise=False, batch_tokens=8)
    scores = scorer.score(examples)[:, 0].double()
    errors = []
    for rate in (4e-3, 2e-3):
        gains = one_step_gains(model, examples, validation, moments, rate, batch_tokens=8)
        errors.append((gains - rate * scores).abs())
        assert (errors[-1] < 0.05 * gains.abs()).all()
    assert torch.allclose(errors[0] / errors[1], torch.tensor(4.0).double(), rtol=0.02)


def test_gain_is_that_of_the_training_optimizers_own_next_step(warmed, tokenizer):
    model, optimizer, moments = warmed
    example, *validation = draw_examples(tokenizer, 9, seed=3)
    rate = 1e-3
    (gain,) = one_step_gains(model, [example], validation, moments, rate, batch_tokens=300).tolist()
    live, trained = copy.deepcopy((model, optimizer))  # together, so that one still holds the other's parameters
    for group in trained.param_groups:
        group.update(weight_decay=0.0, lr=rate)
    live.eval()
    before = mean_loss(live, validation, batch_tokens=300)
    ids, labels = torch.tensor([example.input_ids]), torch.tensor([example.labels])
    live(input_ids=ids, labels=labels).loss.backward()
    trained.step()
    assert abs(gain) > 1e-3
    assert gain == pytest.approx(before - mean_loss(live, validation, batch_tokens=300), abs=2e-6)  # fp32


def test_every_gain_is_measured_from_the_same_state(bigram):
    model, moments, examples, validation = bigram
    settings = dict(learning_rate=0.1, batch_tokens=8)
    gains = one_step_gains(model, examples, validation, moments, **settings)
    turned = one_step_gains(model, examples[::-1] + examples, validation, moments, **settings)
    assert turned.tolist() == [*gains.tolist()[::-1], *gains.tolist()]


def test_model_and_optimizer_are_left_bit_for_bit(warmed, tokenizer):
    model, optimizer, _ = warmed
    examples = draw_examples(tokenizer, 3, seed=3)
    moments = capture_moments(model, optimizer, learning_rate=1e-3)

    def state():
        weights = [(p.clone(), p.requires_grad, p.grad) for p in model.parameters()]
        kept = [s[key].clone() for s in optimizer.state.values() for key in ("step", "exp_avg", "exp_avg_sq")]
        held = [t.clone() for part in (moments.exp_avg, moments.exp_avg_sq) for t in part.values()]
        return weights, kept + held, [module.training for module in model.modules()]

    weights, tensors, modes = state()
    one_step_gains(model, examples[:2], examples[2:], moments, 1e-3, batch_tokens=300)
    new_weights, new_tensors, new_modes = state()
    assert all(a.equal(b) for a, b in zip(tensors, new_tensors, strict=True)) and modes == new_modes
    for (old, needed, grad), (new, needs, new_grad) in zip(weights, new_weights, strict=True):
        assert old.equal(new) and old.dtype == new.dtype and needed == needs and grad is new_grad


def test_gains_do_not_change_with_the_batches_of_the_validation(warmed, tokenizer):
    model, _, moments = warmed
    examples = draw_examples(tokenizer, 8, seed=3)
    gains = [
        one_step_gains(model, examples[:2], examples[2:], moments, 1e-3, batch_tokens=tokens) for tokens in (1, 300)
    ]
    assert (gains[0] - gains[1]).abs().max() < 1e-6  # norms and softmax are fp32
    assert gains[0].abs().min() > 1e-4


def test_wrong_input_is_refused(bigram):
    model, moments, examples, validation = bigram
    with pytest.raises(ValueError, match="no validation examples"):
        one_step_gains(model, examples, [], moments, 1e-3, batch_tokens=8)
    for rate in (0.0, math.inf):
        with pytest.raises(ValueError, match=f"learning_rate is {rate}; a step needs a finite one above 0"):
            one_step_gains(model, examples, validation, moments, rate, batch_tokens=8)
    other = AdamMoments(**{**vars(moments), "exp_avg": {"w": torch.ones(1)}, "exp_avg_sq": {"w": torch.ones(1)}})
    with pytest.raises(ValueError, match="the moments are not this model's"):
        one_step_gains(model, examples, validation, other, 1e-3, batch_tokens=8)


def test_gain_that_is_not_finite_is_refused_by_example(bigram):
    model, moments, examples, validation = bigram
    with torch.no_grad():
        model.linear.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"gain of example 0 is not finite \(3 of 3 are not\)"):
        one_step_gains(model, examples, validation, moments, 1e-3, batch_tokens=8)

import copy
import dataclasses

import pytest
import torch
from conftest import LEARNING_RATE, Pair, build_lora_model, draw_examples, warm_up
from peft import LoraConfig, get_peft_model
from scipy.stats import spearmanr
from torch import nn

from rubric_influence.influence.checks.reference import reference_gamma, reference_scores
from rubric_influence.influence.directions import validation_gradients
from rubric_influence.influence.layers import scored_layers, scored_parameters
from rubric_influence.influence.moments import AdamMoments, capture_moments, match_moments
from rubric_influence.influence.scorers import ForwardScorer, GradientScorer, combine, moved, open_scorer
from rubric_influence.lab.networks import build_model
from rubric_influence.models.examples import Example, collate
from rubric_influence.models.losses import sample_losses


@pytest.fixture(scope="module")
def pairs(tokenizer):
    return draw_examples(tokenizer, 20, seed=5)


@pytest.fixture
def scorer(warmed, directions):
    model, _, moments = warmed
    return GradientScorer(model, directions, moments, momentum=True, batch_tokens=300)


@pytest.mark.parametrize(("momentum", "expected"), [(True, [16 / 21, -4 / 5]), (False, [4 / 7, -4 / 15])])
def test_gamma_is_the_hand_computed_one(momentum, expected):
    # After t = 1 step with betas (0.5, 0.75), eps 0.5: 1 - 0.5^2 = 0.75 and 1 - 0.75^2 = 0.4375.
    # First:  m 1, v 2.25, g 3:  m' = 0.5 + 1.5 = 2;  v' = 1.6875 + 2.25 = 3.9375 = 9 * 0.4375
    #         Gamma = (2 / 0.75) / (3 + 0.5) = 16/21;  without momentum (1.5 / 0.75) / 3.5 = 4/7
    # Second: m -2, v 2, g -1:  m' = -1 - 0.5 = -1.5;  v' = 1.5 + 0.25 = 1.75 = 4 * 0.4375
    #         Gamma = (-1.5 / 0.75) / (2 + 0.5) = -4/5;  without momentum (-0.5 / 0.75) / 2.5 = -4/15
    model = get_peft_model(Pair(), LoraConfig(r=1, target_modules=["linear"]))
    a, b = scored_layers(model)
    first = {a: torch.tensor([[1.0]]), b: torch.tensor([[-2.0]])}
    second = {a: torch.tensor([[2.25]]), b: torch.tensor([[2.0]])}
    moments = AdamMoments(first, second, step=1, betas=(0.5, 0.75), eps=0.5, learning_rate=1.0)
    scorer = GradientScorer(model, torch.ones(1, 2), moments, momentum=momentum, batch_tokens=1)
    gradient = torch.tensor([[3.0, -1.0]])
    assert scorer.gamma(gradient.clone(), slice(0, 2))[0].tolist() == pytest.approx(expected, rel=1e-6)
    if momentum:
        m, v = torch.tensor([1.0, -2.0]), torch.tensor([2.25, 2.0])
        assert reference_gamma(gradient[0], m, v, moments).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(
    ("estimator", "momentum"),
    [("adam", True), ("adam", False), ("linear", True), ("linear", False), ("gradient", False)],
)
def test_scores_equal_batch_one_autograd(warmed, pairs, directions, estimator, momentum, normalise):
    model, _, moments = warmed
    settings = dict(momentum=momentum, normalise=normalise)
    fast = open_scorer(estimator, model, directions, moments, batch_tokens=300, **settings).score(pairs)
    slow = reference_scores(model, pairs, directions, match_moments(moments, model), estimator=estimator, **settings)
    assert fast.dtype == torch.float32
    assert (fast - slow).abs().max() < 1e-5 * max(1, slow.abs().max())
    assert slow.std(dim=0).min() > 1e-3  # the samples do differ by more than the tolerance


@pytest.mark.parametrize("batch_tokens", [1, 100, 333, 10_000])
def test_scores_do_not_change_with_batch_tokens(warmed, pairs, directions, scorer, batch_tokens):
    model, _, moments = warmed
    other = GradientScorer(model, directions, moments, momentum=True, batch_tokens=batch_tokens)
    assert torch.allclose(other.score(pairs), scorer.score(pairs), atol=1e-6)


def test_scores_follow_the_order_of_the_examples(scorer, pairs):
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(scorer.score([pairs[i] for i in order]), scorer.score(pairs)[order], atol=1e-6)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.999)], ids=["momentum", "no momentum, both signs"])
def test_positive_score_means_that_the_real_step_lowers_validation_loss(tokenizer, pairs, betas):
    """A step on one pair changes L_V by -lr * <grad L_V, Gamma>, to first order, with the warm-up's Adam state."""
    learning_rate = 1e-4
    model = build_lora_model(tokenizer, "qwen3")
    optimizer = warm_up(model, draw_examples(tokenizer, 48, seed=1), betas=betas)
    moments = capture_moments(model, optimizer, LEARNING_RATE)
    drawn = draw_examples(tokenizer, 80, seed=9)
    validation = sorted(drawn, key=lambda example: len(example.input_ids))[:4]  # a narrow set: pairs differ on it
    direction = validation_gradients(model, validation, None, batch_tokens=300)["all"][None]
    settings = dict(momentum=True, batch_tokens=300, normalise=False)
    scores = GradientScorer(model, direction, moments, **settings).score(pairs)[:, 0]

    def validation_loss(model):
        with torch.no_grad():
            return sample_losses(model, collate(validation, 0)).double().mean().item()

    gains = []
    for pair in pairs:
        stepped, used = copy.deepcopy((model.eval(), optimizer))
        for group in used.param_groups:
            group.update(lr=learning_rate, weight_decay=0.0)
        stepped(**collate([pair], 0)).loss.backward()
        used.step()
        gains.append(validation_loss(model) - validation_loss(stepped))
    gains = torch.tensor(gains)
    assert spearmanr(scores, gains).statistic >= 0.95
    assert torch.equal(scores > 0, gains > 0)
    assert (gains / (learning_rate * scores)).median().item() == pytest.approx(1, abs=0.05)
    if betas[0] == 0:
        assert (scores > 0).any() and (scores < 0).any()


@pytest.mark.parametrize("adapter_dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_models_give_fp32_scores_near_those_of_fp64(warmed, pairs, directions, adapter_dtype):
    model, _, moments = warmed
    model = copy.deepcopy(model).to(torch.bfloat16)
    for factor in scored_layers(model).values():
        factor.to(adapter_dtype)
    fast = GradientScorer(model, directions, moments, momentum=False, batch_tokens=300).score(pairs)
    slow = reference_scores(model, pairs, directions, match_moments(moments, model), momentum=False)
    assert fast.dtype == torch.float32
    assert (fast - slow).abs().max() < 0.01


def test_scores_under_autocast_are_near_those_without(warmed, pairs, scorer):
    with torch.autocast("cpu", torch.bfloat16):
        rough = scorer.score(pairs)
    assert rough.dtype == torch.float32
    assert 0 < (rough - scorer.score(pairs)).abs().max() < 0.01


def state_of(model):
    return (
        [module.training for module in model.modules()],
        [(parameter.requires_grad, parameter.grad is None) for parameter in model.parameters()],
        [len(module._forward_hooks) for module in model.modules()],
    )


def test_model_is_left_as_it_was_and_dropout_is_off(warmed, pairs, scorer):
    model, _, _ = warmed
    model.eval()
    expected = scorer.score(pairs)
    model.train()
    next(iter(scored_layers(model).values())).eval()  # a mixture of modes, which train() would not bring back
    before = state_of(model)
    with torch.no_grad():
        assert torch.equal(scorer.score(pairs), expected)
    assert state_of(model) == before


def test_model_is_left_as_it_was_after_an_error(warmed, pairs, scorer):
    model, _, _ = warmed
    model.train()
    before = state_of(model)
    with pytest.raises(IndexError):
        scorer.score([*pairs, Example([1, 10**6], [-100, 1])])  # no such token
    assert state_of(model) == before
    assert scorer.score(pairs).isfinite().all()


def test_a_score_that_is_not_finite_is_refused_with_its_index(warmed, pairs, directions):
    model, _, moments = warmed
    model = copy.deepcopy(model)
    base = model.get_base_model()
    base.lm_head.weight = nn.Parameter(base.lm_head.weight.detach().clone(), requires_grad=False)
    broken = next(t for t in pairs[13].input_ids if all(t not in p.input_ids for p in pairs if p is not pairs[13]))
    base.model.embed_tokens.weight.data[broken] = float("nan")
    with pytest.raises(ValueError, match=r"score of example 13 is not finite \(1 of 20 are not\); look at its text"):
        GradientScorer(model, directions, moments, momentum=True, batch_tokens=300).score(pairs)


def test_disabled_or_merged_adapter_is_refused(warmed, pairs, directions):
    model, _, moments = warmed
    model = copy.deepcopy(model)
    scorer = GradientScorer(model, directions, moments, momentum=True, batch_tokens=300)
    with model.disable_adapter(), pytest.raises(ValueError, match="adapter of .*q_proj takes no part in the loss; unm"):
        scorer.score(pairs)
    model.merge_adapter()
    with pytest.raises(ValueError, match="takes no part in the loss"):
        scorer.score(pairs)


def test_wrong_directions_moments_and_sizes_are_refused(warmed, pairs, directions):
    model, _, moments = warmed
    size = directions.shape[1]

    def score(directions, moments=moments, batch_tokens=300):
        return GradientScorer(model, directions, moments, momentum=True, batch_tokens=batch_tokens).score(pairs)

    with pytest.raises(ValueError, match=rf"directions have shape \[{size}\]; expected \[directions, {size}\]"):
        score(directions[0])
    with pytest.raises(ValueError, match="direction 1 is not finite"):
        score(torch.stack([directions[0], directions[1] * float("nan")]))
    with pytest.raises(ValueError, match="direction 1 is zero"):
        score(torch.stack([directions[0], directions[1] * 0]))
    first = next(iter(moments.exp_avg))
    without = [{n: t for n, t in held.items() if n != first} for held in (moments.exp_avg, moments.exp_avg_sq)]
    with pytest.raises(ValueError, match=f"no moments for {first}"):
        score(directions, dataclasses.replace(moments, exp_avg=without[0], exp_avg_sq=without[1]))
    with pytest.raises(ValueError, match="batch_tokens is 0"):
        score(directions, batch_tokens=0)
    with pytest.raises(ValueError, match="5 validation examples and 2 groups"):
        validation_gradients(model, pairs[:5], ["a", "b"], batch_tokens=2)
    with pytest.raises(ValueError, match="0 validation examples"):
        validation_gradients(model, [], None, batch_tokens=2)


def test_no_examples_have_no_scores(scorer):
    assert scorer.score([]).shape == (0, 2)


def test_checkpoints_are_weighted_by_learning_rate():
    # eta = 1/4 and 3/4: 0.25 * 4 + 0.75 * 8 = 7;  0.25 * -4 + 0.75 * 0 = -1
    combined = combine([torch.tensor([[4.0], [-4.0]]), torch.tensor([[8.0], [0.0]])], [1e-5, 3e-5])
    assert combined.flatten().tolist() == pytest.approx([7, -1])


def test_checkpoints_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"shapes \[\[2, 1\], \[3, 1\]\] and 2 learning rates"):
        combine([torch.zeros(2, 1), torch.zeros(3, 1)], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"learning rates are \[0.0\]; each must be above 0"):
        combine([torch.zeros(2, 1)], [0.0])


def test_linear_is_the_hand_computed_one():
    # betas (0.5, 0.75), eps 0.5, t = 1: 1 - b1^2 = 0.75 and 1 - b2^1 = 0.25; v 2.25 / 0.25 = 9, so sqrt(9) + 0.5 = 3.5
    # First:  m 1, g 3: m' = 2, Gamma = (2 / 0.75) / 3.5 = 16/21
    # Second: v 4 / 0.25 = 16, so 4 + 0.5 = 4.5; m -2, g -1: m' = -1.5, Gamma = -2 / 4.5 = -4/9
    model = get_peft_model(Pair(), LoraConfig(r=1, target_modules=["linear"]))
    a, b = scored_layers(model)
    first = {a: torch.tensor([[1.0]]), b: torch.tensor([[-2.0]])}
    second = {a: torch.tensor([[2.25]]), b: torch.tensor([[4.0]])}
    moments = AdamMoments(first, second, step=1, betas=(0.5, 0.75), eps=0.5, learning_rate=1.0)
    scorer = GradientScorer(model, torch.ones(1, 2), moments, momentum=True, batch_tokens=1, estimator="linear")
    gamma = scorer.gamma(torch.tensor([[3.0, -1.0]]), slice(0, 2))
    assert gamma[0].tolist() == pytest.approx([16 / 21, -4 / 9], rel=1e-6)


@pytest.mark.parametrize("momentum", [True, False])
def test_forward_only_scores_are_those_of_linear(warmed, pairs, directions, momentum):
    model, _, moments = warmed
    settings = dict(momentum=momentum, batch_tokens=300, normalise=False)
    forward = open_scorer("forward", model, directions, moments, **settings).score(pairs)
    linear = open_scorer("linear", model, directions, moments, **settings).score(pairs)
    assert forward.shape == linear.shape and forward.dtype == torch.float32
    # The error of a central difference at a hundredth of the parameters' norm, against how far samples differ.
    assert (forward - linear).abs().max() < 0.02 * linear.std(dim=0).min()


def test_forward_only_leaves_the_parameters_bit_for_bit(warmed, pairs, directions):
    model, _, moments = warmed
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    ForwardScorer(model, directions, moments, momentum=True, batch_tokens=300).score(pairs)
    with pytest.raises(KeyError), moved(model, torch.ones(directions.shape[1])):
        raise KeyError
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_forward_only_refuses_cosines_and_low_precision(warmed, directions):
    model, _, moments = warmed
    with pytest.raises(ValueError, match="gives dot products, no cosines; set normalise to false"):
        open_scorer("forward", model, directions, moments, momentum=False, batch_tokens=300)
    with pytest.raises(ValueError, match="torch.bfloat16 rounds away; load the model in float32"):
        low = copy.deepcopy(model).to(torch.bfloat16)
        ForwardScorer(low, directions, moments, momentum=False, batch_tokens=300)


def test_forward_only_refuses_dora_whose_norms_training_holds_constant():
    model = get_peft_model(Pair(), LoraConfig(r=1, target_modules=["linear"], use_dora=True))
    ones = {name: torch.ones_like(parameter) for name, parameter in scored_parameters(model).items()}
    moments = AdamMoments(ones, ones, step=1, betas=(0.5, 0.75), eps=0.5, learning_rate=1.0)
    with pytest.raises(ValueError, match="measures DoRA's norms, which training holds constant; use linear"):
        ForwardScorer(model, torch.ones(1, 3), moments, momentum=False, batch_tokens=300)


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("estimator", ["adam", "linear"])
def test_scores_over_full_layers_with_biases_equal_batch_one_autograd(tokenizer, pairs, family, estimator):
    """No adapter: the attention projections, with biases where the family has them, fully fine-tuned."""
    torch.manual_seed(0)
    model = build_model(tokenizer, family, hidden_size=32, layers=2)
    for layer in model.model.layers:
        for name in ("q_proj", "v_proj"):
            old = getattr(layer.self_attn, name)
            setattr(layer.self_attn, name, nn.Linear(old.in_features, old.out_features, bias=True))
    model.requires_grad_(False)
    for layer in model.model.layers:
        layer.self_attn.requires_grad_(True)
    if family == "qwen3":  # norms of queries and keys are no linear layers
        for layer in model.model.layers:
            layer.self_attn.q_norm.requires_grad_(False)
            layer.self_attn.k_norm.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    for start in (0, 8):
        model(**collate(draw_examples(tokenizer, 16, seed=1)[start : start + 8], 0)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moments = capture_moments(model, optimizer, LEARNING_RATE)
    assert any(name.endswith("q_proj.bias") for name in moments.exp_avg)
    directions = validation_gradients(model, draw_examples(tokenizer, 6, seed=9), None, batch_tokens=300)["all"][None]
    fast = open_scorer(estimator, model, directions, moments, momentum=True, batch_tokens=300).score(pairs)
    matched = match_moments(moments, model)
    slow = reference_scores(model, pairs, directions, matched, momentum=True, estimator=estimator)
    assert (fast - slow).abs().max() < 1e-5
    assert slow.std() > 1e-3

import copy

import pytest
import torch
from conftest import Pair, draw_examples
from peft import LoraConfig, get_peft_model

from rubric_influence.influence.api import PairScorer, Target, explain_pair
from rubric_influence.influence.checks.reference import reference_frozen_gamma, reference_gamma
from rubric_influence.influence.directions import validation_gradients
from rubric_influence.influence.layers import scored_layers, scored_parameters
from rubric_influence.influence.moments import AdamMoments, match_moments
from rubric_influence.influence.scorers import GradientScorer, open_scorer
from rubric_influence.influence.tokens import secant_slope, split_score
from rubric_influence.lab.networks import build_model
from rubric_influence.models.examples import IGNORED, Example

STEPS = {"adam": reference_gamma, "linear": reference_frozen_gamma, "gradient": lambda g, *_: g}
ESTIMATORS = [("adam", True), ("adam", False), ("linear", True), ("linear", False), ("gradient", False)]


@pytest.fixture(scope="module")
def pairs(tokenizer):
    return draw_examples(tokenizer, 6, seed=5)


def open_for(warmed, directions, estimator="adam", momentum=False, normalise=False, batch_tokens=300, model=None):
    settings = dict(momentum=momentum, normalise=normalise, batch_tokens=batch_tokens)
    return open_scorer(estimator, model or warmed[0], directions, warmed[2], **settings)


@pytest.mark.parametrize(("momentum", "slope"), [(True, 148 / 1485), (False, 4 / 33)])
def test_the_secants_slope_is_the_hand_computed_one(momentum, slope):
    # After t = 1 step with betas (1/2, 9/16), eps 1/2, m 3, v 175/9: 1 - (1/2)^2 = 3/4, 1 - (9/16)^2 = 175/256.
    # g 15/4:  v' = 9/16 * 175/9 + 7/16 * 225/16 = 175/256 * (16 + 9): the root is 5, and 4 where g = 0
    #          Gamma(g) = ((3/2 + 15/8) / (3/4)) / 5.5 = 9/11,  Gamma(0) = (3/2 / (3/4)) / 4.5 = 4/9
    #          slope = (9/11 - 4/9) / (15/4) = 148/1485;  without momentum ((15/8 / (3/4)) / 5.5) / (15/4) = 4/33
    # g 0:     the derivative, (1/2 / (3/4)) / 4.5 = 4/27
    model = get_peft_model(Pair(), LoraConfig(r=1, target_modules=["linear"]))
    first, second = ({name: torch.full((1, 1), value) for name in scored_layers(model)} for value in (3.0, 175 / 9))
    moments = AdamMoments(first, second, step=1, betas=(1 / 2, 9 / 16), eps=1 / 2, learning_rate=1.0)
    scorer = GradientScorer(model, torch.ones(1, 2), moments, momentum=momentum, batch_tokens=1)
    # GradientScorer divides Gamma's fraction through, which its slope shares.
    assert secant_slope(scorer, torch.tensor([15 / 4, 0.0])).tolist() == pytest.approx([slope, 4 / 27], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("normalise", [False, True], ids=["dot", "cosine"])
@pytest.mark.parametrize(("estimator", "momentum"), ESTIMATORS)
def test_contributions_and_offset_sum_to_the_scores(warmed, directions, pairs, estimator, momentum, normalise, dtype):
    model = warmed[0] if dtype is torch.float32 else copy.deepcopy(warmed[0]).double()
    scorer = open_for(warmed, directions, estimator, momentum, normalise, model=model)
    scores = scorer.score(pairs).double()  # of a padded batch
    for pair, score in zip(pairs, scores, strict=True):
        contributions, offset = split_score(scorer, pair)
        assert contributions.shape == (sum(label != IGNORED for label in pair.labels), 2)
        assert torch.allclose(contributions.sum(dim=0) + offset, score, rtol=1e-5, atol=0)
        assert contributions.std(dim=0).min() > 1e-3 * score.abs().max() or len(contributions) == 1


def token_gradients(model, example, names):
    """[t, d] fp64, by one backward a token."""
    model = copy.deepcopy(model).double().eval()
    parameters = [dict(model.named_parameters())[name].requires_grad_() for name in names]
    logits = model(input_ids=torch.tensor([example.input_ids])).logits[0].log_softmax(dim=1)
    losses = [-logits[place - 1, label] for place, label in enumerate(example.labels) if label != IGNORED]
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


@pytest.mark.parametrize(("estimator", "momentum"), ESTIMATORS)
def test_contributions_equal_one_backward_a_token(warmed, directions, pairs, estimator, momentum):
    model, _, moments = warmed
    held = match_moments(moments, model)
    m, v = (torch.cat([part.flatten() for part in each.values()]).double() for each in (held.exp_avg, held.exp_avg_sq))
    m, gamma = m * momentum, STEPS[estimator]
    scorer = open_for(warmed, directions, estimator, momentum)
    for pair in sorted(pairs, key=lambda pair: len(pair.input_ids))[1:5:2]:
        gradients = token_gradients(model, pair, held.exp_avg)
        g = gradients.mean(dim=0)
        at_rest = gamma(torch.zeros_like(g), m, v, moments)
        slope = torch.where(g == 0, 0.0, (gamma(g, m, v, moments) - at_rest) / g)
        expected = (gradients / len(gradients)) @ (directions.double() * slope).T
        contributions, offset = split_score(scorer, pair)
        assert (contributions - expected).abs().max() < 1e-5 * expected.abs().max()
        assert torch.allclose(offset, directions.double() @ at_rest, rtol=1e-5, atol=1e-12)


def test_the_offset_is_momentums_alone_and_the_same_for_every_pair(warmed, directions, pairs):
    with_momentum = open_for(warmed, directions, momentum=True)
    offsets = [split_score(with_momentum, pair)[1] for pair in pairs[:2]]
    assert torch.equal(*offsets) and offsets[0].abs().min() > 1e-3
    for estimator in ("adam", "linear", "gradient"):
        assert not split_score(open_for(warmed, directions, estimator), pairs[0])[1].any()


def test_contributions_do_not_change_with_batch_tokens(warmed, directions, pairs):
    whole, part = (split_score(open_for(warmed, directions, batch_tokens=n), pairs[0])[0] for n in (1, 10_000))
    assert torch.equal(whole, part)


def test_the_one_token_of_a_sample_contributes_its_score(warmed, directions, pairs):
    ids = pairs[0].input_ids
    for labels in (
        [IGNORED] * (len(ids) - 1) + ids[-1:],
        ids[:2] + [IGNORED] * (len(ids) - 2),
    ):  # the first has no loss
        scorer, example = open_for(warmed, directions), Example(ids, labels)
        contributions, _ = split_score(scorer, example)
        assert contributions.shape == (1, 2)
        assert torch.allclose(contributions[0], scorer.score([example])[0].double(), rtol=1e-5, atol=0)


def test_fused_and_plain_attention_give_the_same(warmed, directions, pairs):
    fused = copy.deepcopy(warmed[0])
    fused.get_base_model().set_attn_implementation("sdpa")  # whose kernels have no forward derivative
    assert {model.config._attn_implementation for model in (warmed[0], fused)} == {"eager", "sdpa"}
    for pair in pairs[:2]:
        plain, other = (split_score(open_for(warmed, directions, model=m), pair)[0] for m in (None, fused))
        assert (other - plain).abs().max() < 1e-5 * plain.abs().max()


def test_bfloat16_models_give_contributions_near_those_of_float32(warmed, directions, pairs):
    rounded = open_for(warmed, directions, model=copy.deepcopy(warmed[0]).to(torch.bfloat16))
    exact, near = (split_score(scorer, pairs[0])[0] for scorer in (open_for(warmed, directions), rounded))
    assert (exact - near).abs().max() < 0.05 * exact.abs().max()


def with_linear_layers(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("o_proj" in name)
    return model


def with_a_shared_layer(model):
    model.model.layers[1].mlp = model.model.layers[0].mlp
    return get_peft_model(model, LoraConfig(target_modules=["up_proj"], init_lora_weights=False))


def with_dora(model):
    return get_peft_model(model, LoraConfig(target_modules=["up_proj"], init_lora_weights=False, use_dora=True))


@pytest.mark.parametrize("prepare", [with_linear_layers, with_a_shared_layer, with_dora, lambda tied: tied])
def test_all_that_is_trained_is_split_and_left_as_it_was(tokenizer, pairs, prepare):
    torch.manual_seed(0)
    model = prepare(build_model(tokenizer, "llama", hidden_size=32, layers=2))
    before = {name: (id(p), p.detach().clone()) for name, p in model.named_parameters(remove_duplicate=False)}
    first, second = ({n: torch.full_like(p, 1e-6) for n, p in scored_parameters(model).items()} for _ in "mv")
    moments = AdamMoments(first, second, step=5, betas=(0.9, 0.999), eps=1e-8, learning_rate=1.0)
    direction = validation_gradients(model, pairs[:3], None, 300)["all"][None]
    scorer = GradientScorer(model, direction, moments, momentum=True, normalise=False, batch_tokens=300)
    contributions, offset = split_score(scorer, pairs[5])
    assert torch.allclose(contributions.sum(dim=0) + offset, scorer.score([pairs[5]])[0].double(), rtol=1e-5, atol=0)
    after = dict(model.named_parameters(remove_duplicate=False))
    assert {name: id(p) for name, p in after.items()} == {name: kept for name, (kept, _) in before.items()}
    assert all(torch.equal(p, before[name][1]) for name, p in after.items())


def test_the_model_is_left_as_it_was(warmed, directions, pairs):
    model = copy.deepcopy(warmed[0]).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    split_score(open_for(warmed, directions, model=model), pairs[0])
    assert model.training and all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.requires_grad and p.grad is None for p in scored_parameters(model).values())


def test_the_forward_estimator_is_refused(warmed, directions, pairs):
    with pytest.raises(ValueError, match="use the estimator linear"):
        split_score(open_for(warmed, directions, "forward"), pairs[0])


class NoForward(torch.autograd.Function):
    """The identity, as a kernel without a forward derivative."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class WrongForward(NoForward):
    @staticmethod
    def jvp(ctx, tangent):
        return 0 * tangent


@pytest.mark.parametrize(
    ("operation", "message"),
    [(NoForward, "without a forward derivative"), (WrongForward, "contributions sum to 0, the gradient's product is")],
)
def test_operations_without_a_right_forward_derivative_are_refused(warmed, directions, pairs, operation, message):
    model = copy.deepcopy(warmed[0])
    model.get_base_model().model.norm.register_forward_hook(lambda module, inputs, output: operation.apply(output))
    with pytest.raises(ValueError, match=message):
        split_score(open_for(warmed, directions, model=model), pairs[0])


def test_a_pairs_explanation_has_a_row_a_token_and_a_column_a_direction(warmed, tokenizer):
    model, _, moments = warmed
    scorer = PairScorer(
        Target(model, tokenizer, moments), [("name the dose .", "10mg"), ("name the color .", "green")], by=["a", "b"]
    )
    pair = ("what is the dose ?", "first , 10mg")
    explained = explain_pair(scorer, pair)
    assert list(explained.tokens.columns) == ["token", "influence", "a", "b"]
    assert list(explained.tokens["token"]) == ["first", ",", "10mg", tokenizer.eos_token]
    found = explained.tokens[scorer.names].sum() + explained.offset
    assert found.tolist() == pytest.approx(scorer.score([pair])[0].tolist(), rel=1e-5)

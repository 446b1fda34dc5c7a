import copy
import dataclasses

import pytest
import torch
from conftest import LEARNING_RATE, build_lora_model, draw_examples, warm_up
from peft import LoraConfig, get_peft_model
from scipy.stats import spearmanr
from sklearn.cluster import KMeans
from torch import nn

from rubric_influence.influence.exact import (
    Scorer,
    cluster_directions,
    combine,
    example_gradients,
    sample_losses,
    tapped,
    validation_gradients,
)
from rubric_influence.influence.examples import Example, collate
from rubric_influence.influence.moments import AdamMoments, capture_moments, lora_factors, match_moments
from rubric_influence.influence.reference import reference_gamma, reference_gradient, reference_scores


@pytest.fixture(scope="module")
def pairs(tokenizer):
    return draw_examples(tokenizer, 20, seed=5)


@pytest.fixture(scope="module")
def directions(warmed, tokenizer):
    model, _, _ = warmed
    gradients = validation_gradients(model, draw_examples(tokenizer, 12, seed=9), ["a"] * 5 + ["b"] * 7, batch_size=5)
    return torch.stack(list(gradients.values()))


@pytest.fixture
def scorer(warmed, directions):
    model, _, moments = warmed
    return Scorer(model, directions, moments, momentum=True, batch_size=7)


class Pair(nn.Module):
    """LoRA of rank 1 on one number: two parameters."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)


@pytest.mark.parametrize(("momentum", "expected"), [(True, [16 / 21, -4 / 5]), (False, [4 / 7, -4 / 15])])
def test_gamma_is_the_hand_computed_one(momentum, expected):
    # After t = 1 step with betas (0.5, 0.75), eps 0.5: 1 - 0.5^2 = 0.75 and 1 - 0.75^2 = 0.4375.
    # First:  m 1, v 2.25, g 3:  m' = 0.5 + 1.5 = 2;  v' = 1.6875 + 2.25 = 3.9375 = 9 * 0.4375
    #         Gamma = (2 / 0.75) / (3 + 0.5) = 16/21;  without momentum (1.5 / 0.75) / 3.5 = 4/7
    # Second: m -2, v 2, g -1:  m' = -1 - 0.5 = -1.5;  v' = 1.5 + 0.25 = 1.75 = 4 * 0.4375
    #         Gamma = (-1.5 / 0.75) / (2 + 0.5) = -4/5;  without momentum (-0.5 / 0.75) / 2.5 = -4/15
    model = get_peft_model(Pair(), LoraConfig(r=1, target_modules=["linear"]))
    a, b = lora_factors(model)
    first = {a: torch.tensor([[1.0]]), b: torch.tensor([[-2.0]])}
    second = {a: torch.tensor([[2.25]]), b: torch.tensor([[2.0]])}
    moments = AdamMoments(first, second, step=1, betas=(0.5, 0.75), eps=0.5, learning_rate=1.0)
    scorer = Scorer(model, torch.ones(1, 2), moments, momentum=momentum, batch_size=1)
    gradient = torch.tensor([[3.0, -1.0]])
    assert scorer.gamma(gradient.clone(), slice(0, 2))[0].tolist() == pytest.approx(expected, rel=1e-6)
    if momentum:
        m, v = torch.tensor([1.0, -2.0]), torch.tensor([2.25, 2.0])
        assert reference_gamma(gradient[0], m, v, moments).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("momentum", [True, False])
def test_scores_equal_batch_one_autograd(warmed, pairs, directions, momentum, normalise):
    model, _, moments = warmed
    fast = Scorer(model, directions, moments, momentum=momentum, batch_size=7, normalise=normalise).score(pairs)
    matched = match_moments(moments, model)
    slow = reference_scores(model, pairs, directions, matched, momentum=momentum, normalise=normalise)
    assert fast.dtype == torch.float32
    assert (fast - slow).abs().max() < 1e-5
    assert slow.std(dim=0).min() > 1e-3  # the samples do differ by more than the tolerance


@pytest.mark.parametrize("batch_size", [1, 3, 20, 64])
def test_scores_do_not_change_with_batch_size(warmed, pairs, directions, scorer, batch_size):
    model, _, moments = warmed
    other = Scorer(model, directions, moments, momentum=True, batch_size=batch_size)
    assert torch.allclose(other.score(pairs), scorer.score(pairs), atol=1e-6)


def test_scores_follow_the_order_of_the_examples(scorer, pairs):
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(scorer.score([pairs[i] for i in order]), scorer.score(pairs)[order], atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("amount", [1, 17])
def test_gradients_do_not_change_with_padding(warmed, pairs, side, amount):
    model, _, _ = warmed
    batch = collate(pairs[:6], pad_token_id=0)
    width = (amount, 0) if side == "left" else (0, amount)
    values = dict(input_ids=7, labels=-100, attention_mask=0)
    padded = {key: nn.functional.pad(batch[key], width, value=value) for key, value in values.items()}
    found = {}
    with tapped(model, lambda span, gradients: found.update({span.start: gradients.flatten(1)})) as backward:
        backward(sample_losses(model, padded))
    gradients = torch.cat([found[start] for start in sorted(found)], dim=1)
    expected = example_gradients(model, pairs[:6], batch_size=1)
    assert (gradients - expected).norm(dim=1).max() < 1e-5 * expected.norm(dim=1).min()


def test_example_gradients_are_laid_out_as_the_factors(warmed, pairs):
    model, _, _ = warmed
    gradients = example_gradients(model, pairs[:3], batch_size=2)
    oracle = copy.deepcopy(model).double().eval()
    for row, example in zip(gradients, pairs[:3], strict=True):
        expected = reference_gradient(oracle, example, list(lora_factors(model)))
        assert torch.allclose(row.double(), torch.cat([g.flatten() for g in expected.values()]), atol=1e-6)


def test_validation_gradient_is_the_mean_over_its_group(warmed, pairs):
    model, _, _ = warmed
    each = example_gradients(model, pairs[:5], batch_size=2)
    groups = ["b", "a", "b", "b", "a"]
    means = validation_gradients(model, pairs[:5], groups, batch_size=3)
    assert list(means) == ["a", "b"]
    assert torch.allclose(means["a"], (each[1] + each[4]) / 2, atol=1e-7)
    assert torch.allclose(means["b"], (each[0] + each[2] + each[3]) / 3, atol=1e-7)
    whole = validation_gradients(model, pairs[:5], None, batch_size=3)
    assert torch.allclose(whole["all"], each.mean(dim=0), atol=1e-7)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.999)], ids=["momentum", "no momentum, both signs"])
def test_positive_score_means_that_the_real_step_lowers_validation_loss(tokenizer, pairs, betas):
    """A step on one pair changes L_V by -lr * <grad L_V, Gamma>, to first order, with the warm-up's Adam state."""
    learning_rate = 1e-4
    model = build_lora_model(tokenizer, "qwen3")
    optimizer = warm_up(model, draw_examples(tokenizer, 48, seed=1), betas=betas)
    moments = capture_moments(model, optimizer, LEARNING_RATE)
    drawn = draw_examples(tokenizer, 80, seed=9)
    validation = sorted(drawn, key=lambda example: len(example.input_ids))[:4]  # a narrow set: pairs differ on it
    direction = validation_gradients(model, validation, None, batch_size=4)["all"][None]
    scores = Scorer(model, direction, moments, momentum=True, batch_size=8, normalise=False).score(pairs)[:, 0]

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
    for factor in lora_factors(model).values():
        factor.to(adapter_dtype)
    fast = Scorer(model, directions, moments, momentum=False, batch_size=7).score(pairs)
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
    next(iter(lora_factors(model).values())).eval()  # a mixture of modes, which train() would not bring back
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
        Scorer(model, directions, moments, momentum=True, batch_size=7).score(pairs)


def test_disabled_or_merged_adapter_is_refused(warmed, pairs, directions):
    model, _, moments = warmed
    model = copy.deepcopy(model)
    scorer = Scorer(model, directions, moments, momentum=True, batch_size=7)
    with model.disable_adapter(), pytest.raises(RuntimeError, match="and 25 more took no part in the loss; unmerge"):
        scorer.score(pairs)
    model.merge_adapter()
    with pytest.raises(RuntimeError, match="took no part in the loss"):
        scorer.score(pairs)


def test_layer_that_is_used_twice_is_refused(warmed, pairs):
    model = copy.deepcopy(warmed[0])
    layers = model.get_base_model().model.layers
    layers[1] = layers[0]
    with pytest.raises(ValueError, match=r"lora_A.default.weight was given an input of shape \[2, .*, 32\] again"):
        example_gradients(model, pairs[:2], batch_size=2)


def test_wrong_directions_moments_and_sizes_are_refused(warmed, pairs, directions):
    model, _, moments = warmed
    size = directions.shape[1]

    def score(directions, moments=moments, batch_size=4):
        return Scorer(model, directions, moments, momentum=True, batch_size=batch_size).score(pairs)

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
    with pytest.raises(ValueError, match="batch_size is 0"):
        score(directions, batch_size=0)
    with pytest.raises(ValueError, match="5 validation examples and 2 groups"):
        validation_gradients(model, pairs[:5], ["a", "b"], batch_size=2)
    with pytest.raises(ValueError, match="0 validation examples"):
        validation_gradients(model, [], None, batch_size=2)


def test_no_examples_have_no_scores(scorer):
    assert scorer.score([]).shape == (0, 2)


def test_clusters_are_those_of_unit_gradients_and_directions_their_mean_gradients():
    # Two directions of gradient at very different lengths: by raw distance the long one would stand alone.
    gradients = torch.tensor([[1.0, 0.1, 0.0], [100.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 3.0, 0.3]])
    directions, labels = cluster_directions(gradients, clusters=2, seed=0)
    assert labels[0] == labels[1] != labels[2] == labels[3]
    assert torch.allclose(directions[labels[0]], torch.tensor([50.5, 0.05, 0.0]))
    assert torch.allclose(directions[labels[2]], torch.tensor([0.0, 2.0, 0.15]))


def test_clustering_by_inner_products_is_as_good_as_k_means_on_the_gradients_themselves():
    gradients = torch.randn(30, 200, generator=torch.Generator().manual_seed(1))
    gradients += 3 * torch.randn(4, 200, generator=torch.Generator().manual_seed(2)).repeat(8, 1)[:30]
    units = gradients / gradients.norm(dim=1, keepdim=True)
    _, labels = cluster_directions(gradients, clusters=4, seed=0)
    plain = KMeans(4, n_init=10, random_state=0).fit_predict(units.numpy())
    assert len(set(zip(labels, plain, strict=True))) == 4  # the same partition, up to the clusters' numbers


def test_clusters_that_cannot_be_made_are_refused():
    with pytest.raises(ValueError, match="clusters is 3 and there are 2 validation gradients"):
        cluster_directions(torch.eye(2), clusters=3, seed=0)
    with pytest.raises(ValueError, match="validation gradient 1 is zero"):
        cluster_directions(torch.tensor([[1.0], [0.0]]), clusters=1, seed=0)


def test_checkpoints_are_weighted_by_learning_rate():
    # eta = 1/4 and 3/4: 0.25 * 4 + 0.75 * 8 = 7;  0.25 * -4 + 0.75 * 0 = -1
    combined = combine([torch.tensor([[4.0], [-4.0]]), torch.tensor([[8.0], [0.0]])], [1e-5, 3e-5])
    assert combined.flatten().tolist() == pytest.approx([7, -1])


def test_checkpoints_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"shapes \[\[2, 1\], \[3, 1\]\] and 2 learning rates"):
        combine([torch.zeros(2, 1), torch.zeros(3, 1)], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"learning rates are \[0.0\]; each must be above 0"):
        combine([torch.zeros(2, 1)], [0.0])

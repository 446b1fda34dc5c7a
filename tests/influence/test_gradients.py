import copy

import pytest
import torch
from conftest import draw_examples
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rubric_influence.influence.checks.reference import reference_gradient
from rubric_influence.influence.examples import collate
from rubric_influence.influence.gradients import example_gradients, plan_batches, sample_losses, tapped
from rubric_influence.influence.layers import scored_layers


@pytest.fixture(scope="module")
def pairs(tokenizer):
    return draw_examples(tokenizer, 20, seed=5)


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
    expected = example_gradients(model, pairs[:6], batch_tokens=1)
    assert (gradients - expected).norm(dim=1).max() < 1e-5 * expected.norm(dim=1).min()


def test_example_gradients_are_laid_out_as_the_factors(warmed, pairs):
    model, _, _ = warmed
    gradients = example_gradients(model, pairs[:3], batch_tokens=200)
    oracle = copy.deepcopy(model).double().eval()
    for row, example in zip(gradients, pairs[:3], strict=True):
        expected = reference_gradient(oracle, example, list(scored_layers(model)))
        assert torch.allclose(row.double(), torch.cat([g.flatten() for g in expected.values()]), atol=1e-6)


def test_layer_that_is_used_twice_is_refused(warmed, pairs):
    model = copy.deepcopy(warmed[0])
    layers = model.get_base_model().model.layers
    layers[1] = layers[0]
    with pytest.raises(ValueError, match=r"lora_A.default.weight was given an input of shape \[2, .*, 32\] again"):
        example_gradients(model, pairs[:2], batch_tokens=200)


def test_batches_hold_samples_of_like_length_within_the_budget():
    # Sorted 9 7 5 5 3 1 (ties in order). Budget 10: 9 alone; 7 alone (2 * 7 > 10); 5 5; then 3 1 (2 * 3 <= 10).
    assert plan_batches([5, 9, 1, 5, 7, 3], batch_tokens=10) == [[1], [4], [0, 3], [5, 2]]
    assert plan_batches([5, 9, 1, 5, 7, 3], batch_tokens=54) == [[1, 4, 0, 3, 5, 2]]
    assert plan_batches([], batch_tokens=10) == []


def test_a_sample_above_the_budget_is_a_batch_of_its_own():
    assert plan_batches([30, 2, 2], batch_tokens=4) == [[0], [1, 2]]


@given(st.lists(st.integers(1, 200), max_size=50), st.integers(1, 600))
def test_every_sample_is_in_one_batch_and_no_batch_of_several_exceeds_the_budget(lengths, budget):
    batches = plan_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= budget for b in batches)

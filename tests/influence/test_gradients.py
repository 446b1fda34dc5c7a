import copy

import pytest
import torch
from conftest import draw_examples
from torch import nn

from rubric_influence.influence.checks.reference import reference_gradient
from rubric_influence.influence.gradients import example_gradients, tapped
from rubric_influence.influence.layers import scored_layers
from rubric_influence.models.examples import collate
from rubric_influence.models.losses import sample_losses


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

import copy
import re

import pytest
import torch
from conftest import draw_examples
from torch import nn

from rubric_influence.influence.checks.reference import reference_gradient
from rubric_influence.influence.gradients import example_gradients, find_obstacle, tapped
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


class Flat(nn.Module):
    """A layer that is fed all tokens of a batch as one sample's."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.flatten(0, 1)[None]).view(*x.shape[:2], -1)


def mix(share):
    """A hook that adds a share of the batch's mean to what a module puts out."""
    return lambda module, inputs, output: output + share * output.mean(dim=0, keepdim=True)


def test_samples_that_a_batch_would_mix_are_found_out(warmed, pairs):
    ids, model = pairs[0].input_ids, copy.deepcopy(warmed[0])
    base = model.get_base_model().model
    assert find_obstacle(model, ids) == ""
    with_gradient = base.layers[0].register_forward_hook(mix(1e-6))  # less than rounding allows of a loss
    assert find_obstacle(model, ids) == "those of one batch act on each other"
    with_gradient.remove()
    base.embed_tokens.register_forward_hook(mix(1.0))  # nothing before it has a gradient
    assert find_obstacle(model, ids) == "those of one batch act on each other"


def test_layers_that_do_not_see_samples_apart_are_found_out(warmed, pairs):
    ids, model = pairs[0].input_ids, copy.deepcopy(warmed[0])
    attention = model.get_base_model().model.layers[0].self_attn
    attention.q_proj = Flat(attention.q_proj)
    assert "q_proj.layer.lora_B.default.weight did not see the 2 samples of the batch" in find_obstacle(model, ids)
    attention.q_proj = attention.q_proj.layer
    attention.q_proj.register_forward_hook(lambda layer, x, output: output + layer.lora_A["default"](*x).mean())
    assert re.search(r"lora_A.default.weight saw \[2, 5, 32\] again", find_obstacle(model, ids))


def test_samples_go_one_at_a_time_where_they_must_which_is_told_once(warmed, pairs):
    model = copy.deepcopy(warmed[0])
    model.get_base_model().model.layers[0].register_forward_hook(mix(0.1))
    with pytest.warns(UserWarning, match="go through the model one at a time, as those of one batch act on") as told:
        gradients = [example_gradients(model, pairs[:3], batch_tokens=size) for size in (1, 200)]
    assert len(told) == 1
    assert torch.equal(*gradients)
    oracle = copy.deepcopy(model).double().eval()
    for row, example in zip(gradients[0], pairs[:3], strict=True):
        expected = reference_gradient(oracle, example, list(scored_layers(model)))
        assert torch.allclose(row.double(), torch.cat([g.flatten() for g in expected.values()]), atol=1e-6)

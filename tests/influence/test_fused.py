import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from rubric_influence.influence.fused import FusedLora, find_fusable, take_apart


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 4)
        self.outer = nn.Linear(4, 2, bias=False)

    def forward(self, x):
        return self.outer(self.inner(x).tanh())


def adapt(**settings):
    torch.manual_seed(0)
    settings = {"r": 2, "lora_alpha": 6, "target_modules": ["inner", "outer"], "init_lora_weights": False} | settings
    return get_peft_model(Net(), LoraConfig(**settings)).double().eval()


def test_outputs_and_gradients_are_those_of_the_layers_parts():
    layer = adapt().base_model.model.inner
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(2, 5, 4, dtype=torch.float64)
    y = layer(x)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    dx, grad_a, grad_b = torch.autograd.grad(y, [x, a, b], dy)

    given = {}

    def keep(name):
        return lambda dy, x: given.update({name: torch.einsum("bso,bsi->oi", dy, x)})

    fused = FusedLora.apply(torch.zeros(0, requires_grad=True), x, take_apart(layer), keep("a"), keep("b"))
    (found,) = torch.autograd.grad(fused, x, dy)
    for one, other in ((fused, y), (found, dx), (given["a"], grad_a), (given["b"], grad_b)):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


def test_a_layer_whose_input_needs_no_gradient_gives_its_own():
    layer = adapt().base_model.model.inner
    given = []
    anchor = torch.zeros(0, requires_grad=True)
    x, parts = torch.randn(2, 5, 3).double(), take_apart(layer)
    y = FusedLora.apply(anchor, x, parts, lambda *_: given.append("a"), lambda *_: None)
    y.sum().backward()
    assert given == ["a"] and anchor.grad is None


def test_plain_lora_is_found_by_the_names_of_its_factors():
    place = "base_model.model.inner"
    expected = [f"{place}.lora_A.default.weight", f"{place}.lora_B.default.weight"]
    assert find_fusable(adapt(target_modules=["inner"])) == {place: expected}


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}])
def test_other_kinds_are_left_to_themselves(settings):
    assert find_fusable(adapt(**settings)) == {}


def test_hooks_autocast_and_mixed_dtypes_leave_layers_to_themselves():
    model = adapt(target_modules=["inner"])
    layer = model.base_model.model.inner
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert find_fusable(model) == {}
    handle = layer.base_layer.register_forward_hook(lambda *_: None)
    assert find_fusable(model) == {}
    handle.remove()
    assert find_fusable(model)
    layer.base_layer.bfloat16()
    assert find_fusable(model) == {}

"""LoRA's layers computed in one piece, for a pass that needs the samples' gradients of the factors and no summed ones.

    y = x W' + c + s (x A') B',   e = s dy B,   dx = dy W + e A,   G_A = e' x,   G_B = s dy' (x A')

PEFT adds the adapter's part by a product and a sum of their own, each a pass over y, and autograd goes back through
both. Here matrix products add to what is there, so that y and dx are written once more each, and no more.

Shapes: x [b, s, in], y [b, s, out], W [out, in], A [r, in], B [out, r]; G [b, out * in] of each factor, fp32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from peft.tuners import lora
from torch import nn

Give = Callable[[torch.Tensor, torch.Tensor], None]  # gets dy [b, s, o] and x [b, s, i] of a factor, in this order


class Parts(NamedTuple):
    """Of a LoRA layer: its base layer, the active adapter's A and B, and the scaling s."""

    base: nn.Linear
    a: torch.Tensor
    b: torch.Tensor
    scaling: float


def take_apart(layer: Any) -> Parts:
    """The parts of a LoRA layer that `find_fusable` has found."""
    (name,) = layer.active_adapters
    a, b = layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()
    return Parts(layer.base_layer, a, b, layer.scaling[name])


class FusedLora(torch.autograd.Function):
    """`anchor` requires a gradient, so that the backward comes by even where x requires none, and gets none."""

    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, x: torch.Tensor, parts: Parts, give_a: Give, give_b: Give) -> Any:
        hidden = nn.functional.linear(x, parts.a)
        y = nn.functional.linear(x, parts.base.weight, parts.base.bias)
        y.view(-1, y.shape[-1]).addmm_(hidden.flatten(0, 1), parts.b.T, alpha=parts.scaling)
        # Not saved by autograd, which would hold them until its graph is gone.
        ctx.kept, ctx.parts, ctx.give = [x, hidden], parts, (give_a, give_b)
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        parts, (give_a, give_b) = ctx.parts, ctx.give
        hidden, x = ctx.kept.pop(), ctx.kept.pop()
        inner = (dy @ parts.b).mul_(parts.scaling)
        give_b(dy, hidden.mul_(parts.scaling))
        give_a(inner, x)
        dx = None
        if ctx.needs_input_grad[1]:
            dx = dy @ parts.base.weight
            dx.view(-1, dx.shape[-1]).addmm_(inner.flatten(0, 1), parts.a)
        return None, dx, None, None, None


def find_fusable(model: nn.Module) -> dict[str, list[str]]:
    """Path -> the names of A and B of every layer that is plain LoRA on a plain linear layer, of one dtype.

    None while autocast is on, which would give the parts other dtypes, and no layer that something is hooked into.
    """
    return {
        path: [f"{path}.{part}.{name}.weight" for part in ("lora_A", "lora_B")]
        for path, module in model.named_modules()
        if type(module) is lora.Linear and len(module.active_adapters) == 1
        for name in module.active_adapters
        if name in module.lora_A and name not in module.lora_variant and not module.fan_in_fan_out
        if are_plain(module, [module.base_layer, module.lora_A[name], module.lora_B[name]])
    }


def are_plain(layer: lora.Linear, parts: list[Any]) -> bool:
    if any(part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part) for part in (layer, *parts)):
        return False
    if any(type(part) is not nn.Linear or type(part.weight) is not nn.Parameter for part in parts):
        return False
    if torch.is_autocast_enabled(parts[0].weight.device.type) or any(part.bias is not None for part in parts[1:]):
        return False
    return len({(part.weight.dtype, part.weight.device) for part in parts}) == 1

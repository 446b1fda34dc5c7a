"""The gradients of many samples at once, layer by layer, at the price of one backward and without storing any.

The samples of a batch meet nowhere in the model, so one backward of the SUM of their losses holds every sample's
gradient. Hooks on each scored layer keep its input x [b, s, i] and receive its output's gradient dy [b, s, o]; the
samples' weight gradients G = einsum('bso,bsi->boi', dy, x) are formed, used and freed layer by layer. Meanwhile weights
require no gradient, so that their summed gradients are not computed, and plain LoRA layers are computed in one piece
(`fused`), which costs less than PEFT's and pays for most of G.

A sample's loss is the mean over its labelled tokens, so neither batch nor padding matters to its gradient.

Where a scored parameter is not of a linear layer, or a layer sees samples otherwise than as [b, s, features], this is
found out beforehand, and `singly` takes the gradients one at a time.

Shapes: b samples in a batch, s tokens, n samples, d scored parameters, flat in the order of `scored_parameters(model)`.
Gradients are fp32 whatever the model's dtype.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import nn

from rubric_influence.influence.fused import FusedLora, Parts, find_fusable, take_apart
from rubric_influence.influence.layers import (
    Unbatchable,
    count_parameters,
    device_of,
    listed,
    scored_layers,
    scored_parameters,
)
from rubric_influence.influence.singly import Visit, sweep_singly
from rubric_influence.models.examples import Example, collate
from rubric_influence.models.losses import evaluated, plan_batches, sample_losses, sweep_losses

PROBED: WeakKeyDictionary[nn.Module, tuple[list[str], bool]] = WeakKeyDictionary()  # can_batch, by scored names


@contextmanager
def tapped(model: nn.Module, visit: Callable[[slice, torch.Tensor], None]) -> Iterator[Callable[[torch.Tensor], None]]:
    """Yields `backward(losses)`, which calls `visit(span, G)` once a parameter, G [b, span] the samples' gradients.

    `span` is the parameter's place in a flat gradient; the losses [b] are of one forward made while this is open. The
    model is in eval mode and its weights require no gradient; both are put back on leaving.

    Raises Unbatchable unless every scored parameter is of a linear layer that is used once in the forward, on [batch,
    tokens, features].
    """
    layers = scored_layers(model)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    spans: dict[str, slice] = {}
    used: dict[str, int] = {}  # name -> the samples that its layer saw

    def see(name: str, x: torch.Tensor) -> None:
        if x.dim() != 3 or name in used:
            again = " again" if name in used else ""
            raise Unbatchable(f"the layer of {name} saw {list(x.shape)}{again}, not [batch, tokens, features] once")
        used[name] = len(x)

    def give(name: str, dy: torch.Tensor, x: torch.Tensor) -> None:
        visit(spans[name], torch.bmm(dy.float().transpose(1, 2), x.float()).flatten(1))

    def tap(name: str) -> Callable[[nn.Linear, tuple[torch.Tensor], torch.Tensor], None]:
        def on_forward(module: nn.Linear, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            x = inputs[0].detach()
            see(name, x)
            if not output.requires_grad:  # the first layer: nothing before it needs a gradient
                output.requires_grad_()

            kept = [] if name.endswith("bias") else [x]

            def on_backward(dy: torch.Tensor) -> None:
                if name.endswith("bias"):
                    visit(spans[name], dy.float().sum(dim=1))
                else:  # x is let go here, as a plain backward lets go of what it has used, and not with the graph
                    give(name, dy, kept.pop())

            output.register_hook(on_backward)

        return on_forward

    def fuse(parts: Parts, names: list[str]) -> Callable[[torch.Tensor], torch.Tensor]:
        anchor = torch.zeros(0, device=parts.a.device, requires_grad=True)

        def forward(x: torch.Tensor) -> torch.Tensor:
            for name in names:
                see(name, x)
            return FusedLora.apply(anchor, x, parts, *(partial(give, name) for name in names))

        return forward

    def backward(losses: torch.Tensor) -> None:
        if odd := [name for name in layers if used.get(name) != len(losses)]:
            raise Unbatchable(f"the layers of {listed(odd)} did not see the {len(losses)} samples of the batch")
        used.clear()
        with torch.autocast(losses.device.type, enabled=False):  # of the caller's, which would round what is visited
            losses.sum().backward()

    fused = {
        path: names
        for path, names in find_fusable(model).items()
        if names == [name for name in layers if name.startswith(f"{path}.")]
    }
    within = {name for names in fused.values() for name in names}
    handles = []
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        for path, names in fused.items():
            module = model.get_submodule(path)
            module.forward = fuse(take_apart(module), names)  # in the instance alone, for the while
        start = 0
        for name, layer in layers.items():
            spans[name] = slice(start, start + layer.get_parameter(name.rpartition(".")[2]).numel())
            start = spans[name].stop
            if name not in within:
                handles.append(layer.register_forward_hook(tap(name)))
        with evaluated(model), torch.enable_grad():
            yield backward
    finally:
        for handle in handles:
            handle.remove()
        for path in fused:
            vars(model.get_submodule(path)).pop("forward", None)
        for parameter in trainable:
            parameter.requires_grad_(True)


def sweep_gradients(model: nn.Module, examples: Sequence[Example], batch_tokens: int, visit: Visit) -> None:
    """Call `visit(rows, span, G)` for every batch and parameter: G [b, span], the gradients of examples `rows` [b].

    G is the visitor's to change. Where the model gives no gradients of several samples, each is a batch of its own.
    """
    if examples and not can_batch(model, examples[0].input_ids):
        return sweep_singly(model, examples, visit)
    rows = torch.tensor([], dtype=torch.long)
    device = device_of(model)
    with tapped(model, lambda span, gradients: visit(rows, span, gradients)) as backward:
        for chosen in plan_batches([len(example.input_ids) for example in examples], batch_tokens):
            rows = torch.tensor(chosen, device=device)  # once a batch: each index made from a list makes a GPU wait
            backward(sample_losses(model, collate([examples[row] for row in chosen])))


def can_batch(model: nn.Module, ids: Sequence[int]) -> bool:
    """Whether `tapped` gives the gradients of samples in one batch. Found out, and warned of if not, once a model."""
    names = list(scored_parameters(model))
    if model not in PROBED or PROBED[model][0] != names:
        if obstacle := find_obstacle(model, ids):
            warnings.warn(f"samples go through the model one at a time, as {obstacle}", stacklevel=2)
        PROBED[model] = names, not obstacle
    return PROBED[model][1]


def find_obstacle(model: nn.Module, ids: Sequence[int]) -> str:
    """Why the gradients of two samples, made of token ids, cannot be told apart in one batch; "" if they can.

    The samples are of unequal length, so that padding shows too. Each must have the loss that it has alone, up to the
    root of the coarsest dtype's rounding, and a backward of the first one's must leave no gradient of the second.
    """
    samples = [Example(cut, cut) for cut in (([*ids] * 5)[:5], ([*ids] * 3)[-1:-4:-1])]
    kinds = {torch.float32, *(p.dtype for p in model.parameters() if p.is_floating_point())}  # losses are fp32 at best
    if torch.is_autocast_enabled(kind := device_of(model).type):
        kinds.add(torch.get_autocast_dtype(kind))
    rounding = max(torch.finfo(dtype).eps for dtype in kinds)
    alone = sweep_losses(model, samples, batch_tokens=1)
    leaks = []
    try:
        with tapped(model, lambda _, gradients: leaks.append((gradients[1].abs() > 0).any())) as backward:
            losses = sample_losses(model, collate(samples))
            backward(losses * torch.tensor([1.0, 0.0], device=losses.device))
    except Unbatchable as error:
        return str(error)
    leaks.append(((losses.detach().cpu() - alone).abs() > rounding**0.5 * alone).any())
    return "those of one batch act on each other" if any(leaks) else ""


def example_gradients(model: nn.Module, examples: Sequence[Example], batch_tokens: int) -> torch.Tensor:
    """The gradient of each example's loss, [n, d], fp32, on the CPU: for few examples (4*n*d bytes)."""
    out = torch.zeros(len(examples), count_parameters(model))

    def visit(rows: torch.Tensor, span: slice, gradients: torch.Tensor) -> None:
        out[rows.cpu(), span] = gradients.cpu()

    sweep_gradients(model, examples, batch_tokens, visit)
    return check_finite(out, "gradient")


def check_finite(values: torch.Tensor, what: str) -> torch.Tensor:
    """The values [n, k] themselves. Raises ValueError naming the first row that is not finite."""
    if bad := (~torch.isfinite(values)).any(dim=1).nonzero().flatten().tolist():
        raise ValueError(
            f"{what} {bad[0]} is not finite ({len(bad)} of {len(values)} are not); look at its text and at the model "
            "(float16 overflows: use bfloat16 or float32)"
        )
    return values

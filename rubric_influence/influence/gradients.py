"""The gradients of many samples at once, layer by layer, at the price of one backward and without storing any.

The samples of a batch meet nowhere in the model, so one backward of the SUM of their losses holds every sample's
gradient. Hooks on each scored layer keep its input x [b, s, i] and receive its output's gradient dy [b, s, o]; the
samples' weight gradients G = einsum('bso,bsi->boi', dy, x) are formed, used and freed layer by layer. Meanwhile weights
require no gradient, so that their summed gradients are not computed.

A sample's loss is the mean over its labelled tokens, so neither batch nor padding matters to its gradient.

Shapes: b samples in a batch, s tokens, n samples, d scored parameters, flat in the order of `scored_layers(model)`.
Gradients are fp32 whatever the model's dtype.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from rubric_influence.influence.layers import count_parameters, device_of, listed, scored_layers
from rubric_influence.models.examples import Example, collate
from rubric_influence.models.losses import evaluated, plan_batches, sample_losses

Visit = Callable[[torch.Tensor, slice, torch.Tensor], None]


@contextmanager
def tapped(model: nn.Module, visit: Callable[[slice, torch.Tensor], None]) -> Iterator[Callable[[torch.Tensor], None]]:
    """Yields `backward(losses)`, which calls `visit(span, G)` once a parameter, G [b, span] the samples' gradients.

    `span` is the parameter's place in a flat gradient; the losses [b] are of one forward made while this is open. The
    model is in eval mode and its weights require no gradient; both are put back on leaving.

    Raises ValueError if a layer was used twice in the forward or not on [batch, tokens, features], RuntimeError if one
    was not used at all.
    """
    layers = scored_layers(model)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    used: set[str] = set()

    def tap(name: str, span: slice) -> Callable[[nn.Linear, tuple[torch.Tensor], torch.Tensor], None]:
        def on_forward(module: nn.Linear, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            x = inputs[0].detach()
            if x.dim() != 3 or name in used:
                raise ValueError(
                    f"{name} was given an input of shape {list(x.shape)}{' again' if name in used else ''}; expected "
                    "[batch, tokens, features] once a forward (mixtures of experts and shared layers are not supported)"
                )
            used.add(name)
            if not output.requires_grad:  # the first layer: nothing before it needs a gradient
                output.requires_grad_()

            kept = [] if name.endswith("bias") else [x]

            def on_backward(dy: torch.Tensor) -> None:
                if name.endswith("bias"):
                    visit(span, dy.float().sum(dim=1))
                else:  # x is let go here, as a plain backward lets go of what it has used, and not with the graph
                    visit(span, torch.bmm(dy.float().transpose(1, 2), kept.pop().float()).flatten(1))

            output.register_hook(on_backward)

        return on_forward

    def backward(losses: torch.Tensor) -> None:
        if unused := [name for name in layers if name not in used]:
            raise RuntimeError(f"{listed(unused)} took no part in the loss; unmerge and enable the adapter first")
        used.clear()
        with torch.autocast(losses.device.type, enabled=False):  # of the caller's, which would round what is visited
            losses.sum().backward()

    handles = []
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        start = 0
        for name, layer in layers.items():
            span = slice(start, start + layer.get_parameter(name.rpartition(".")[2]).numel())
            handles.append(layer.register_forward_hook(tap(name, span)))
            start = span.stop
        with evaluated(model), torch.enable_grad():
            yield backward
    finally:
        for handle in handles:
            handle.remove()
        for parameter in trainable:
            parameter.requires_grad_(True)


def sweep_gradients(model: nn.Module, examples: Sequence[Example], batch_tokens: int, visit: Visit) -> None:
    """Call `visit(rows, span, G)` for every batch and parameter: G [b, span], the gradients of examples `rows` [b].

    G is the visitor's to change.
    """
    rows = torch.tensor([], dtype=torch.long)
    device = device_of(model)
    with tapped(model, lambda span, gradients: visit(rows, span, gradients)) as backward:
        for chosen in plan_batches([len(example.input_ids) for example in examples], batch_tokens):
            rows = torch.tensor(chosen, device=device)  # once a batch: each index made from a list makes a GPU wait
            backward(sample_losses(model, collate([examples[row] for row in chosen])))


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

"""The gradients of samples one at a time, by plain autograd: for models that cannot give them from a batch.

With one sample in the forward, a parameter's gradient is that sample's, whatever the parameter is and wherever it is
used: DoRA's magnitudes, embeddings, norms, tied weights, experts. It costs a forward and a backward of a single sample,
which fill a GPU badly. Each gradient is visited and freed as soon as the backward has it.

Gradients have their parameter's dtype, as in training, before they are visited as fp32.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from rubric_influence.influence.layers import device_of, scored_parameters
from rubric_influence.models.examples import Example, collate
from rubric_influence.models.losses import evaluated, plan_batches, sample_losses

Visit = Callable[[torch.Tensor, slice, torch.Tensor], None]
PIECE = 2**20  # numbers that are visited at once: fp32 sums of many more lose digits on CPUs, and copies take memory


def sweep_singly(model: nn.Module, examples: Sequence[Example], visit: Visit) -> None:
    """Call `visit(rows, span, G)` for every example and piece of a parameter: rows [1], G [1, span], its gradient.

    Examples come the longest first, so memory runs out at once or never. A parameter that takes no part in an example's
    loss, such as an expert that gets none of its tokens, is visited with zeros.
    """
    parameters, device = scored_parameters(model), device_of(model)
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    waiting: dict[int, slice] = {}  # by the span's start: what the backward has not reached
    rows = torch.tensor([], dtype=torch.long)

    def tap(span: slice) -> Callable[[torch.Tensor], None]:
        def on_gradient(parameter: torch.Tensor) -> None:
            del waiting[span.start]
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None  # the hook comes after it
            flat = gradient.reshape(1, -1)
            for piece in cut(span):
                visit(rows, piece, flat[:, piece.start - span.start : piece.stop - span.start].float())

        return on_gradient

    handles: list[RemovableHandle] = []
    spans: list[slice] = []
    try:
        for parameter, *_ in before:
            parameter.grad = None
            parameter.requires_grad_(False)
        for parameter in parameters.values():
            start = spans[-1].stop if spans else 0
            spans.append(slice(start, start + parameter.numel()))
            parameter.requires_grad_(True)
            handles.append(parameter.register_post_accumulate_grad_hook(tap(spans[-1])))
        with evaluated(model), torch.enable_grad():
            for (row,) in plan_batches([len(example.input_ids) for example in examples], batch_tokens=1):
                rows = torch.tensor([row], device=device)
                waiting.update((span.start, span) for span in spans)
                loss = sample_losses(model, collate([examples[row]]))
                with torch.autocast(device.type, enabled=False):  # of the caller's, which would round what is visited
                    loss.sum().backward()
                while waiting:
                    _, span = waiting.popitem()
                    for piece in cut(span):
                        visit(rows, piece, torch.zeros(1, piece.stop - piece.start, device=device))
    finally:
        for handle in handles:
            handle.remove()
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient


def cut(span: slice) -> list[slice]:
    return [slice(start, min(start + PIECE, span.stop)) for start in range(span.start, span.stop, PIECE)]

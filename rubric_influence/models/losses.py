"""The losses of samples, in batches of any lengths: training, influence, gate and exam share them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from rubric_influence.models.examples import IGNORED, Example, collate


def sample_losses(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Each sample's mean loss over its labelled tokens, [b], fp32, in nats."""
    device = next(model.parameters()).device
    labelled = (batch["labels"][:, 1:] != IGNORED).sum(dim=1)
    return token_losses(model, batch, device).sum(dim=1) / labelled.to(device)


def token_losses(call: Callable, batch: dict[str, torch.Tensor], device: torch.device) -> torch.Tensor:
    """The losses of tokens at the t places where some sample has a label, [b, t], fp32, in nats; 0 where it has none.

    `call`: a model on the device, or what takes the same inputs and gives the same output.
    """
    targets = batch["labels"][:, 1:]
    columns = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)  # logits are needed there alone
    inputs = {key: batch[key].to(device) for key in ("input_ids", "attention_mask")}
    logits = call(**inputs, logits_to_keep=columns.to(device), use_cache=False).logits
    targets = targets[:, columns].to(device)
    losses = nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view_as(targets)


@torch.no_grad()
def sweep_losses(model: nn.Module, examples: Sequence[Example], batch_tokens: int) -> torch.Tensor:
    """Each example's mean loss over its labelled tokens in eval mode, [n], fp64, in nats, on the CPU."""
    losses = torch.zeros(len(examples), dtype=torch.float64)
    with evaluated(model):
        for rows in plan_batches([len(example.input_ids) for example in examples], batch_tokens):
            losses[rows] = sample_losses(model, collate([examples[row] for row in rows])).double().cpu()
    return losses


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices of samples by batch: samples of like length together, the longest first, within a budget of tokens.

    A batch holds as many samples as fit when each is padded to the longest: count * longest <= batch_tokens. As the
    longest come first, memory runs out at once or never. A sample longer than the budget is a batch of its own.

    Raises ValueError if batch_tokens is below 1.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens is {batch_tokens}; give at least 1")
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Puts the model into eval mode (no dropout), and each module back into its own on leaving."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode

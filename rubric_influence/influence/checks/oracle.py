"""The oracle of influence: a real AdamW step on each sample alone, and what it does to the validation loss.

It is what the score predicts to first order, found without gradients of the validation loss, Gamma or a dot product:
torch's own optimizer goes on from the captured state. Slow (one validation forward a sample, in fp64), for checking.
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import nn

from rubric_influence.influence.examples import Example, collate
from rubric_influence.influence.gradients import plan_batches
from rubric_influence.influence.layers import scored_parameters
from rubric_influence.influence.moments import AdamMoments, match_moments


def one_step_gains(
    model: nn.Module,
    examples: Sequence[Example],
    validation: Sequence[Example],
    moments: AdamMoments,
    learning_rate: float,
    *,
    batch_tokens: int,
) -> torch.Tensor:
    """How much one optimizer step on each example alone lowers the validation loss, [n], fp64, in nats, on the CPU.

        gain(z) = L_V(theta) - L_V(theta - learning_rate * Gamma(z)),    positive: the step helps

    L_V is the mean over the validation examples of their losses, each the mean over its labelled tokens. The step is
    torch.optim.AdamW's without weight decay, over the scored parameters, its state set to the moments. To first order
    gain / learning_rate is GradientScorer's score with momentum=True and normalise=False against grad L_V. (Hugging
    Face models compute norms and softmax in fp32 whatever their dtype: gains below about 1e-8 are rounding.)

    All happens on a copy of the model in fp64 and eval mode, put back before every step; `model` is not touched.

    Raises ValueError if there are no validation examples, the learning rate is not above 0, the moments are not the
    model's, or a gain is not finite.
    """
    if not validation:
        raise ValueError("there are no validation examples to measure a gain on; give at least one")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"learning_rate is {learning_rate}; a step needs a finite one above 0")
    moments = match_moments(moments, model)
    model = copy.deepcopy(model).double().eval()
    parameters = scored_parameters(model)
    model.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=learning_rate, betas=moments.betas, eps=moments.eps, weight_decay=0.0
    )
    before = mean_loss(model, validation, batch_tokens)
    gains = torch.zeros(len(examples), dtype=torch.float64)
    for row, example in enumerate(examples):
        optimizer.zero_grad()
        example_losses(model, [example]).sum().backward()
        seed_state(optimizer, parameters, moments)
        optimizer.step()
        gains[row] = before - mean_loss(model, validation, batch_tokens)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(start[name])
    if bad := (~torch.isfinite(gains)).nonzero().flatten().tolist():
        raise ValueError(
            f"the gain of example {bad[0]} is not finite ({len(bad)} of {len(gains)} are not); look at its text, at "
            f"the model, and whether learning_rate {learning_rate:g} is too large"
        )
    return gains


def seed_state(optimizer: torch.optim.AdamW, parameters: dict[str, nn.Parameter], moments: AdamMoments) -> None:
    """Set an optimizer's state to moments that go by the same names."""
    for name, parameter in parameters.items():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(moments.step)),
            "exp_avg": moments.exp_avg[name].to(parameter, copy=True),
            "exp_avg_sq": moments.exp_avg_sq[name].to(parameter, copy=True),
        }


def example_losses(model: nn.Module, examples: Sequence[Example]) -> torch.Tensor:
    """Each example's mean loss over its labelled tokens, [n], fp64, with all logits and nothing of the fast path."""
    batch = collate(examples, pad_token_id=0)  # any id: it is masked
    batch = {key: value.to(next(model.parameters()).device) for key, value in batch.items()}
    targets = batch.pop("labels")[:, 1:]
    logits = model(**batch, use_cache=False).logits[:, :-1].double()
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")  # 0 at label -100
    return losses.sum(dim=1) / (targets != -100).sum(dim=1)


@torch.no_grad()
def mean_loss(model: nn.Module, examples: Sequence[Example], batch_tokens: int) -> float:
    batches = plan_batches([len(example.input_ids) for example in examples], batch_tokens)
    losses = [example_losses(model, [examples[row] for row in rows]).sum().item() for rows in batches]
    return math.fsum(losses) / len(examples)

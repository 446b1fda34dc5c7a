"""The oracle of influence: a real AdamW step on each sample alone, and what it does to the validation loss.

It finds what the score predicts to first order, without gradients of the validation loss, Gamma or a dot product:
torch's own optimizer goes on from the captured state. It is slow (one validation forward a sample, in fp64).
"""

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.func import functional_call

from rubric_influence.influence.layers import scored_parameters
from rubric_influence.influence.moments import AdamMoments, match_moments
from rubric_influence.models.examples import Example, collate
from rubric_influence.models.losses import plan_batches


class AdamCopy:
    """A copy of a model, `model`, on which a real AdamW goes on from the checkpoint; the given model is not touched.

    The copy is in eval mode, and only its scored parameters require gradients.
    Raises ValueError if the moments are not the model's.
    """

    def __init__(self, model: nn.Module, moments: AdamMoments, dtype: torch.dtype | None = None):
        self.moments = match_moments(moments, model)
        self.model = copy.deepcopy(model).to(dtype=dtype).eval()
        self.parameters = scored_parameters(self.model)
        self.model.requires_grad_(False)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.start = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def restart(self, learning_rate: float) -> torch.optim.AdamW:
        """Put the weights back, and return an AdamW without weight decay whose state is the moments."""
        betas, eps = self.moments.betas, self.moments.eps
        optimizer = torch.optim.AdamW(self.parameters.values(), learning_rate, betas, eps, weight_decay=0.0)
        for name, parameter in self.parameters.items():
            parameter.copy_(self.start[name])
            optimizer.state[parameter] = {
                "step": torch.tensor(float(self.moments.step)),
                "exp_avg": self.moments.exp_avg[name].to(parameter, copy=True),
                "exp_avg_sq": self.moments.exp_avg_sq[name].to(parameter, copy=True),
            }
        optimizer.zero_grad()
        return optimizer


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

    L_V is the mean loss of the validation examples, each the mean over its labelled tokens. The step is AdamW's without
    weight decay, from the state that the moments are. To first order, gain / learning_rate is GradientScorer's score
    with momentum=True and normalise=False against grad L_V. Every step is made on a copy of the model in fp64. (Hugging
    Face models compute norms and softmax in fp32 whatever their dtype: gains below about 1e-8 are rounding.)

    Raises ValueError if there are no validation examples, the learning rate is not above 0, the moments are not the
    model's, or a gain is not finite.
    """
    if not validation:
        raise ValueError("there are no validation examples to measure a gain on; give at least one")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"learning_rate is {learning_rate}; a step needs a finite one above 0")
    stepped = AdamCopy(model, moments, torch.float64)
    before = mean_loss(stepped.model, validation, batch_tokens)
    gains = torch.zeros(len(examples), dtype=torch.float64)
    for row, example in enumerate(examples):
        optimizer = stepped.restart(learning_rate)
        example_losses(stepped.model, [example]).sum().backward()
        optimizer.step()
        gains[row] = before - mean_loss(stepped.model, validation, batch_tokens)
    if bad := (~torch.isfinite(gains)).nonzero().flatten().tolist():
        raise ValueError(
            f"the gain of example {bad[0]} is not finite ({len(bad)} of {len(gains)} are not); look at its text, at "
            f"the model, and whether learning_rate {learning_rate:g} is too large"
        )
    return gains


def example_losses(
    model: nn.Module, examples: Sequence[Example], parameters: Mapping[str, torch.Tensor] | None = None
) -> torch.Tensor:
    """Each example's mean loss over its labelled tokens, [n], fp64, with all logits and nothing of the fast path.

    `parameters` stand in for those of the model that have their names.
    """
    batch = collate(examples)
    batch = {key: value.to(next(model.parameters()).device) for key, value in batch.items()}
    targets = batch.pop("labels")[:, 1:]
    logits = (
        functional_call(model, dict(parameters or {}), kwargs={**batch, "use_cache": False}).logits[:, :-1].double()
    )
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")  # 0 at label -100
    return losses.sum(dim=1) / (targets != -100).sum(dim=1)


@torch.no_grad()
def mean_loss(model: nn.Module, examples: Sequence[Example], batch_tokens: int) -> float:
    batches = plan_batches([len(example.input_ids) for example in examples], batch_tokens)
    losses = [example_losses(model, [examples[row] for row in rows]).sum().item() for rows in batches]
    return math.fsum(losses) / len(examples)

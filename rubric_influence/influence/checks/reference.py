"""The reference of the tests: influence one sample at a time by fp64 autograd, slow and obvious.

It shares no arithmetic with the fast path: the loss is the model's own, gradients come from autograd, and Gamma is
written as in the paper. (Hugging Face models compute norms, softmax and loss in fp32 whatever the weights' dtype, so
scores are good to about 1e-6.)
"""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from rubric_influence.influence.moments import AdamMoments
from rubric_influence.models.examples import Example


def reference_gradient(model: nn.Module, example: Example, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """grad l(z) by parameter name, of a model that is in fp64 and eval mode already; 0 where z does not use one."""
    held = dict(model.named_parameters())
    parameters = [held[name].requires_grad_() for name in names]
    loss = model(input_ids=torch.tensor([example.input_ids]), labels=torch.tensor([example.labels])).loss
    return dict(zip(names, torch.autograd.grad(loss, parameters, materialize_grads=True), strict=True))


def reference_gamma(gradient: torch.Tensor, m: torch.Tensor, v: torch.Tensor, moments: AdamMoments) -> torch.Tensor:
    """The direction in which AdamW, with state m, v after t steps, would move against `gradient` at step t+1."""
    beta1, beta2 = moments.betas
    t = moments.step
    m_new = beta1 * m + (1 - beta1) * gradient
    v_new = beta2 * v + (1 - beta2) * gradient**2
    return (m_new / (1 - beta1 ** (t + 1))) / ((v_new / (1 - beta2 ** (t + 1))).sqrt() + moments.eps)


def reference_frozen_gamma(
    gradient: torch.Tensor, m: torch.Tensor, v: torch.Tensor, moments: AdamMoments
) -> torch.Tensor:
    """The same with the second moment left as it was after t steps."""
    m_new = moments.betas[0] * m + (1 - moments.betas[0]) * gradient
    v_hat = v / (1 - moments.betas[1] ** moments.step)
    return (m_new / (1 - moments.betas[0] ** (moments.step + 1))) / (v_hat.sqrt() + moments.eps)


def reference_scores(
    model: nn.Module,
    examples: Sequence[Example],
    directions: torch.Tensor,
    moments: AdamMoments,
    *,
    momentum: bool,
    normalise: bool = True,
    estimator: str = "adam",
) -> torch.Tensor:
    """[n, k] fp64: cos(w_k, Gamma(z)), or the dot product. Moments must go by the model's names (match_moments)."""
    step = {"adam": reference_gamma, "linear": reference_frozen_gamma, "gradient": lambda g, *_: g}[estimator]
    model = copy.deepcopy(model).double().eval()
    scores = []
    for example in examples:
        gradient = reference_gradient(model, example, list(moments.exp_avg))
        parts = []
        for name, g in gradient.items():
            m = moments.exp_avg[name].double() if momentum else torch.zeros_like(g)
            parts.append(step(g, m, moments.exp_avg_sq[name].double(), moments).flatten())
        gamma = torch.cat(parts)
        products = directions.double() @ gamma
        if normalise:
            products = products / (directions.double().norm(dim=1) * gamma.norm())
        scores.append(products)
    return torch.stack(scores)

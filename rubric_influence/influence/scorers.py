"""Influence estimators: how well the optimizer's step on a sample aligns with validation gradients.

The score (arXiv 2604.00536) of sample z against validation gradient w over the scored parameters, at one checkpoint
with Adam moments m, v after t steps:

    score = cos(w, Gamma(z)),  w = grad L_V,  positive = the optimizer's step on z, -lr * Gamma, lowers L_V

The estimators, with g = grad l(z):

    adam (exact)  Gamma = ( m' / (1-b1^(t+1)) ) / ( sqrt(v' / (1-b2^(t+1))) + eps )
                  m' = b1*m + (1-b1)*g;  v' = b2*v + (1-b2)*g^2
    linear        the same with v' / (1-b2^(t+1)) frozen at v / (1-b2^t), so that Gamma is linear in g
    gradient      Gamma = g
    forward       the dot products of linear from the losses at theta +- h*u: no backward, two forwards a direction

Each is a class with one method, score(examples) -> [n, k]; `open_scorer` makes one by name. Scores are the same at any
batch size, padding and order. l(z) is the mean loss of z's labelled tokens.

Shapes: b samples in a batch, n samples, k directions, d scored parameters. Scores are fp32 whatever the model's dtype.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol

import torch
from torch import nn

from rubric_influence.core.config import Influence
from rubric_influence.influence.examples import Example, collate
from rubric_influence.influence.gradients import plan_batches, refuse_non_finite, sample_losses, sweep_gradients
from rubric_influence.influence.layers import count_parameters, device_of, flatten, scored_parameters
from rubric_influence.influence.moments import AdamMoments, match_moments

Estimator = Literal["adam", "linear", "gradient", "forward"]
RELATIVE_STEP = 1e-2  # of the central difference: |h*u| over the norm of the parameters


class Scorer(Protocol):
    """Scores samples against k validation directions at one checkpoint; made once, called on many samples."""

    def score(self, examples: Sequence[Example]) -> torch.Tensor:
        """The scores of examples, [n, k], fp32, on the CPU, in the examples' order.

        Raises ValueError naming the first example whose score is not finite.
        """


class GradientScorer:
    """The estimators adam, linear and gradient: one backward for a batch's gradients, no projection, none stored.

    The model must stay at the checkpoint's weights, the moments' and directions' own.

    directions [k, d]: the w_k, such as stacked `validation_gradients`.
    momentum: False leaves m out of Gamma (m := 0; v' stays exact). m is a direction common to all samples, so it adds
        much the same to every score; the paper keeps it.
    normalise: False gives the dot products <w_k, Gamma(z)> in place of cosines; -lr times that is the first-order
        change of L_V by the step.

    Raises ValueError if the moments are not the model's, or a direction is of another size, not finite or zero.
    """

    def __init__(
        self,
        model: nn.Module,
        directions: torch.Tensor,
        moments: AdamMoments,
        *,
        momentum: bool,
        batch_tokens: int,
        normalise: bool = True,
        estimator: Literal["adam", "linear", "gradient"] = "adam",
    ):
        check_directions(directions, model)
        moments = match_moments(moments, model)
        device = device_of(model)
        self.model, self.batch_tokens, self.normalise, self.estimator = model, batch_tokens, normalise, estimator
        directions = directions.float().to(device)
        self.directions = directions / directions.norm(dim=1, keepdim=True) if normalise else directions
        # Gamma with what no sample changes taken out, and divided through by a = (1-b1) / (1-b1^(t+1)), so that each
        # gradient is read as rarely as can be: (first + g) / (sqrt(second + share*g^2) + eps).
        beta1, beta2 = moments.betas
        unbias1, unbias2 = (1 - beta ** (moments.step + 1) for beta in moments.betas)
        a = (1 - beta1) / unbias1
        self.first = (flatten(moments.exp_avg) * (beta1 / (1 - beta1))).to(device) if momentum else None
        self.second = (flatten(moments.exp_avg_sq) * (beta2 / unbias2 / a**2)).to(device)
        self.second_share, self.eps = (1 - beta2) / unbias2 / a**2, moments.eps / a
        self.scale = (frozen_scale(moments) / a).to(device) if estimator == "linear" else None

    def gamma(self, gradients: torch.Tensor, span: slice) -> torch.Tensor:
        """Gamma of flat gradients [b, span], the formulas above, in the gradients' own memory."""
        if self.estimator == "gradient":
            return gradients
        if self.estimator == "linear":
            scale = self.scale[span]
        else:
            scale = torch.addcmul(self.second[span], gradients, gradients, value=self.second_share)
            scale = scale.sqrt_().add_(self.eps)
        return (gradients if self.first is None else gradients.add_(self.first[span])).div_(scale)

    def score(self, examples: Sequence[Example]) -> torch.Tensor:
        device = self.directions.device
        dots = torch.zeros(len(examples), len(self.directions), device=device)
        squares = torch.zeros(len(examples), 1, device=device)

        def visit(rows: torch.Tensor, span: slice, gradients: torch.Tensor) -> None:
            gamma = self.gamma(gradients, span)
            dots.index_add_(0, rows, gamma @ self.directions[:, span].T)
            squares.index_add_(0, rows, torch.linalg.vector_norm(gamma, dim=1, keepdim=True).square())

        sweep_gradients(self.model, examples, self.batch_tokens, visit)
        scores = (dots / squares.sqrt() if self.normalise else dots).cpu()
        refuse_non_finite(scores, "score of example")
        return scores


class ForwardScorer:
    """The estimator forward: dot products of linear's Gamma from losses alone, for engines that cannot go backward.

    With Gamma(z) = P (a*g + c*m), P = 1 / (sqrt(v / (1-b2^t)) + eps) elementwise and frozen, and u_k = a * P * w_k:

        <w_k, Gamma(z)> = <u_k, g> + c * <w_k, P m>,   <u_k, g> ~ (l(z; theta + h*u_k) - l(z; theta - h*u_k)) / (2h)

    The idea is that of ToV (ICLR 2026); here with Adam's moments. h makes |h*u_k| a hundredth of the parameters' norm,
    and the error of the difference is of order h^2. Loss differences drown in rounding below fp32, so another dtype is
    refused. A cosine would need the norm of Gamma(z), which losses do not tell: scores are dot products.

    Raises ValueError as GradientScorer does, and for a model that is not fp32.
    """

    def __init__(
        self, model: nn.Module, directions: torch.Tensor, moments: AdamMoments, *, momentum: bool, batch_tokens: int
    ):
        check_directions(directions, model)
        if dtypes := {p.dtype for p in model.parameters()} - {torch.float32, torch.float64}:
            names = ", ".join(sorted(str(dtype) for dtype in dtypes))
            raise ValueError(
                f"the forward estimator takes differences of losses, which {names} rounds away; load the model in "
                "float32, or use another estimator"
            )
        moments = match_moments(moments, model)
        device = device_of(model)
        beta1 = moments.betas[0]
        unbias = 1 - beta1 ** (moments.step + 1)
        inverse = 1 / frozen_scale(moments).to(device)
        directions = directions.float().to(device)
        self.model, self.batch_tokens = model, batch_tokens
        self.perturbations = directions * inverse * ((1 - beta1) / unbias)
        common = directions @ (flatten(moments.exp_avg).to(device) * inverse * (beta1 / unbias))
        self.common = common if momentum else torch.zeros_like(common)
        size = flatten(scored_parameters(model)).norm()
        self.steps = RELATIVE_STEP * size / self.perturbations.norm(dim=1)

    def score(self, examples: Sequence[Example]) -> torch.Tensor:
        columns = []
        for step, perturbation in zip(self.steps, self.perturbations, strict=True):
            losses = []
            for sign in (1, -1):
                with moved(self.model, sign * step * perturbation):
                    losses.append(sweep_losses(self.model, examples, self.batch_tokens))
            columns.append((losses[0] - losses[1]) / (2 * step.double().cpu()))
        scores = (torch.stack(columns, dim=1) + self.common.double().cpu()).float()
        refuse_non_finite(scores, "score of example")
        return scores


def open_scorer(
    estimator: Estimator,
    model: nn.Module,
    directions: torch.Tensor,
    moments: AdamMoments,
    *,
    momentum: bool,
    batch_tokens: int,
    normalise: bool = True,
) -> Scorer:
    """The scorer of that name. Raises ValueError as its class does, and for cosines from the forward estimator."""
    if estimator == "forward":
        if normalise:
            raise ValueError("the forward estimator gives dot products, no cosines; set normalise to false with it")
        return ForwardScorer(model, directions, moments, momentum=momentum, batch_tokens=batch_tokens)
    return GradientScorer(
        model,
        directions,
        moments,
        momentum=momentum,
        batch_tokens=batch_tokens,
        normalise=normalise,
        estimator=estimator,
    )


def combine(scores: Sequence[torch.Tensor], learning_rates: Sequence[float]) -> torch.Tensor:
    """Inf(z) = sum_i eta_i * score_i over checkpoints, [n, k]: eta_i is epoch i's mean learning rate, summing to 1."""
    if not scores or len(scores) != len(learning_rates) or len({s.shape for s in scores}) != 1:
        shapes = [list(s.shape) for s in scores]
        raise ValueError(f"scores of shapes {shapes} and {len(learning_rates)} learning rates; give alike, one each")
    if not all(math.isfinite(rate) and rate > 0 for rate in learning_rates):
        raise ValueError(f"learning rates are {list(learning_rates)}; each must be above 0")
    total = sum(learning_rates)
    return sum(score * (rate / total) for score, rate in zip(scores, learning_rates, strict=True))


def frozen_scale(moments: AdamMoments) -> torch.Tensor:
    """sqrt(v / (1-b2^t)) + eps, [d]: the denominator of the last step, which linear takes for that of the next."""
    return (flatten(moments.exp_avg_sq) / (1 - moments.betas[1] ** moments.step)).sqrt() + moments.eps


@contextmanager
def moved(model: nn.Module, offset: torch.Tensor) -> Iterator[None]:
    """The model with its scored parameters moved by `offset` [d]; put back bit for bit on leaving."""
    parameters = scored_parameters(model)
    kept = [parameter.detach().clone() for parameter in parameters.values()]
    parts = offset.split([parameter.numel() for parameter in parameters.values()])
    try:
        with torch.no_grad():
            for parameter, part in zip(parameters.values(), parts, strict=True):
                parameter += part.view_as(parameter)
        yield
    finally:
        with torch.no_grad():
            for parameter, old in zip(parameters.values(), kept, strict=True):
                parameter.copy_(old)


@torch.no_grad()
def sweep_losses(model: nn.Module, examples: Sequence[Example], batch_tokens: int) -> torch.Tensor:
    """Each example's loss in eval mode, [n], fp64, on the CPU."""
    modes = [(module, module.training) for module in model.modules()]
    losses = torch.zeros(len(examples), dtype=torch.float64)
    try:
        model.eval()
        for rows in plan_batches([len(example.input_ids) for example in examples], batch_tokens):
            losses[rows] = sample_losses(model, collate([examples[row] for row in rows], pad_token_id=0)).double().cpu()
    finally:
        for module, mode in modes:
            module.training = mode
    return losses


def check_directions(directions: torch.Tensor, model: nn.Module) -> None:
    """Raises ValueError unless directions are [k, d] for this model's d, finite and none of them zero."""
    size = count_parameters(model)
    if directions.dim() != 2 or directions.shape[1] != size:
        raise ValueError(f"directions have shape {list(directions.shape)}; expected [directions, {size}]")
    refuse_non_finite(directions, "direction")
    if not (lengths := directions.float().norm(dim=1)).all():
        raise ValueError(f"direction {int((lengths == 0).nonzero()[0])} is zero; its validation loss is flat")


def open_configured_scorer(
    model: nn.Module, directions: dict[str, torch.Tensor], moments: AdamMoments, settings: Influence
) -> Scorer:
    """The scorer that a profile's section influence asks for, along named directions [d] in their order."""
    return open_scorer(
        settings.estimator,
        model,
        torch.stack(list(directions.values())),
        moments,
        momentum=settings.momentum,
        batch_tokens=settings.batch_tokens,
        normalise=settings.normalise,
    )

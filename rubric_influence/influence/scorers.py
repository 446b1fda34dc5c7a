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

A scorer has one method, score(examples) -> [n, k]; `open_scorer` makes one by the estimator's name. Scores do not
depend on batch size, padding or order. l(z) is the mean loss of z's labelled tokens.

Shapes: b samples in a batch, n samples, k directions, d scored parameters. Scores are fp32 whatever the model's dtype.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import nn

from rubric_influence.influence.gradients import check_finite, sweep_gradients
from rubric_influence.influence.layers import count_parameters, device_of, flatten, scored_parameters, uses_dora
from rubric_influence.influence.moments import AdamMoments, match_moments
from rubric_influence.models.examples import Example
from rubric_influence.models.losses import sweep_losses

Estimator = Literal["adam", "linear", "gradient", "forward"]
RELATIVE_STEP = 1e-2  # of the central difference: |h*u| over the norm of the parameters


class Scorer(Protocol):
    """Scores samples against k validation directions at one checkpoint; made once, called on many samples."""

    def score(self, examples: Sequence[Example]) -> torch.Tensor:
        """The scores of examples, [n, k], fp32, on the CPU, in the examples' order.

        Raises ValueError naming the first example whose score is not finite.
        """


class GradientScorer:
    """The estimators adam, linear and gradient: one backward a batch; no gradient is projected or stored.

    The model must keep the weights at which moments and directions were taken.

    directions [k, d]: the w_k, for example stacked `validation_gradients`.
    momentum: False leaves m out of Gamma (m := 0; v' stays exact). m is a direction common to all samples, so it adds
        much the same to every score; the paper keeps it.
    normalise: True gives cosines, False the dot products <w_k, Gamma(z)>: by the optimizer's step on z, L_V changes by
        -lr times the dot product to first order, in nats a token.

    Raises ValueError if the moments are not the model's, or a direction has another size, is not finite or is zero.
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
        directions, moments = place_directions(directions, model), match_moments(moments, model)
        device = directions.device
        self.model, self.batch_tokens, self.normalise, self.estimator = model, batch_tokens, normalise, estimator
        lengths = torch.linalg.vector_norm(directions, dim=1, keepdim=True, dtype=torch.float64)  # fp32 loses digits
        self.directions = directions / lengths.float() if normalise else directions
        # What no sample changes is computed once, and Gamma's fraction is divided through by a = (1-b1) / (1-b1^(t+1)),
        # so that each gradient is read as rarely as can be: (first + g) / (sqrt(second + share*g^2) + eps).
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
        if self.scale is not None:
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
            if self.normalise:
                squares.index_add_(0, rows, torch.linalg.vector_norm(gamma, dim=1, keepdim=True).square())

        sweep_gradients(self.model, examples, self.batch_tokens, visit)
        return check_finite((dots / squares.sqrt() if self.normalise else dots).cpu(), "score of example")


@dataclass(frozen=True)
class Differences:
    """What turns losses at moved parameters into the scores of the estimator forward, for each direction k.

    steps: h_k, [k], fp64. common: c * <w_k, P m>, [k], fp64, what every sample's score holds (`ForwardScorer`).
    """

    steps: torch.Tensor
    common: torch.Tensor

    def score(self, losses_k2n: torch.Tensor) -> torch.Tensor:
        """The scores [n, k], fp32, from each example's loss at theta + h_k*u_k and at theta - h_k*u_k, fp64.

        Raises ValueError naming the first example whose score is not finite.
        """
        slopes_kn = (losses_k2n[:, 0] - losses_k2n[:, 1]) / (2 * self.steps[:, None])
        return check_finite((slopes_kn + self.common[:, None]).T.float(), "score of example")


class ForwardScorer:
    """The estimator forward: linear's dot products from losses alone, for engines that have no backward.

    With Gamma(z) = P (a*g + c*m), P = 1 / (sqrt(v / (1-b2^t)) + eps) elementwise and frozen, and u_k = a * P * w_k:

        <w_k, Gamma(z)> = <u_k, g> + c * <w_k, P m>,   <u_k, g> ~ (l(z; theta + h*u_k) - l(z; theta - h*u_k)) / (2h)

    The idea is that of ToV (ICLR 2026); here with Adam's moments. `relative_step` is |h*u_k| over the parameters' norm,
    and the difference's error is of order h^2. A cosine would need the norm of Gamma(z), which losses do not tell.
    `influence.served` takes the same losses from an inference engine.

    Raises ValueError as GradientScorer does, and for a model below fp32, whose rounding hides such differences, or with
    DoRA, whose norms training takes for constants while losses follow them.
    """

    def __init__(
        self,
        model: nn.Module,
        directions: torch.Tensor,
        moments: AdamMoments,
        *,
        momentum: bool,
        batch_tokens: int,
        relative_step: float = RELATIVE_STEP,
    ):
        directions = place_directions(directions, model)
        if dtypes := {p.dtype for p in model.parameters()} - {torch.float32, torch.float64}:
            raise ValueError(
                f"the forward estimator takes differences of losses, which {', '.join(sorted(map(str, dtypes)))} "
                "rounds away; load the model in float32, or use another estimator"
            )
        if uses_dora(model):
            raise ValueError("the forward estimator measures DoRA's norms, which training holds constant; use linear")
        moments, device = match_moments(moments, model), directions.device
        beta1 = moments.betas[0]
        unbias = 1 - beta1 ** (moments.step + 1)
        inverse = 1 / frozen_scale(moments).to(device)
        self.model, self.batch_tokens = model, batch_tokens
        perturbations = directions * inverse * ((1 - beta1) / unbias)
        steps = relative_step * flatten(scored_parameters(model)).norm() / perturbations.norm(dim=1)
        self.offsets = perturbations * steps[:, None]  # h_k*u_k, [k, d]
        common = directions @ (flatten(moments.exp_avg).to(device) * inverse * (beta1 / unbias))
        common = common if momentum else torch.zeros_like(common)
        self.differences = Differences(steps.double().cpu(), common.double().cpu())

    def score(self, examples: Sequence[Example]) -> torch.Tensor:
        def losses(offset: torch.Tensor) -> torch.Tensor:
            with moved(self.model, offset):
                return sweep_losses(self.model, examples, self.batch_tokens)

        pairs = [torch.stack([losses(offset), losses(-offset)]) for offset in self.offsets]
        return self.differences.score(torch.stack(pairs))


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
    """The estimator's scorer. Raises ValueError as its class does, and for cosines from the forward estimator."""
    here = model, directions, moments
    if estimator == "forward":
        if normalise:
            raise ValueError("the forward estimator gives dot products, no cosines; set normalise to false with it")
        return ForwardScorer(*here, momentum=momentum, batch_tokens=batch_tokens)
    return GradientScorer(*here, momentum=momentum, batch_tokens=batch_tokens, normalise=normalise, estimator=estimator)


def combine(scores: Sequence[torch.Tensor], learning_rates: Sequence[float]) -> torch.Tensor:
    """Inf(z) = sum_i eta_i * score_i over checkpoints i, [n, k]; eta_i is its share of the sum of learning rates."""
    if not scores or len(scores) != len(learning_rates) or len({s.shape for s in scores}) != 1:
        shapes = [list(s.shape) for s in scores]
        raise ValueError(f"scores of shapes {shapes} and {len(learning_rates)} learning rates; give alike, one each")
    if not all(math.isfinite(rate) and rate > 0 for rate in learning_rates):
        raise ValueError(f"learning rates are {list(learning_rates)}; each must be above 0")
    total = sum(learning_rates)
    weighted = [score * (rate / total) for score, rate in zip(scores, learning_rates, strict=True)]
    return sum(weighted[1:], start=weighted[0])


def frozen_scale(moments: AdamMoments) -> torch.Tensor:
    """sqrt(v / (1-b2^t)) + eps, [d]: the last step's denominator, which linear uses in the next step too."""
    return (flatten(moments.exp_avg_sq) / (1 - moments.betas[1] ** moments.step)).sqrt() + moments.eps


@contextmanager
def moved(model: nn.Module, offset: torch.Tensor) -> Iterator[None]:
    """Moves the model's scored parameters by `offset` [d], and puts them back bit for bit on leaving."""
    parameters = [parameter.detach() for parameter in scored_parameters(model).values()]  # they share its memory
    kept = [parameter.clone() for parameter in parameters]
    try:
        for parameter, part in zip(parameters, offset.split([old.numel() for old in kept]), strict=True):
            parameter.add_(part.view_as(parameter))
        yield
    finally:
        for parameter, old in zip(parameters, kept, strict=True):
            parameter.copy_(old)


def place_directions(directions: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """Directions [k, d] in fp32 on the model's device. Raises ValueError if d differs, or one is not finite or zero."""
    size = count_parameters(model)
    if directions.dim() != 2 or directions.shape[1] != size:
        raise ValueError(f"directions have shape {list(directions.shape)}; expected [directions, {size}]")
    directions = check_finite(directions, "direction").float()
    if not (lengths := directions.norm(dim=1)).all():
        raise ValueError(f"direction {int((lengths == 0).nonzero()[0])} is zero; its validation loss is flat")
    return directions.to(device_of(model))

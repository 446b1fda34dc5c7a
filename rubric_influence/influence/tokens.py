"""How much each answer token contributed to a sample's influence: contributions that sum to the score.

A sample's gradient is the mean of its T labelled tokens', g = 1/T sum_t g_t, and Adam is elementwise, so each
coordinate of Gamma(g) lies on the secant from Gamma(0) with the slope s = (Gamma(g) - Gamma(0)) / g:

    score = <w, Gamma(g)> = <w, Gamma(0)> + <w * s, g> = offset + sum_t c_t,    c_t = 1/T <w * s, g_t>

The slope is the whole sample's, so contributions are linear in the tokens' gradients and nothing is left over. c_t is
the token's part of the step that the sample makes; it is not the score of a sample that holds the token alone, whose
Gamma would divide by other squares. The offset is what momentum does whatever the sample is, and 0 without momentum.

<u, g_t> is the derivative of l_t along u = w * s. One forward pass with dual numbers (forward-mode differentiation)
gives it for all tokens, where backward passes would take one a token. PyTorch's fused attention has no forward
derivative, so that of plain operations stands in for it.

Shapes: t labelled tokens, k directions, d scored parameters.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from rubric_influence.influence.gradients import example_gradients
from rubric_influence.influence.layers import device_of, scored_parameters
from rubric_influence.influence.scorers import GradientScorer, Scorer
from rubric_influence.models.examples import Example, collate
from rubric_influence.models.losses import evaluated, token_losses


def split_score(scorer: Scorer, example: Example) -> tuple[torch.Tensor, torch.Tensor]:
    """Each labelled token's contribution [t, k] to an example's scores, and the offset [k] that is no token's, fp64.

    On the CPU, in the score's unit: contributions.sum(dim=0) + offset is scorer.score([example])[0], up to rounding in
    the model's dtype. A cosine is shared out as its dot product is, at the norms of the whole sample.

    Raises ValueError for the forward estimator, for a model with an operation that has no forward derivative, and
    where the contributions do not add up.
    """
    if not isinstance(scorer, GradientScorer):
        raise ValueError(
            f"{type(scorer).__name__} has no gradients to share out among tokens; use the estimator linear, whose dot "
            "products the forward estimator measures"
        )
    model = scorer.model
    with torch.autocast(device_of(model).type, enabled=False):  # of the caller's, which would round the contributions
        gradient_d = example_gradients(model, [example], scorer.batch_tokens)[0].to(scorer.directions.device)
        slope_d, everything = secant_slope(scorer, gradient_d), slice(0, len(gradient_d))
        offset_k = scorer.directions @ scorer.gamma(torch.zeros_like(gradient_d)[None], everything)[0]
        columns = []
        for direction_d in scorer.directions:
            u_d = direction_d * slope_d
            column_t = token_derivatives(model, example, u_d).double()
            check_sum(model, column_t / len(column_t), u_d * gradient_d)
            columns.append(column_t / len(column_t))
    contributions_tk, offset_k = torch.stack(columns, dim=1).cpu(), offset_k.double().cpu()
    if scorer.normalise:
        length = scorer.gamma(gradient_d[None].clone(), everything).norm().double().cpu()
        return contributions_tk / length, offset_k / length
    return contributions_tk, offset_k


def secant_slope(scorer: GradientScorer, gradient_d: torch.Tensor) -> torch.Tensor:
    """(Gamma(g) - Gamma(0)) / g elementwise, [d], written so that nothing cancels and g = 0 gives the derivative.

    With Gamma(g) = (first + g) / (r(g) + eps), r(g) = sqrt(second + share*g^2), as GradientScorer has it:

        slope = 1 / (r(g) + eps) - first * share*g / ( (r(g) + r(0)) (r(g) + eps) (r(0) + eps) )
    """
    if scorer.estimator == "gradient":
        return torch.ones_like(gradient_d)
    if scorer.scale is not None:
        return 1 / scorer.scale
    root_d = torch.addcmul(scorer.second, gradient_d, gradient_d, value=scorer.second_share).sqrt_()
    slope_d = 1 / (root_d + scorer.eps)
    if scorer.first is None:
        return slope_d
    still_d = scorer.second.sqrt()
    both_d = (root_d + still_d).clamp_min(torch.finfo(root_d.dtype).tiny)  # 0 where g and v are 0
    bend_d = scorer.first * (scorer.second_share * gradient_d) / both_d
    return slope_d * (1 - bend_d / (still_d + scorer.eps))


@torch.no_grad()  # of backward alone: forward derivatives are made all the same
def token_derivatives(model: nn.Module, example: Example, direction_d: torch.Tensor) -> torch.Tensor:
    """d/dh of every labelled token's loss at parameters theta + h * direction, h = 0: [t], in nats a unit of h.

    Raises ValueError for a model with an operation that has no forward derivative.
    """
    parameters = scored_parameters(model)
    parts = direction_d.split([parameter.numel() for parameter in parameters.values()])
    with evaluated(model), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        duals = {
            parameter: forward_ad.make_dual(parameter.detach(), part.view_as(parameter).to(parameter))
            for parameter, part in zip(parameters.values(), parts, strict=True)
        }
        # A tied parameter goes by the name that each of its modules has for it, a module in two places by one name:
        # functional_call, which ties weights itself, would put a dual number back into a module that it swaps twice.
        places = {
            name: duals[parameter]
            for path, module in model.named_modules()
            for name, parameter in module.named_parameters(path, recurse=False, remove_duplicate=False)
            if parameter in duals
        }

        def call(**inputs: torch.Tensor) -> Any:
            return functional_call(model, places, kwargs=inputs, tie_weights=False)

        try:
            losses_1t = token_losses(call, collate([example]), device_of(model))
        except NotImplementedError as error:
            raise ValueError(
                f"the model has an operation without a forward derivative ({str(error).splitlines()[0]}); load it with "
                'attn_implementation="sdpa" or "eager"'
            ) from None
        slopes_1t = forward_ad.unpack_dual(losses_1t).tangent
    return (torch.zeros_like(losses_1t) if slopes_1t is None else slopes_1t)[0]


def check_sum(model: nn.Module, contributions_t: torch.Tensor, terms_d: torch.Tensor) -> None:
    """Raise ValueError unless the contributions sum to <u, g>, given as its terms: an operation may lose derivatives.

    Gradients are fp32 at best; the tolerance is the root of the coarsest dtype's rounding, of the terms' absolute sum.
    """
    rounding = max(torch.finfo(kind).eps for kind in {torch.float32, *(p.dtype for p in model.parameters())})
    found, expected = contributions_t.sum().item(), terms_d.double().sum().item()
    if not abs(found - expected) <= rounding**0.5 * terms_d.double().abs().sum().item():
        raise ValueError(
            f"the tokens' contributions sum to {found:g}, the gradient's product is {expected:g}: an operation of the "
            'model passes on a wrong forward derivative; load it with attn_implementation="eager"'
        )

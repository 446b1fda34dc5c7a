"""Influence as LESS and OptimSyn publish it: batch-1 autograd, Gamma, a random projection, a cosine.

What `collect_grads` of LESS (arXiv 2402.04333) and of OptimSyn (arXiv 2604.00536) does, per sample: forward and
backward at batch 1, the trained parameters' gradients in one vector, Adam's Gamma of it; per 16 samples: TRAK's
Rademacher projection to 8192 dimensions. The score is the cosine with the projected validation gradient.

Departures, so that nothing but batching and projection differs from the estimator `adam`: Gamma is the paper's (their
code has eps inside the square root and no bias correction), and all is fp32 (theirs is fp16 from the stacked gradients
on).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize

from rubric_influence.influence.checks.reference import reference_gamma
from rubric_influence.influence.layers import flatten, scored_parameters
from rubric_influence.influence.moments import AdamMoments, match_moments
from rubric_influence.models.examples import Example

PROJECTED = 8192  # proj_dim of both
FLUSH = 16  # project_interval of both: samples a projection
BLOCK = 128  # block_size of both: columns of the projection matrix that exist at once, 4 * BLOCK * d bytes


class PublishedScorer:
    """Scores one sample at a time; made and called as `GradientScorer` is.

    directions [k, d]: validation gradients, flat in the order of `scored_layers(model)`.
    momentum: False leaves m out of Gamma.
    projection: the width of the random projection, None for the exact cosine of batch-1 gradients.

    Raises ModuleNotFoundError where a projection is asked for and traker is not installed.
    """

    def __init__(
        self,
        model: nn.Module,
        directions: torch.Tensor,
        moments: AdamMoments,
        *,
        momentum: bool,
        projection: int | None = PROJECTED,
    ):
        self.model = model
        self.moments = match_moments(moments, model)
        self.parameters = [parameter.requires_grad_() for parameter in scored_parameters(model).values()]
        device = self.parameters[0].device
        self.second = flatten(self.moments.exp_avg_sq).to(device)
        self.first = flatten(self.moments.exp_avg).to(device) if momentum else torch.zeros_like(self.second)
        self.projector = make_projector(len(self.second), projection, device) if projection else None
        self.directions = normalize(self.project(directions.float().to(device)), dim=1)

    def gamma(self, example: Example) -> torch.Tensor:
        """Gamma of one example, [d], by plain autograd of the model's own loss."""
        device = self.parameters[0].device
        ids, labels = (torch.tensor([row], device=device) for row in (example.input_ids, example.labels))
        loss = self.model(input_ids=ids, labels=labels, use_cache=False).loss
        gradient = torch.cat([g.flatten().float() for g in torch.autograd.grad(loss, self.parameters)])
        return reference_gamma(gradient, self.first, self.second, self.moments)

    def project(self, vectors: torch.Tensor) -> torch.Tensor:
        """[n, d] to [n, projection], or as they are."""
        return vectors if self.projector is None else self.projector.project(vectors, model_id=0)

    def score(self, examples: Sequence[Example]) -> torch.Tensor:
        """The scores of examples, [n, k], fp32, on the CPU. The model is left in eval mode."""
        self.model.eval()
        scores = []
        for start in range(0, len(examples), FLUSH):
            gammas = torch.stack([self.gamma(example) for example in examples[start : start + FLUSH]])
            scores.append((normalize(self.project(gammas), dim=1) @ self.directions.T).cpu())
        return torch.cat(scores)


def make_projector(size: int, width: int, device: torch.device) -> Any:
    """TRAK's projector from `size` to `width` dimensions: CudaProjector where its kernel (fast_jl) is installed."""
    try:
        from trak.projectors import BasicProjector, CudaProjector, ProjectionType
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the random projection is the PyPI package traker, which is not installed here; run `make setup-peers` and "
            "use .venv-peers/bin/python, or pass projection=None"
        ) from None
    settings = dict(grad_dim=size, proj_dim=width, seed=0, proj_type=ProjectionType.rademacher, device=device)
    settings |= dict(block_size=BLOCK, dtype=torch.float32, max_batch_size=FLUSH)
    try:
        return CudaProjector(**settings)
    except (ValueError, ModuleNotFoundError):  # no CUDA, no fast_jl
        return BasicProjector(**settings)

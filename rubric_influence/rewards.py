"""Rewards of rubrics: pure functions from influence and validity to numbers.

Shapes: n rubrics, each with the influence of its pair along k validation directions (k = 1 for the paper's reward).
"""

from dataclasses import dataclass

import torch


def reward_influence(influence_nk: torch.Tensor, valid_n: torch.Tensor, invalid_penalty: float) -> torch.Tensor:
    """The paper's reward, [n]: R = Valid * IF - penalty * (1 - Valid), IF the mean over directions.

    OptimSyn (arXiv 2604.00536), section 3; penalty there is 0.1. An invalid rubric's influence is never read.
    """
    penalty_n = torch.full_like(influence_nk[:, 0], -invalid_penalty)
    return torch.where(valid_n, influence_nk.mean(dim=1), penalty_n)


def reward_published(influence_nk: torch.Tensor, valid_n: torch.Tensor) -> torch.Tensor:
    """The reward of OptimSyn's published code, [n], for comparison: (x - min x) / (max x - min x) over the batch.

    x is the influence, the mean over directions, and 0 where invalid: an invalid rubric does better than one of
    negative influence, and how much a rubric is worth depends on the batch's extremes. 0 for all where x does not vary.
    """
    x_n = reward_influence(influence_nk, valid_n, 0.0)
    spread = x_n.max() - x_n.min()
    return (x_n - x_n.min()) / spread if spread > 0 else torch.zeros_like(x_n)


def reward_random(valid_n: torch.Tensor, invalid_penalty: float, seed: int) -> torch.Tensor:
    """A control, [n]: uniform in [0, 1) for a valid rubric whatever it led to, else minus the penalty.

    A gain by this reward would be a gain by training as such, and a benchmark that shows one is broken.
    """
    drawn_n = torch.rand(len(valid_n), generator=torch.Generator().manual_seed(seed))
    return torch.where(valid_n, drawn_n, torch.full_like(drawn_n, -invalid_penalty))


def shuffle_influence(influence_nk: torch.Tensor, valid_n: torch.Tensor, seed: int) -> torch.Tensor:
    """A control: the valid rubrics' influence dealt out anew among them, [n, k]."""
    rows = valid_n.nonzero().flatten()
    dealt_nk = influence_nk.clone()
    dealt_nk[rows] = influence_nk[rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]]
    return dealt_nk


@dataclass(frozen=True)
class EarnedInfluence:
    """The positive influence that recent batches earned along each direction: the state of the set-level reward."""

    mass_k: torch.Tensor | None = None  # None before the first batch

    def update(self, influence_nk: torch.Tensor, valid_n: torch.Tensor) -> "EarnedInfluence":
        """The exponential average, half-life one batch, of the batch's mean positive influence by direction."""
        if not valid_n.any():
            return self
        earned_k = influence_nk[valid_n].clamp(min=0).mean(dim=0)
        return EarnedInfluence(earned_k if self.mass_k is None else (self.mass_k + earned_k) / 2)

    @property
    def weights_k(self) -> torch.Tensor:
        """1 / mass_k: the gradient of sum_k log(mass_k), a concave utility of the set. Ones if nothing was earned.

        A direction that earned less than a twentieth of the mean counts as if it had earned that much, so that one
        that no pair can reach does not drown the others.
        """
        mean = self.mass_k.mean()
        return 1 / self.mass_k.clamp(min=mean / 20) if mean > 0 else torch.ones_like(self.mass_k)


def reward_set_influence(
    influence_nk: torch.Tensor, valid_n: torch.Tensor, earned: EarnedInfluence, invalid_penalty: float
) -> tuple[torch.Tensor, EarnedInfluence]:
    """The set-level reward, [n], and the state after this batch.

    R = Valid * mean_k(IF_k / mass_k) - penalty * (1 - Valid), mass_k the influence already earned along direction k.
    A departure from the paper: with its reward, training collapses onto the direction that pays most; with diminishing
    returns each direction pays less the more it has been served. Influence in any unit gives the same reward, which is
    1 for a rubric that adds to every direction what valid rubrics added of late.
    """
    earned = earned.update(influence_nk, valid_n)
    if earned.mass_k is None:
        return torch.full_like(influence_nk[:, 0], -invalid_penalty), earned
    return reward_influence(influence_nk * earned.weights_k, valid_n, invalid_penalty), earned

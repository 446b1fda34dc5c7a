"""Rewards of rubrics: pure functions from influence and validity to numbers.

Shapes: n rubrics, each with the influence of its pair along k validation directions (k = 1 for the paper's reward). A
rubric of several pairs is credited for each, as if it were several, and gets the mean (rubric_reward.RubricReward).
"""

from dataclasses import dataclass, replace

import torch

MAX_SCARCITY = 4.0  # a direction that nobody serves must not drown the others


def reward_influence(influence_nk: torch.Tensor, valid_n: torch.Tensor, invalid_penalty: float) -> torch.Tensor:
    """The paper's reward, [n]: R = Valid * IF - penalty * (1 - Valid), IF the mean over directions.

    OptimSyn (arXiv 2604.00536), section 3; penalty there is 0.1. An invalid rubric's influence is never read.
    """
    penalty_n = torch.full_like(influence_nk[:, 0], -invalid_penalty)
    return torch.where(valid_n, influence_nk.mean(dim=1), penalty_n)


def reward_published(influence_nk: torch.Tensor, valid_n: torch.Tensor) -> torch.Tensor:
    """The reward of OptimSyn's published code, [n], for comparison: (x - min x) / (max x - min x) over the batch.

    x is the mean influence over directions, and 0 for an invalid rubric. So an invalid rubric does better than one of
    negative influence, and a rubric's worth depends on the batch's extremes. The reward is 0 where x does not vary.
    """
    x_n = reward_influence(influence_nk, valid_n, 0.0)
    spread = x_n.max() - x_n.min()
    return (x_n - x_n.min()) / spread if spread > 0 else torch.zeros_like(x_n)


def reward_random(valid_n: torch.Tensor, invalid_penalty: float, seed: int) -> torch.Tensor:
    """A control, [n]: uniform in [0, 1) for a valid rubric, whatever its pair, and minus the penalty for others.

    A gain by this reward would be a gain by training as such: a benchmark that shows one is broken.
    """
    drawn_n = torch.rand(len(valid_n), generator=torch.Generator().manual_seed(seed))
    return torch.where(valid_n, drawn_n, torch.full_like(drawn_n, -invalid_penalty))


def shuffle_influence(influence_nk: torch.Tensor, valid_n: torch.Tensor, seed: int) -> torch.Tensor:
    """A control: the influence of the valid rubrics in a random order among them, [n, k]."""
    rows = valid_n.nonzero().flatten()
    dealt_nk = influence_nk.clone()
    dealt_nk[rows] = influence_nk[rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]]
    return dealt_nk


@dataclass(frozen=True)
class ServedDirections:
    """Which validation directions recent rubrics served, and how well: the state of the set-level reward.

    weight_k: the share of the validation questions that direction k stands for; sums to 1.
    unit_k: the unit of quality, the root mean square of influence along k in the first batch, before training has
        changed anything. None before that batch.
    served_k: the mean, over recent valid rubrics, of their quality if k is the direction that they serve best, else 0.
        None before the first batch.
    """

    weight_k: torch.Tensor
    unit_k: torch.Tensor | None = None
    served_k: torch.Tensor | None = None

    def assign(self, influence_nk: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each rubric's quality max(0, max_k IF_k / unit_k), [n], and the direction k that reaches it, [n].

        A direction along which nothing had influence is no rubric's best, unless that is true of all directions.
        """
        assert self.unit_k is not None, "the first batch sets the unit"
        quality_n, best_n = (influence_nk / self.unit_k).nan_to_num(0.0, posinf=0.0, neginf=0.0).max(dim=1)
        return quality_n.clamp(min=0), best_n

    def update(self, influence_nk: torch.Tensor, valid_n: torch.Tensor) -> "ServedDirections":
        """The state after a batch: an exponential average, of a half-life of one batch, over its valid rubrics."""
        if not valid_n.any():
            return self
        if self.unit_k is None:
            return replace(self, unit_k=measure_unit(influence_nk[valid_n])).update(influence_nk, valid_n)
        quality_n, best_n = self.assign(influence_nk[valid_n])
        batch_k = torch.zeros_like(self.unit_k).index_add_(0, best_n, quality_n) / len(quality_n)
        return replace(self, served_k=batch_k if self.served_k is None else (self.served_k + batch_k) / 2)

    @property
    def scarcity_k(self) -> torch.Tensor:
        """Fair share over actual share of what was served, at most MAX_SCARCITY; 1 for all if nothing was served."""
        if self.served_k is None or not (total := self.served_k.sum()) > 0:
            return torch.ones_like(self.weight_k)
        return (self.weight_k * total / self.served_k).nan_to_num(0.0).clamp(max=MAX_SCARCITY)

    @property
    def utility(self) -> float:
        """sum_k weight_k log(served_k), in nats: what the set-level reward climbs. -inf where nothing was served.

        As in the reward, a direction counts as served to at least 1 / MAX_SCARCITY of its fair share.
        """
        if self.served_k is None or not (total := self.served_k.sum()) > 0:
            return float("-inf")
        least_k = self.weight_k * total / MAX_SCARCITY
        return (self.weight_k * self.served_k.maximum(least_k).log()).sum().item()


def measure_unit(influence_nk: torch.Tensor) -> torch.Tensor:
    """The root mean square of influence along every direction, [k]."""
    return influence_nk.square().mean(dim=0).sqrt()


def reward_set_influence(
    influence_nk: torch.Tensor, valid_n: torch.Tensor, served: ServedDirections, invalid_penalty: float
) -> tuple[torch.Tensor, ServedDirections]:
    """The set-level reward, [n], and the state after this batch.

    R = Valid * quality / recent mean quality * scarcity of the direction served - penalty * (1 - Valid)

    Up to the bound on scarcity this is the gradient of sum_k weight_k log(served_k), a concave utility of the set: what
    the set would lose without the rubric (leave-one-out credit), to first order in its share of the batch. Influence in
    any unit gives the same reward, which is 1 on average where all shares are fair.

    Departures from the paper. Returns diminish: with the paper's reward, training collapses onto the direction that
    pays most. A rubric counts for one direction, the one that it serves best: all directions share what validation
    questions have in common, above all their form, so in a sum over directions the rubrics of the strongest direction
    look good for all. Quality is relative to the first batch along the same direction, so a direction with long
    gradients weighs no more than others.
    """
    served = served.update(influence_nk, valid_n)
    reward_n = torch.full_like(influence_nk[:, 0], -invalid_penalty)
    if served.served_k is None:
        return reward_n, served
    quality_n, best_n = served.assign(influence_nk[valid_n])
    total = served.served_k.sum()
    reward_n[valid_n] = quality_n * served.scarcity_k[best_n] / total if total > 0 else 0.0
    return reward_n, served

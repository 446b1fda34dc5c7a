"""The influence of pairs by name: along all validation questions, their groups, the dev questions and the guard's."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

VALIDATION, DEV, GUARD = "validation", "dev", "guard"


@dataclass(frozen=True)
class Scores:
    """Influence of n pairs, fp32, on the CPU: positive where the step on a pair lowers that part's loss.

    whole_n    along all validation questions
    groups_nk  along their k topics or clusters; k = 0 where there are none
    dev_nj     along the dev questions nearest to each of these; j = 0 where the run does not choose by them
    guard_n    along the guard's questions, which no reward sees
    """

    whole_n: torch.Tensor
    groups_nk: torch.Tensor
    dev_nj: torch.Tensor
    guard_n: torch.Tensor

    def __len__(self) -> int:
        return len(self.whole_n)

    def __getitem__(self, rows: torch.Tensor | slice) -> "Scores":
        return Scores(self.whole_n[rows], self.groups_nk[rows], self.dev_nj[rows], self.guard_n[rows])

    @property
    def rewarded_nk(self) -> torch.Tensor:
        """What a set-level reward is over: the groups, or all validation questions where there are none."""
        return self.groups_nk if self.groups_nk.shape[1] else self.whole_n[:, None]


@dataclass(frozen=True)
class Directions:
    """The directions that pairs are scored along, in the order in which they are logged.

    `groups` and `dev` are names of topics or clusters: validation, groups, dev, guard. Raises ValueError where two
    directions have one name.
    """

    groups: tuple[str, ...] = ()
    dev: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if taken := sorted({name for name in self.names if self.names.count(name) > 1}):
            raise ValueError(f"a topic of the exam is called {taken[0]!r}, like another direction; rename that topic")

    @property
    def names(self) -> list[str]:
        return [VALIDATION, *self.groups, *self.dev, GUARD]

    def split(self, all_nd: torch.Tensor) -> Scores:
        """Scores from one column a direction."""
        whole, groups, dev, guard = all_nd.split([1, len(self.groups), len(self.dev), 1], dim=1)
        return Scores(whole.squeeze(1), groups, dev, guard.squeeze(1))

    def split_rows(self, rows: Sequence[Sequence[float]]) -> Scores:
        """Scores from one list of numbers a pair, as trajectories hold them."""
        return self.split(torch.tensor(rows, dtype=torch.float32).view(len(rows), len(self.names)))


def stack_scores(scores: Scores) -> torch.Tensor:
    """One column a direction, [n, d], in the order of `Directions.names`."""
    return torch.cat([scores.whole_n[:, None], scores.groups_nk, scores.dev_nj, scores.guard_n[:, None]], dim=1)

"""Figures of a step of rubric optimisation that show hacking, collapse and noise. None of them is rewarded.

Shapes: n pairs that a step's rubrics were to lead to.
"""

from collections.abc import Sequence

import torch

from rubric_influence.rl.scores import Scores
from rubric_influence.rl.trajectories import Trajectory


def describe_batch(trajectories: Sequence[Trajectory], scores: Scores, valid_n: torch.Tensor) -> dict[str, float]:
    """Figures of a step's trajectories over its valid pairs; 0 where there are none.

    Every trajectory has the same number of pairs, in the scores' order.

    valid               share of valid pairs among those that the rubrics were to lead to
    influence           mean along all validation questions
    guard_influence     mean along the guard's questions, which no reward sees: if it stops following `influence`, the
                        reward is being gamed
    distinct_rubrics    share of different wordings
    duplicate_pairs     share of valid pairs whose question an earlier pair asked, about the same document or another
    covered_directions  exp of the entropy of the positive influence over topics or clusters: 1 if one has it all, their
                        number if all have the same; 0 where there are none
    between_documents   share of the influence's variance that lies between documents and not between the rubrics of a
                        document: a reward that is compared within a document cannot use it
    within_rubrics      share of it that lies between the pairs of one rubric: the teacher's noise; 0 with one pair each
    length_correlation  Pearson's correlation of influence with the length of the answer in words
    """
    texts = [trajectory.rubric.raw or trajectory.rubric.text for trajectory in trajectories]
    pairs = [taught.pair for trajectory in trajectories for taught in trajectory.pairs if not taught.pair.problem]
    questions, lengths = [pair.question for pair in pairs], [len(pair.answer.split()) for pair in pairs]
    origin_n = torch.arange(len(trajectories)).repeat_interleave(len(valid_n) // len(trajectories))[valid_n]
    documents = [trajectories[place].rubric.document_id for place in origin_n.tolist()]
    valid = scores[valid_n]
    influence_n, guard_n = valid.whole_n.double(), valid.guard_n.double()
    return {
        "valid": valid_n.float().mean().item(),
        "influence": influence_n.mean().item() if pairs else 0.0,
        "guard_influence": guard_n.mean().item() if pairs else 0.0,
        "distinct_rubrics": len(set(texts)) / len(texts),
        "duplicate_pairs": 1 - len(set(questions)) / len(questions) if pairs else 0.0,
        "covered_directions": count_covered(valid.groups_nk.double()),
        "between_documents": share_between(documents, influence_n),
        "within_rubrics": share_within(origin_n.tolist(), influence_n),
        "length_correlation": correlate(torch.tensor(lengths), influence_n),
    }


def share_within(groups: Sequence, values_n: torch.Tensor) -> float:
    """The rest of the variance: 1 - `share_between`; 0 where nothing varies."""
    varies = len(groups) > 0 and (values_n != values_n[0]).any()
    return max(0.0, 1 - share_between(groups, values_n)) if varies else 0.0


def count_covered(scores_nk: torch.Tensor) -> float:
    """exp of the entropy of the directions' shares of the positive influence; 0 where there is none."""
    mass_k = scores_nk.clamp(min=0).sum(dim=0)
    if not mass_k.sum() > 0:
        return 0.0
    return torch.special.entr(mass_k / mass_k.sum()).sum().exp().item()


def share_between(groups: Sequence, values_n: torch.Tensor) -> float:
    """The share of the variance that lies between groups, in [0, 1]; 0 where nothing varies."""
    if not groups or not (total := (values_n - values_n.mean()).square().sum()) > 0:
        return 0.0
    members = [torch.tensor([group == name for group in groups]) for name in sorted(set(groups))]
    between = torch.stack([(values_n[rows_n].mean() - values_n.mean()) ** 2 * rows_n.sum() for rows_n in members])
    return (between.sum() / total).item()


def correlate(a_n: torch.Tensor, b_n: torch.Tensor) -> float:
    """Pearson's correlation; 0 where either does not vary."""
    a_n, b_n = (x.double() - x.double().mean() for x in (a_n, b_n))
    norm = a_n.norm() * b_n.norm()
    return (a_n @ b_n / norm).item() if norm > 0 else 0.0

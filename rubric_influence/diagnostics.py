"""What a step of rubric optimisation is like: figures that show hacking, collapse and noise. None of them is rewarded.

Shapes: n rubrics of a step, the influence of each (the mean of its pairs') along k directions, the guard's last.
"""

from collections.abc import Sequence

import torch


def describe_batch(rows: Sequence[dict], scores_nk: torch.Tensor, valid_n: torch.Tensor) -> dict[str, float]:
    """Figures of a step's trajectories (`rl.RubricReward` writes them), over its valid rubrics; 0 where there are none.

    valid               share of rubrics that can be used and led to a pair that can
    influence           mean along all validation questions
    guard_influence     mean along the guard's questions, which no reward sees: where it no longer follows, the reward
                        is being gamed
    distinct_rubrics    share of different wordings
    duplicate_pairs     share of valid pairs whose question a pair before asked already, of the same document or not
    covered_directions  exp of the entropy of the positive influence's shares by cluster or topic: from 1, all on one,
                        to as many as there are; 0 where there are none
    between_documents   share of the influence's variance that lies between documents, not between a document's rubrics:
                        it is no signal to a reward that is compared within a document
    length_correlation  Pearson's, of the influence with the answer's length in words
    """
    texts = [row["rubric"] for row in rows]
    found = {"valid": valid_n.float().mean().item(), "distinct_rubrics": len(set(texts)) / len(texts)}
    questions = [pair["question"] for row in rows for pair in row["pairs"] if not pair["problem"]]
    found["duplicate_pairs"] = 1 - len(set(questions)) / len(questions) if questions else 0.0
    usable = [row for row, valid in zip(rows, valid_n.tolist(), strict=True) if valid]
    scores_nk = scores_nk[valid_n].double()
    influence_n = scores_nk[:, 0]
    found["influence"] = influence_n.mean().item() if usable else 0.0
    found["guard_influence"] = scores_nk[:, -1].mean().item() if usable else 0.0
    found["covered_directions"] = count_covered(scores_nk[:, 1:-1])
    found["between_documents"] = share_between([row["document_id"] for row in usable], influence_n)
    found["length_correlation"] = correlate(torch.tensor([mean_length(row) for row in usable]), influence_n)
    return found


def count_covered(scores_nk: torch.Tensor) -> float:
    """exp of the entropy of the directions' shares in the positive influence; 0 where there is none."""
    mass_k = scores_nk.clamp(min=0).sum(dim=0)
    if not mass_k.sum() > 0:
        return 0.0
    return torch.special.entr(mass_k / mass_k.sum()).sum().exp().item()


def share_between(groups: Sequence[str], values_n: torch.Tensor) -> float:
    """The groups' share of the sum of squares about the mean, in [0, 1]; 0 where nothing varies."""
    if not groups or not (total := (values_n - values_n.mean()).square().sum()) > 0:
        return 0.0
    names = sorted(set(groups))
    place_n = torch.tensor([names.index(group) for group in groups])
    between = torch.stack(
        [
            (values_n[place_n == place].mean() - values_n.mean()) ** 2 * (place_n == place).sum()
            for place in range(len(names))
        ]
    )
    return (between.sum() / total).item()


def correlate(a_n: torch.Tensor, b_n: torch.Tensor) -> float:
    """Pearson's correlation; 0 where either does not vary."""
    a_n, b_n = (x.double() - x.double().mean() for x in (a_n, b_n))
    norm = a_n.norm() * b_n.norm()
    return (a_n @ b_n / norm).item() if norm > 0 else 0.0


def mean_length(row: dict) -> float:
    """Words of a trajectory's valid answers, on average."""
    lengths = [len(pair["answer"].split()) for pair in row["pairs"] if not pair["problem"]]
    return sum(lengths) / len(lengths)

"""The best set of so many pairs, by the set-level reward's utility with returns that diminish by document as well.

Shapes: n pairs, k validation directions.
"""

from collections.abc import Sequence

import torch

from rubric_influence.rl.rewards import ServedDirections


def choose_set(influence_nk: torch.Tensor, documents: Sequence[str], served: ServedDirections, count: int) -> list[int]:
    """The places, in order, of `count` pairs (all, where there are no more), chosen one by one to raise most

        sum_k weight_k log( sum_d log(1 + quality of the chosen pairs of document d that serve direction k best) )

    `served` holds the directions' weights and units (rewards.ServedDirections). The sum over k is the reward's utility;
    the inner logarithm is new: a second pair of a document on one subject adds less than a first, and less than another
    document's. Both are concave, so the utility is submodular, and choosing one by one reaches at least 1 - 1/e of the
    best (Nemhauser, Wolsey and Fisher 1978). Until a direction is served it counts as served by a hundredth of a pair.
    Of equal pairs the first is taken. Raises ValueError where there is not one document for each pair.
    """
    if len(documents) != len(influence_nk):
        raise ValueError(f"{len(documents)} documents for {len(influence_nk)} pairs; give one for each")
    quality_n, best_n = served.assign(influence_nk)
    place_n = torch.tensor([sorted(set(documents)).index(document) for document in documents], dtype=torch.long)
    held_dk = torch.zeros(len(set(documents)), len(served.weight_k))  # quality chosen so far
    left_n = torch.ones(len(documents), dtype=torch.bool)
    for _ in range(min(count, len(documents))):
        now_n = held_dk[place_n, best_n]
        more_n = ((1 + now_n + quality_n) / (1 + now_n)).log()
        total_k = held_dk.log1p().sum(dim=0) + 0.01
        gain_n = served.weight_k[best_n] * (1 + more_n / total_k[best_n]).log()
        row = int(torch.where(left_n, gain_n, -1.0).argmax())
        left_n[row] = False
        held_dk[place_n[row], best_n[row]] += quality_n[row]
    return (~left_n).nonzero().flatten().tolist()

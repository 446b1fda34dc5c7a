import pytest
import torch

from rubric_influence.rl.choosing import choose_set
from rubric_influence.rl.rewards import ServedDirections

EVEN = ServedDirections(torch.tensor([0.5, 0.5]), torch.ones(2))


def test_the_direction_that_is_served_less_comes_next():
    # Three pairs of quality 3 on direction 0 and one of quality 1 on direction 1, each of its own document. After the
    # first pick, log(1 + log(4) / (log(4) + .01)) = 0.69 for a second on direction 0, log(1 + log(2) / .01) = 4.25.
    influence = torch.tensor([[3.0, 0], [3, 0], [3, 0], [0, 1]])
    assert choose_set(influence, list("abcd"), EVEN, 2) == [0, 3]


def test_another_document_comes_before_a_second_pair_of_one():
    influence = torch.tensor([[1.0, 0], [1, 0], [0.9, 0]])
    assert choose_set(influence, ["a", "a", "b"], EVEN, 2) == [0, 2]
    assert choose_set(influence, ["a", "b", "b"], EVEN, 2) == [0, 1]


def test_of_a_document_and_direction_the_pair_of_most_quality_is_taken():
    influence = torch.tensor([[0.5, 0], [2, 0], [-1, -2]])
    assert choose_set(influence, ["a", "a", "a"], EVEN, 1) == [1]


def test_every_pair_is_taken_where_there_are_no_more():
    assert choose_set(torch.tensor([[-1.0, 0], [0, 0]]), ["a", "b"], EVEN, 5) == [0, 1]
    assert choose_set(torch.zeros(0, 2), [], EVEN, 5) == []


def test_units_and_the_order_of_pairs_do_not_matter():
    generator = torch.Generator().manual_seed(0)
    influence, documents = torch.randn(40, 2, generator=generator), [str(row % 7) for row in range(40)]
    chosen = choose_set(influence, documents, EVEN, 15)
    units = torch.tensor([1e3, 1e-3])
    assert choose_set(influence * units, documents, ServedDirections(EVEN.weight_k, units), 15) == chosen
    order = torch.randperm(40, generator=generator).tolist()
    moved = choose_set(influence[order], [documents[row] for row in order], EVEN, 15)
    assert sorted(order[row] for row in moved) == chosen


def test_each_pair_has_one_document():
    with pytest.raises(ValueError, match="1 documents for 2 pairs"):
        choose_set(torch.zeros(2, 2), ["a"], EVEN, 1)

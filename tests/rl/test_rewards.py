import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.rl.rewards import (
    ServedDirections,
    reward_influence,
    reward_published,
    reward_random,
    reward_set_influence,
    shuffle_influence,
)

NAN = float("nan")
masses = st.lists(st.floats(0, 1, width=32), min_size=2, max_size=6)


def test_the_papers_reward_is_mean_influence_or_minus_the_penalty():
    influence_nk = torch.tensor([[0.2, 0.4], [NAN, NAN], [-0.5, 0.1]])
    valid_n = torch.tensor([True, False, True])
    # (0.2 + 0.4) / 2; the penalty; (-0.5 + 0.1) / 2
    torch.testing.assert_close(reward_influence(influence_nk, valid_n, 0.1), torch.tensor([0.3, -0.1, -0.2]))


def start(unit=(1.0, 1.0), weight=None, served=None):
    """The state of the set-level reward after a first batch that gave this unit; equal weights unless given."""
    weight_k = torch.tensor(weight) if weight else torch.full((len(unit),), 1 / len(unit))
    return ServedDirections(weight_k, torch.tensor(unit), None if served is None else torch.tensor(served))


def test_a_rubric_serves_the_direction_on_which_it_does_most_for_that_directions_unit():
    influence_nk = torch.tensor([[30.0, 4.0], [50.0, 2.0], [-1.0, -2.0]])
    quality_n, best_n = start(unit=(100.0, 5.0)).assign(influence_nk)
    torch.testing.assert_close(quality_n, torch.tensor([0.8, 0.5, 0.0]))  # 4/5 over 30/100; 50/100 over 2/5; none
    assert best_n[:2].tolist() == [1, 0]


def test_the_unit_is_the_first_batchs_root_mean_square_and_stays():
    influence_nk = torch.tensor([[3.0, -1.0], [NAN, NAN], [4.0, 7.0]])
    first = ServedDirections(torch.tensor([0.5, 0.5]))
    assert first.update(influence_nk, torch.tensor([False] * 3)) is first
    served = first.update(influence_nk, torch.tensor([True, False, True]))
    torch.testing.assert_close(served.unit_k, torch.tensor([12.5, 25.0]).sqrt())  # (9 + 16) / 2 and (1 + 49) / 2
    # 3 / 3.54 is the first's best and 7 / 5 the other's, each over two rubrics.
    torch.testing.assert_close(served.served_k, torch.tensor([3 / 12.5**0.5 / 2, 7 / 5 / 2]))
    again = served.update(100 * influence_nk, torch.tensor([True, False, True]))
    assert torch.equal(again.unit_k, served.unit_k)


def test_a_direction_along_which_the_first_batch_had_no_influence_is_nobodys_best():
    influence_nk = torch.tensor([[0.1, 9.0], [-0.2, 0.0]])
    quality_n, best_n = start(unit=(1.0, 0.0)).assign(influence_nk)
    torch.testing.assert_close(quality_n, torch.tensor([0.1, 0.0]))
    assert best_n[0] == 0
    served = ServedDirections(torch.tensor([0.5, 0.5])).update(torch.zeros(2, 2), torch.tensor([True, True]))
    assert served.served_k.tolist() == [0.0, 0.0]


def test_the_influence_of_invalid_rubrics_is_never_read():
    valid_n = torch.tensor([True, False])
    for unread in (NAN, float("inf"), 1e30):
        influence_nk = torch.tensor([[0.2, 0.6], [unread, unread]])
        rewards, served = reward_set_influence(influence_nk, valid_n, start(), 0.1)
        torch.testing.assert_close(served.served_k, torch.tensor([0.0, 0.6]))
        # Quality is the mean's, 0.6 / 0.6; direction 1 has all of what is served in place of its fair half.
        torch.testing.assert_close(rewards, torch.tensor([0.5, -0.1]))


def test_what_was_served_has_a_half_life_of_one_batch():
    served = start(served=[1.0, 0.0])
    valid_n = torch.tensor([True])
    for expected in ([0.5, 0.4], [0.25, 0.6]):  # half of what was there and half of the batch's 0 and 0.8
        served = served.update(torch.tensor([[0.3, 0.8]]), valid_n)
        torch.testing.assert_close(served.served_k, torch.tensor(expected))


def test_a_batch_without_a_valid_rubric_serves_nothing_and_costs_the_penalty():
    influence_nk, valid_n = torch.zeros(2, 1), torch.tensor([False, False])
    for served in (start(), start(served=[0.3, 0.1])):
        rewards, after = reward_set_influence(influence_nk, valid_n, served, 0.25)
        assert after is served
        assert rewards.tolist() == [-0.25, -0.25]


def test_a_starved_direction_pays_four_times_its_quality_at_most():
    # Fair shares of 0.3 + 0.1 + 0 are 0.1, 0.1 and 0.2.
    scarcity_k = start((1.0, 1.0, 1.0), [0.25, 0.25, 0.5], [0.3, 0.1, 0.0]).scarcity_k
    torch.testing.assert_close(scarcity_k, torch.tensor([1 / 3, 1.0, 4.0]))


def test_nothing_served_yet_means_equal_scarcity_and_no_reward():
    torch.testing.assert_close(start(served=[0.0, 0.0]).scarcity_k, torch.ones(2))
    rewards, _ = reward_set_influence(torch.tensor([[-0.1, -0.2]]), torch.tensor([True]), start(), 0.1)
    assert rewards.tolist() == [0.0]


@given(masses)
def test_scarcity_falls_with_what_was_served(mass):
    served_k = torch.tensor(mass)
    scarcity_k = start(unit=[1.0] * len(mass), served=mass).scarcity_k
    assert (scarcity_k[served_k.argsort()].diff() <= 1e-6).all()
    assert scarcity_k.min() >= 0 and scarcity_k.max() <= 4


def test_a_direction_that_is_served_pays_less_from_batch_to_batch():
    # Two rubrics serve direction 0, one serves direction 1, equally well: only the shares tell them apart.
    influence_nk = torch.tensor([[0.5, 0.1], [0.5, 0.1], [0.1, 0.5]])
    valid_n = torch.ones(3, dtype=torch.bool)
    rewards, served = reward_set_influence(influence_nk, valid_n, start(), 0.1)
    # Served 1/3 and 1/6 of a total of 1/2, where 1/4 each would be fair: scarcity 3/4 and 3/2.
    torch.testing.assert_close(rewards, torch.tensor([0.75, 0.75, 1.5]))
    assert rewards.mean() == 1
    paid, owed = [rewards[0].item()], [served.scarcity_k[1].item()]
    for _ in range(3):
        rewards, served = reward_set_influence(influence_nk[[0, 0, 0]], valid_n, served, 0.1)
        paid.append(rewards[0].item())
        owed.append(served.scarcity_k[1].item())
    assert paid == sorted(paid, reverse=True) and owed == sorted(owed)
    assert owed[-1] / paid[-1] > 3 * owed[0] / paid[0]


def test_a_direction_that_all_rubrics_serve_a_little_does_not_make_them_alike():
    # Rubric 0 does more for direction 1 than rubric 1 does, in influence; not in what either direction's unit is.
    influence_nk = torch.tensor([[400.0, 60.0], [10.0, 50.0]])
    rewards, _ = reward_set_influence(influence_nk, torch.tensor([True, True]), start(unit=(400.0, 50.0)), 0.1)
    assert rewards[1] > 0.8 * rewards[0]


@given(st.floats(1e-3, 1e3))
def test_the_set_level_reward_is_the_same_in_any_unit(unit):
    influence_nk = torch.tensor([[0.5, -0.3], [0.1, 0.2], [NAN, NAN], [-0.2, 0.4]])
    valid_n = torch.tensor([True, True, False, True])
    rewards, served = reward_set_influence(influence_nk, valid_n, start((0.5, 0.3)), 0.7)
    again, other = reward_set_influence(unit * influence_nk, valid_n, start((0.5 * unit, 0.3 * unit)), 0.7)
    torch.testing.assert_close(again, rewards, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other.served_k, served.served_k)


def test_along_one_direction_the_set_level_reward_is_influence_over_its_mean():
    influence_nk, valid_n = torch.tensor([[0.3], [-0.2], [0.9]]), torch.tensor([True, True, True])
    rewards, served = reward_set_influence(influence_nk, valid_n, start((2.0,)), 0.1)
    assert served.served_k.item() == pytest.approx(0.2)  # (0.3 + 0 + 0.9) / 3, in units of 2
    torch.testing.assert_close(rewards, torch.tensor([0.75, 0.0, 2.25]))


def test_the_published_reward_pays_an_invalid_rubric_more_than_a_harmful_one():
    influence_nk = torch.tensor([[0.3], [NAN], [-0.1]])
    # 0.3, 0 for the invalid one, and -0.1, from 0 at the least to 1 at the most.
    rewards = reward_published(influence_nk, torch.tensor([True, False, True]))
    torch.testing.assert_close(rewards, torch.tensor([1.0, 0.25, 0.0]))


def test_the_published_reward_is_zero_where_nothing_varies():
    for influence_nk, valid in ((torch.full((3, 2), 0.4), True), (torch.full((3, 2), NAN), False)):
        assert reward_published(influence_nk, torch.tensor([valid] * 3)).tolist() == [0.0] * 3


def test_the_random_reward_tells_validity_alone():
    valid_n = torch.arange(4000) % 2 == 0
    rewards = reward_random(valid_n, 0.1, seed=3)
    assert torch.equal(rewards, reward_random(valid_n, 0.1, seed=3))
    assert not torch.equal(rewards, reward_random(valid_n, 0.1, seed=4))
    assert (rewards[~valid_n] == torch.tensor(-0.1)).all()
    assert rewards[valid_n].min() >= 0 and rewards[valid_n].max() < 1
    assert rewards[valid_n].mean().item() == pytest.approx(0.5, abs=0.03)  # six standard errors


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(0, 99))
def test_shuffling_deals_whole_rows_among_the_valid(valid, seed):
    valid_n = torch.tensor(valid)
    influence_nk = torch.arange(2.0 * len(valid)).reshape(-1, 2)
    dealt_nk = shuffle_influence(influence_nk, valid_n, seed)
    assert torch.equal(dealt_nk[~valid_n], influence_nk[~valid_n])
    assert sorted(dealt_nk.tolist()) == influence_nk.tolist()
    assert torch.equal(influence_nk, torch.arange(2.0 * len(valid)).reshape(-1, 2))  # not in place


def test_shuffling_breaks_the_link():
    influence_nk = torch.arange(1000.0)[:, None]
    dealt_nk = shuffle_influence(influence_nk, torch.ones(1000, dtype=torch.bool), seed=0)
    assert abs(torch.corrcoef(torch.cat([influence_nk, dealt_nk], dim=1).T)[0, 1]) < 0.15  # 4.7 standard errors


def test_the_utility_is_the_mean_log_of_what_is_served_with_a_floor():
    assert start().utility == start(served=[0.0, 0.0]).utility == float("-inf")
    assert start(served=[0.2, 0.05]).utility == pytest.approx((math.log(0.2) + math.log(0.05)) / 2)
    # Of 0.4 a fair share is 0.2, and a fourth of that is the least.
    assert start(served=[0.4, 0.0]).utility == pytest.approx((math.log(0.4) + math.log(0.05)) / 2)


def test_the_reward_is_leave_one_out_credit_in_a_large_batch():
    generator = torch.Generator().manual_seed(0)
    influence_nk, valid_n = torch.rand(400, 3, generator=generator), torch.ones(400, dtype=torch.bool)
    served = start((1.0, 1.0, 1.0), [0.5, 0.25, 0.25])
    reward_n, whole = reward_set_influence(influence_nk, valid_n, served, 0.1)
    for left_out in (0, 7, 399):
        kept = influence_nk.clone()
        kept[left_out] = 0  # it stays a part of the batch, and serves nothing
        without = served.update(kept, valid_n)
        assert 400 * (whole.utility - without.utility) == pytest.approx(reward_n[left_out].item(), rel=0.01)

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.rewards import (
    EarnedInfluence,
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


def test_the_influence_of_invalid_rubrics_is_never_read():
    valid_n = torch.tensor([True, False])
    for unread in (NAN, float("inf"), 1e30):
        influence_nk = torch.tensor([[0.2, 0.6], [unread, unread]])
        rewards, earned = reward_set_influence(influence_nk, valid_n, EarnedInfluence(), 0.1)
        torch.testing.assert_close(earned.mass_k, torch.tensor([0.2, 0.6]))
        torch.testing.assert_close(rewards, torch.tensor([1.0, -0.1]))  # (0.2 / 0.2 + 0.6 / 0.6) / 2


def test_only_positive_influence_is_earned():
    influence_nk = torch.tensor([[0.4, -0.2], [0.2, 0.1]])
    earned = EarnedInfluence().update(influence_nk, torch.tensor([True, True]))
    torch.testing.assert_close(earned.mass_k, torch.tensor([0.3, 0.05]))  # means of (0.4, 0.2) and (0, 0.1)


def test_earned_influence_has_a_half_life_of_one_batch():
    earned = EarnedInfluence(torch.tensor([1.0, 0.0]))
    valid_n = torch.tensor([True])
    for expected in ([0.5, 0.4], [0.25, 0.6]):  # half of what was there and half of the batch's 0 and 0.8
        earned = earned.update(torch.tensor([[0.0, 0.8]]), valid_n)
        torch.testing.assert_close(earned.mass_k, torch.tensor(expected))


def test_a_batch_without_a_valid_rubric_earns_nothing_and_costs_the_penalty():
    influence_nk, valid_n = torch.zeros(2, 1), torch.tensor([False, False])
    before = EarnedInfluence(torch.tensor([0.3, 0.1]))
    for earned in (EarnedInfluence(), before):
        rewards, after = reward_set_influence(influence_nk, valid_n, earned, 0.25)
        assert after is earned
        assert rewards.tolist() == [-0.25, -0.25]


def test_a_direction_that_nothing_reaches_counts_as_a_twentieth_of_the_mean():
    weights_k = EarnedInfluence(torch.tensor([0.3, 0.0])).weights_k
    torch.testing.assert_close(weights_k, torch.tensor([1 / 0.3, 1 / 0.0075]))  # mean mass 0.15


def test_nothing_earned_yet_means_equal_weights():
    torch.testing.assert_close(EarnedInfluence(torch.zeros(3)).weights_k, torch.ones(3))


@given(masses)
def test_weights_fall_with_mass(mass):
    mass_k = torch.tensor(mass)
    weights_k = EarnedInfluence(mass_k).weights_k
    by_mass = weights_k[mass_k.argsort()]
    assert (by_mass.diff() <= 1e-6 * by_mass[:-1]).all()


@given(masses)
def test_no_direction_drowns_the_others(mass):
    weights_k = EarnedInfluence(torch.tensor(mass)).weights_k
    # The largest mass is at most k times the mean, which is 20 times the floor.
    assert weights_k.max() <= 20 * len(mass) * weights_k.min() * (1 + 1e-5)


def test_a_direction_that_is_served_pays_less_from_batch_to_batch():
    # Two rubrics serve direction 0, one serves direction 1: equal influence, so only what is earned tells them apart.
    influence_nk = torch.tensor([[0.5, 0.0], [0.5, 0.0], [0.0, 0.5]])
    valid_n = torch.ones(3, dtype=torch.bool)
    rewards, earned = reward_set_influence(influence_nk, valid_n, EarnedInfluence(), 0.1)
    # Mass 1/3 and 1/6: the crowd's rubrics get (0.5 / (1/3)) / 2, the other (0.5 / (1/6)) / 2.
    torch.testing.assert_close(rewards, torch.tensor([0.75, 0.75, 1.5]))
    only_first = influence_nk[[0, 0, 0]]
    paid, owed = [rewards[0].item()], [rewards[2].item()]
    for _ in range(3):
        rewards, earned = reward_set_influence(only_first, valid_n, earned, 0.1)
        paid.append(rewards[0].item())
        owed.append((influence_nk[2] * earned.weights_k).mean().item())  # for the other direction, had one served it
    assert paid == sorted(paid, reverse=True) and owed == sorted(owed)
    assert owed[-1] / paid[-1] > 5 * owed[0] / paid[0]


@given(st.floats(1e-3, 1e3))
def test_the_set_level_reward_is_the_same_in_any_unit(unit):
    influence_nk = torch.tensor([[0.5, -0.3], [0.1, 0.2], [NAN, NAN], [-0.2, 0.4]])
    valid_n = torch.tensor([True, True, False, True])
    rewards, earned = reward_set_influence(influence_nk, valid_n, EarnedInfluence(), 0.7)
    again, other = reward_set_influence(unit * influence_nk, valid_n, EarnedInfluence(), 0.7)
    torch.testing.assert_close(again, rewards, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other.mass_k, unit * earned.mass_k)


def test_along_one_direction_the_set_level_reward_is_the_papers_over_what_was_earned():
    influence_nk, valid_n = torch.tensor([[0.3], [-0.2], [0.9]]), torch.tensor([True, True, True])
    set_reward, earned = reward_set_influence(influence_nk, valid_n, EarnedInfluence(), 0.1)
    assert earned.mass_k.item() == pytest.approx(0.4)  # (0.3 + 0 + 0.9) / 3
    torch.testing.assert_close(set_reward, reward_influence(influence_nk, valid_n, 0.1) / 0.4)


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

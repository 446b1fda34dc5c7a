from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.models.losses import plan_batches


def test_batches_hold_samples_of_like_length_within_the_budget():
    # Sorted 9 7 5 5 3 1 (ties in order). Budget 10: 9 alone; 7 alone (2 * 7 > 10); 5 5; then 3 1 (2 * 3 <= 10).
    assert plan_batches([5, 9, 1, 5, 7, 3], batch_tokens=10) == [[1], [4], [0, 3], [5, 2]]
    assert plan_batches([5, 9, 1, 5, 7, 3], batch_tokens=54) == [[1, 4, 0, 3, 5, 2]]
    assert plan_batches([], batch_tokens=10) == []


def test_a_sample_above_the_budget_is_a_batch_of_its_own():
    assert plan_batches([30, 2, 2], batch_tokens=4) == [[0], [1, 2]]


@given(st.lists(st.integers(1, 200), max_size=50), st.integers(1, 600))
def test_every_sample_is_in_one_batch_and_no_batch_of_several_exceeds_the_budget(lengths, budget):
    batches = plan_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= budget for b in batches)

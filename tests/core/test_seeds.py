"""Streams of one run must not draw the same, nor the streams of runs with other seeds."""

from itertools import product

from rubric_influence.core.seeds import seed_attempt, seed_batch, seed_final_rubrics, seed_rollout, seed_step

SEEDS, STEPS, PROCESSES = range(10), range(0, 10_000, 97), (0, 1, 2, 7, 63, 511)


def test_rubrics_and_pairs_of_rl_draw_differently_at_every_step_in_every_process():
    places = list(product(SEEDS, STEPS, PROCESSES))
    drawn = {function(*place) for function in (seed_step, seed_rollout) for place in places}
    assert len(drawn) == 2 * len(places)


def test_no_steps_of_a_process_reach_those_of_another_or_of_another_run():
    first = sorted(seed_step(seed, 0, process) for seed in SEEDS for process in range(512))
    assert min(after - before for before, after in zip(first, first[1:], strict=False)) > 10_000


def test_requests_attempts_and_sets_of_a_run_have_seeds_of_their_own():
    batches, attempts = range(0, 5_000, 64), range(5)
    drawn = [
        seed_batch(seed_attempt(of, attempt), start)
        for of, attempt, start in product((3, seed_final_rubrics(3)), attempts, batches)
    ]
    assert len(set(drawn)) == len(drawn)


def test_the_first_attempt_and_the_first_batch_have_the_runs_own_seed():
    assert seed_attempt(5, 0) == seed_batch(5, 0) == 5

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState

from rubric_influence.rl.guards import (
    Ending,
    WatchWindows,
    Window,
    find_divergence,
    measure_dev,
    read_ending,
    summarise_window,
)
from rubric_influence.rl.rewards import ServedDirections
from rubric_influence.rl.scores import Directions


def make_window(validation, guard, error=0.1):
    return Window(validation, error**2 / 2, guard, error**2 / 2)  # `error` is that of a difference of two


def test_a_window_is_the_mean_of_its_pairs_and_its_variance():
    # Validation's 1, 2, 6: mean 3, variance (4 + 1 + 9) / 2 = 7 over 3 pairs; what lies between is not read.
    scores = Directions(("topic",)).split_rows([[1.0, math.nan, 0.5], [2.0, math.nan, 0.5], [6.0, math.nan, 0.5]])
    found = summarise_window(scores)
    assert (found.validation, found.validation_variance) == pytest.approx((3, 7 / 3))
    assert (found.guard, found.guard_variance) == pytest.approx((0.5, 0))
    with pytest.raises(ValueError, match="1 scores; a variance needs two"):
        summarise_window(scores[:1])


def test_a_guard_that_falls_by_more_than_its_noise_while_validation_rises_has_diverged():
    assert find_divergence([make_window(1, 1), make_window(2, 0.65)]) == (
        "the guard's influence fell from 1 to 0.65 (standard error of the difference 0.1), while that of the "
        "validation questions went from 1 to 2: the reward is being gamed"
    )
    # From the best window on, wherever that was.
    assert find_divergence([make_window(0.5, 0.2), make_window(1, 1), make_window(1.2, 0.9), make_window(1.5, 0.6)])


@pytest.mark.parametrize(
    "windows",
    [
        [],
        [make_window(1, 1)],
        [make_window(1, 1), make_window(2, 0.75)],  # within three standard errors
        [make_window(1, 1), make_window(2, 1.5)],  # both rise
        [make_window(2, 2), make_window(1, 1)],  # both fall: coverage may be what was bought
        [make_window(1, 1), make_window(2, 0.2), make_window(2.5, 1.2)],  # it has come back
    ],
)
def test_noise_and_what_both_share_are_no_divergence(windows):
    assert find_divergence(windows) == ""


def test_dev_utility_is_in_the_first_windows_unit():
    served = ServedDirections(torch.tensor([0.5, 0.5]))
    directions = Directions(("topic",), ("dev, a", "dev, b"))
    first = directions.split_rows([[9.0, 9.0, 1.0, 2.0, 9.0], [9.0, 9.0, -1.0, -2.0, 9.0]])
    scores = directions.split_rows([[9.0, 9.0, 0.4, 0.0, 9.0], [9.0, 9.0, 0.0, 0.4, 9.0]])
    # 0.4 of 1 for the first, 0.4 of 2 for the second; each over two pairs.
    assert measure_dev(scores, first, served) == pytest.approx((math.log(0.2) + math.log(0.1)) / 2)


def watch(rows, dev_served=None, save_steps=2, until=6):
    """A trainer's state and the steps it stopped at; rows of scores by step, one window each `save_steps`."""
    directions = Directions(dev=("dev, validation",) if dev_served else ())

    def read_scores(ends):
        windows = [sum(rows[start:end], []) for start, end in zip([0, *ends], ends, strict=False)]
        return [directions.split_rows(window) for window in windows]

    callback = WatchWindows(read_scores, dev_served)
    state, stopped = TrainerState(), []
    for step in range(1, until + 1):
        state.global_step = step
        control = TrainerControl(should_save=step % save_steps == 0)
        callback.on_step_end(SimpleNamespace(save_steps=save_steps), state, control)
        if control.should_training_stop:
            stopped.append(step)
    return state, stopped


def test_a_run_is_stopped_at_the_end_of_the_window_that_diverges():
    steps = [[[1.0 + step, 5.0 - step], [1.1 + step, 5.1 - step]] for step in range(6)]
    state, stopped = watch(steps)
    assert stopped == [4, 6]  # the second window and, were training to go on, the third
    assert state.log_history[0]["step"] == 4 and "is being gamed" in state.log_history[0]["stopped"]
    assert state.best_global_step is None


def test_the_checkpoint_of_the_best_window_by_dev_is_marked():
    served = ServedDirections(torch.tensor([1.0]))
    # Validation and guard rise all the time; dev is best in the second window of two steps.
    dev = [0.1, 0.1, 0.5, 0.4, 0.2, 0.2]
    steps = [[[float(i), value, float(i)]] * 3 for i, value in enumerate(dev)]
    state, stopped = watch(steps, served)
    assert stopped == [] and state.best_global_step == 4
    assert state.best_metric == pytest.approx(math.log(0.45 / 0.1))


def test_windows_without_a_valid_pair_are_passed_over():
    served = ServedDirections(torch.tensor([1.0]))
    steps = [[]] * 4 + [[[1.0, 1.0, 1.0]] * 2] * 2
    state, stopped = watch(steps, served)
    assert stopped == [] and state.best_global_step == 6


STEPS = [{"step": step, "reward": 1.0} for step in (1, 2, 3)]


def test_a_run_that_was_stopped_ends_with_the_guards_reason():
    ending = read_ending([*STEPS, {"step": 3, "stopped": "gamed"}, {"step": 3, "train_loss": 0.1}], planned=8)
    assert ending == Ending(steps=3, planned=8, kept=3, stopped="gamed")
    assert ending.describe() == "It was stopped after 3 of 8 steps: gamed."


def test_a_run_that_kept_its_best_checkpoint_says_which():
    ending = read_ending([*STEPS, {"step": 2, "kept": "checkpoint-2"}], planned=3)
    assert ending == Ending(steps=3, planned=3, kept=2, stopped="")
    assert ending.describe() == "It ran to its end, 3 of 3 steps. The generator is that of step 2, the best by dev."
    assert read_ending(STEPS, 3).describe() == "It ran to its end, 3 of 3 steps."

"""What ends rubric optimisation early, and which of its checkpoints is kept. The reward decides neither.

Both look at windows, the steps between two checkpoints: at the influence of their pairs along the guard's questions,
which no reward sees, and along the dev questions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rubric_influence.rl.rewards import ServedDirections, measure_unit
from rubric_influence.rl.scores import Scores

CERTAIN = 3.0  # the guard must have fallen by so many standard errors


@dataclass(frozen=True)
class Window:
    """Mean influence of a window's valid pairs along all validation questions and along the guard's questions.

    The variance of a mean is the variance of the pairs over their number.
    """

    validation: float
    validation_variance: float
    guard: float
    guard_variance: float


def summarise_window(scores: Scores) -> Window:
    """The window of pairs with these scores. Raises ValueError for fewer than two."""
    if len(scores) < 2:
        raise ValueError(f"{len(scores)} scores; a variance needs two")
    ends_n2 = torch.stack([scores.whole_n, scores.guard_n], dim=1).double()
    mean, variance = ends_n2.mean(dim=0).tolist(), (ends_n2.var(dim=0) / len(ends_n2)).tolist()
    return Window(mean[0], variance[0], mean[1], variance[1])


def find_divergence(windows: Sequence[Window]) -> str:
    """Why the last window shows a reward that is being gamed; "" where it does not.

    It does where, since some earlier window, the guard's mean has fallen by more than CERTAIN standard errors of the
    difference while validation's mean has not fallen: no other expert question shares what the reward gained. (A run
    that trades influence for coverage loses both.)
    """
    for window in windows[:-1]:
        last = windows[-1]
        error = (window.guard_variance + last.guard_variance) ** 0.5
        if last.guard < window.guard - CERTAIN * error and last.validation >= window.validation:
            return (
                f"the guard's influence fell from {window.guard:.4g} to {last.guard:.4g} (standard error of the "
                f"difference {error:.2g}), while that of the validation questions went from {window.validation:.4g} to "
                f"{last.validation:.4g}: the reward is being gamed"
            )
    return ""


@dataclass(frozen=True)
class Ending:
    """How training ended: after `steps` of the `planned` ones, with the generator as it was after the step `kept`.

    `stopped` is why a guard ended it; "" where it ran to its end.
    """

    steps: int
    planned: int
    kept: int
    stopped: str

    def describe(self) -> str:
        """A sentence."""
        if self.stopped:
            told = f"It was stopped after {self.steps} of {self.planned} steps: {self.stopped}."
        else:
            told = f"It ran to its end, {self.steps} of {self.planned} steps."
        if self.kept != self.steps:
            told += f" The generator is that of step {self.kept}, the best by dev."
        return told


def read_ending(log: Sequence[Mapping[str, Any]], planned: int) -> Ending:
    """The end of a run by its trainer's log, to which WatchWindows and grpo.train_in add `stopped` and `kept`."""
    steps = max((entry["step"] for entry in log if "reward" in entry), default=0)
    stopped = next((entry["stopped"] for entry in log if "stopped" in entry), "")
    return Ending(steps, planned, next((entry["step"] for entry in log if "kept" in entry), steps), stopped)


class WatchWindows(TrainerCallback):
    """Looks at every window as its checkpoint is written.

    It stops a run whose guard diverges. Where there are dev questions to choose by, it marks the checkpoint that ends
    the window of the highest utility along them as the trainer's best, which the trainer then keeps. `read_scores`
    gives the scores of each window's valid pairs, for the steps at which windows end.
    """

    def __init__(self, read_scores: Callable[[Sequence[int]], list[Scores]], dev_served: ServedDirections | None):
        self.read_scores, self.dev_served = read_scores, dev_served

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if not control.should_save:
            return control
        ends = [*range(int(args.save_steps), state.global_step, int(args.save_steps)), state.global_step]
        scores = self.read_scores(ends)
        if self.dev_served and len(scores[-1]):
            utility = measure_dev(scores[-1], next(found for found in scores if len(found)), self.dev_served)
            if state.best_metric is None or utility > state.best_metric:
                state.best_metric, state.best_global_step = utility, state.global_step
        if reason := find_divergence([summarise_window(found) for found in scores if len(found) > 1]):
            ended: dict = {"step": state.global_step, "stopped": reason}
            state.log_history.append(ended)
            control.should_training_stop = True
        return control


def measure_dev(scores: Scores, first: Scores, dev_served: ServedDirections) -> float:
    """The set-level utility of these pairs along the dev directions, in nats.

    Its unit of quality is the first window's, so that windows can be compared.
    """
    start = replace(dev_served, unit_k=measure_unit(first.dev_nj))
    return start.update(scores.dev_nj, torch.ones(len(scores), dtype=torch.bool)).utility

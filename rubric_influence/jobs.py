"""Independent jobs of a stage (seeds, arms) over processes, with the same results however many there are."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from joblib import Parallel, delayed

from rubric_influence.config import Machine

Result = TypeVar("Result")


def run_limited(function: Callable[..., Result], arguments: tuple, threads: int | None) -> Result:
    if threads:
        torch.set_num_threads(threads)
    return function(*arguments)


def run_jobs(function: Callable[..., Result], jobs: Iterable[tuple], machine: Machine) -> list[Result]:
    """function(*job) for every job, in order, on `machine.workers` processes of `machine.threads` threads each.

    Sums of floating-point numbers depend on how many threads share them: with threads given, results are the same
    bytes whatever the number of workers or cores. An error in a job is raised here, once the others have stopped.
    """
    jobs = list(jobs)
    if machine.workers == 1 or len(jobs) <= 1:
        return [run_limited(function, job, machine.threads) for job in jobs]
    pool = Parallel(n_jobs=min(machine.workers, len(jobs)), backend="loky")
    return pool(delayed(run_limited)(function, job, machine.threads) for job in jobs)

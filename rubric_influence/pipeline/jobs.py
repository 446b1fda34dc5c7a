"""Independent jobs of a stage (seeds, arms) over processes, with the same results however many there are."""

import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from typing import TypeVar

import torch

from rubric_influence.core.config import Machine

Result = TypeVar("Result")


def run_limited(function: Callable[..., Result], arguments: tuple, threads: int | None) -> Result:
    if threads:
        torch.set_num_threads(threads)
    return function(*arguments)


def run_jobs(function: Callable[..., Result], jobs: Iterable[tuple], machine: Machine) -> list[Result]:
    """function(*job) for every job, in order, on `machine.workers` processes of `machine.threads` threads each.

    Sums of floating-point numbers depend on how many threads share them: with threads given, results are the same
    bytes whatever the number of workers or cores. The first error in a job is raised here, once those that had begun
    have ended; others are not begun.
    """
    jobs = list(jobs)
    if machine.workers == 1 or len(jobs) <= 1:
        return [run_limited(function, job, machine.threads) for job in jobs]
    workers = min(machine.workers, len(jobs))
    with ProcessPoolExecutor(workers, choose_context(machine), initializer=use_own_streams) as pool:
        futures = [pool.submit(run_limited, function, job, machine.threads) for job in jobs]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def choose_context(machine: Machine) -> BaseContext:
    """Forked workers have torch and transformers imported already, which takes others ten seconds of a core each.

    But a fork inherits neither a GPU nor OpenMP's threads, and a job of several threads would wait for these forever.
    """
    safe = sys.platform == "linux" and machine.threads == 1 and not torch.cuda.is_available()
    return get_context("fork" if safe else "spawn")


def use_own_streams() -> None:
    """Write to this process's own output: what stands for it in a notebook belongs to the kernel."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = open(descriptor, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)

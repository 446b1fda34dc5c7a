"""Independent jobs of a stage (seeds, arms) over processes, with the same results however many there are."""

import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar, TypeVarTuple

import torch

from rubric_influence.core.config import Config, Machine

Result = TypeVar("Result")
Job = TypeVarTuple("Job")  # a job's arguments


def run_seeds(function: Callable[[Config, int], Result], config: Config) -> dict[int, Result]:
    """Seed -> function(config, seed), for every seed of the profile, in their order; see `run_jobs`."""
    results = run_jobs(function, [(config, seed) for seed in config.seeds], config.machine)
    return dict(zip(config.seeds, results, strict=True))


def run_jobs(function: Callable[[*Job], Result], jobs: Iterable[tuple[*Job]], machine: Machine) -> list[Result]:
    """function(*job) for every job, in order, on `machine.workers` processes of `machine.threads` threads each.

    Sums of floating-point numbers depend on how many threads share them: with threads given, results are the same
    bytes whatever the number of workers or cores. The first error in a job is raised here, once the jobs under way
    have ended; no other job is begun.
    """
    jobs = list(jobs)
    workers = min(machine.workers, len(jobs))
    if workers <= 1:
        return [run_limited(function, job, machine) for job in jobs]
    # A fork has torch and transformers imported already, which takes other workers ten seconds of a core each. But it
    # inherits neither a GPU nor OpenMP's threads, for which a job of several threads would wait forever.
    safe = sys.platform == "linux" and machine.threads == 1 and not torch.cuda.is_available()
    context = get_context("fork" if safe else "spawn")
    with ProcessPoolExecutor(workers, context, use_own_streams) as pool:
        futures = [pool.submit(run_limited, function, job, machine) for job in jobs]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run_limited(function: Callable[[*Job], Result], job: tuple[*Job], machine: Machine) -> Result:
    if machine.threads:  # before every job, as an earlier one may have changed it
        torch.set_num_threads(machine.threads)
    return function(*job)


def use_own_streams() -> None:
    """Let a worker write to its own output: in a notebook, the sys.stdout that it inherits sends to the kernel."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = open(descriptor, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)

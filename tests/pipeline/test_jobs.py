import os
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from rubric_influence.core.config import Machine
from rubric_influence.pipeline.jobs import run_jobs, run_seeds


@pytest.fixture(autouse=True)
def threads():
    """Puts this process's number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def describe(number):
    return number, os.getpid(), torch.get_num_threads()


def add_up(seed):
    """A sum whose rounding depends on how threads share it."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1_000_000, generator=generator).sum().item()


def fail(number):
    if number == 1:
        raise ValueError(f"job {number} cannot be done")
    return number


def change_threads(number):
    found = torch.get_num_threads()
    torch.set_num_threads(2)
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_that_changes_its_threads_changes_no_later_jobs(workers):
    jobs = [(number,) for number in range(6)]
    assert run_jobs(change_threads, jobs, Machine(workers=workers, threads=1)) == [1] * 6


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_the_order_of_the_jobs(workers):
    results = run_jobs(describe, [(number,) for number in range(4)], Machine(workers=workers, threads=1))
    assert [number for number, _, _ in results] == [0, 1, 2, 3]
    assert {threads for _, _, threads in results} == {1}


def test_one_worker_or_one_job_stays_in_this_process():
    for jobs, workers in (([(0,), (1,)], 1), ([(0,)], 3)):
        assert {process for _, process, _ in run_jobs(describe, jobs, Machine(workers=workers))} == {os.getpid()}


def test_several_workers_are_other_processes():
    results = run_jobs(describe, [(number,) for number in range(4)], Machine(workers=2, threads=2))
    assert os.getpid() not in {process for _, process, _ in results}
    assert {threads for _, _, threads in results} == {2}


def test_jobs_may_be_of_several_arguments_and_come_from_a_generator():
    assert run_jobs(pow, ((2, number) for number in range(3)), Machine()) == [1, 2, 4]
    assert run_jobs(pow, [], Machine(workers=2)) == []


def test_results_are_the_same_numbers_on_any_number_of_workers():
    jobs = [(seed,) for seed in range(4)]
    alone = run_jobs(add_up, jobs, Machine(workers=1, threads=1))
    assert run_jobs(add_up, jobs, Machine(workers=2, threads=1)) == alone


@pytest.mark.parametrize("workers", [1, 2])
def test_every_seed_has_its_result_in_the_profiles_order(workers):
    config = SimpleNamespace(seeds=[3, 0], machine=Machine(workers=workers, threads=1))
    assert list(run_seeds(name_workers, config).items()) == [(3, (workers, 3)), (0, (workers, 0))]


def name_workers(config, seed):
    return config.machine.workers, seed


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_job_is_raised_here_as_it_is(workers):
    with pytest.raises(ValueError, match="job 1 cannot be done"):
        run_jobs(fail, [(number,) for number in range(3)], Machine(workers=workers))


def add_up_and_say(seed):
    print(f"seed {seed}", file=sys.stderr)
    return add_up(seed)


def test_workers_write_to_standard_error_and_train_after_this_process_did(capfd):
    torch.set_num_threads(2)
    weights = torch.ones(512, 512, requires_grad=True)
    (weights @ weights).sum().backward()  # threads of its own, which a forked worker lacks
    results = run_jobs(add_up_and_say, [(0,), (1,)], Machine(workers=2, threads=1))
    assert results == run_jobs(add_up, [(0,), (1,)], Machine(threads=1))
    assert sorted(capfd.readouterr().err.split("\n")) == ["", "seed 0", "seed 1"]


def test_no_job_is_begun_after_an_error(tmp_path):
    jobs = [(tmp_path / f"{number}", number == 0) for number in range(40)]
    with pytest.raises(ValueError, match="the first job"):
        run_jobs(leave_a_mark, jobs, Machine(workers=2, threads=1))
    assert len(list(tmp_path.iterdir())) < 20


def leave_a_mark(path, fails):
    path.touch()
    if fails:
        raise ValueError("the first job cannot be done")
    time.sleep(0.1)

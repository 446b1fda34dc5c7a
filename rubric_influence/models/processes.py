"""Processes that `accelerate launch` starts together: which one this is, and what they do in common.

A process that was started alone is the first of one, and nothing here does anything to it.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env

from rubric_influence.core.scratch import Workplace, deliver, discard, find_finished, is_finished, read_log, write_log

Value = TypeVar("Value")


def open_state() -> PartialState:
    """This process's place among those that were launched with it; the first call connects them.

    On the CPU where there is no GPU, or accelerate is told so.
    """
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    if cpu:  # else accelerate numbers it, and torch.load knows no device "cpu:0"; the trainer asks accelerate anew
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    return PartialState(cpu=cpu, timeout=timedelta(days=1))  # processes wait for the slowest


def share_batch(batch: int, micro_batch: int | None, name: str) -> tuple[int, int]:
    """How many of a batch's sequences each process takes at once, at most `micro_batch`, and how many times.

    Over all processes that is the batch. Raises ValueError where it cannot be; `name` is the batch's in the profile.
    """
    processes = open_state().num_processes
    if batch % processes:
        raise ValueError(
            f"{name} is {batch}, which {processes} processes cannot share equally; launch a number of processes that "
            "divides it, or change it"
        )
    share = batch // processes
    at_once = min(micro_batch or share, share)
    if share % at_once:
        raise ValueError(
            f"micro_batch ({at_once}) must divide each process's share of {name}, which is {share} of {batch} with "
            f"{processes} processes"
        )
    return at_once, share // at_once


def own_folder(scratch: str | Path) -> Path:
    """Where work of this number of processes resumes from; what another number has done cannot be gone on from."""
    processes = open_state().num_processes
    return Path(scratch) / f"processes-{processes}" if processes > 1 else Path(scratch)


def gather_rows(rows: list[Value]) -> list[Value]:
    """The rows of all processes, the first process's first."""
    open_state()
    return gather_object(rows)


def broadcast(value: Value) -> Value:
    """The main process's value, in every process."""
    open_state()
    return broadcast_object_list([value])[0]


def finish(train: Callable[[Path], list[dict]], made: str, place: Workplace) -> list[dict]:
    """The log of work that all processes do together: `train(folder)` leaves it in folder/made, and returns the log.

    What was finished before is not done again. The main process delivers it to place.out, and removes place.scratch
    unless it is to be kept.
    """
    state = open_state()
    work = find_finished(place.scratch) or own_folder(place.scratch)
    state.wait_for_everyone()  # all have looked before one writes
    if not is_finished(work):
        log = train(work)
        if state.is_main_process:
            write_log(work, log)
        state.wait_for_everyone()
    log = read_log(work)
    state.wait_for_everyone()
    if state.is_main_process:
        deliver(work / made, place.out)
        if not place.keep:
            discard(place.scratch)
    state.wait_for_everyone()
    return log

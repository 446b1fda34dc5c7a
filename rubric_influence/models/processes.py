"""Processes that `accelerate launch` starts together: which one this is, and what they do in common.

A process that was started alone is the first of one, and nothing here changes what it does.
"""

import json
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env

from rubric_influence.core.files import replace_file
from rubric_influence.core.scratch import Workplace, deliver, discard

Value = TypeVar("Value")
Log = list[dict[str, Any]]  # what a trainer logged, in order; JSON values


def open_state() -> PartialState:
    """This process's place among those that were launched with it; the first call connects them.

    They run on the CPU where there is no GPU or where accelerate is told so (ACCELERATE_USE_CPU).
    """
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    if cpu:  # else accelerate numbers it, and torch.load knows no device "cpu:0"; the trainer asks accelerate anew
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    return PartialState(cpu=cpu, timeout=timedelta(days=1))  # processes wait for the slowest


def share_batch(batch: int, micro_batch: int | None, name: str) -> tuple[int, int]:
    """How many sequences of a batch each process takes at once, at most `micro_batch`, and how many times.

    `name` is what the profile calls the batch. Raises ValueError where the shares cannot be equal.
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


def gather_rows(rows: list[Value]) -> list[Value]:
    """The rows of all processes, the first process's first."""
    open_state()
    return gather_object(rows)


def broadcast(value: Value) -> Value:
    """The main process's value, in every process."""
    open_state()
    return broadcast_object_list([value])[0]


def finish(train: Callable[[Path], Log], made: str, place: Workplace) -> Log:
    """The log of work that all processes do together, once: `train(folder)` leaves it in folder/made, returns the log.

    The main process writes the log beside the work when it is done; work that has a log is not done again. It then
    delivers the work to place.out, and removes place.scratch unless it is to be kept. Only the same number of
    processes can resume unfinished work, so each number has its own folder.
    """
    state, scratch = open_state(), Path(place.scratch)
    logs = [folder / "log.json" for folder in (scratch, *sorted(scratch.glob("processes-*")))]
    own = scratch / f"processes-{state.num_processes}" if state.num_processes > 1 else scratch
    finished = next(filter(Path.is_file, logs), None)
    path = finished or own / "log.json"
    state.wait_for_everyone()  # all have looked before one writes
    if not finished:
        log = train(path.parent)
        if state.is_main_process:
            with replace_file(path) as partial:
                partial.write_text(json.dumps(log), encoding="utf-8")
        state.wait_for_everyone()
    log = json.loads(path.read_text(encoding="utf-8"))
    state.wait_for_everyone()
    if state.is_main_process:
        deliver(path.parent / made, place.out)
        if not place.keep:
            discard(scratch)
    state.wait_for_everyone()
    return log

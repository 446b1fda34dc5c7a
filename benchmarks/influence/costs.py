"""What a pass over the samples costs: seconds, and the memory that it holds at most beyond what was held before it.

On a GPU memory is what torch allocated, on Linux without one the process's own; elsewhere it cannot be told.
"""

import ctypes
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")  # Linux's own account of a process
THRESHOLD = "MALLOC_MMAP_THRESHOLD_"


def time_alternately(
    passes: dict[str, Callable[[], object]], repeats: int, limit: float = float("inf")
) -> dict[str, float]:
    """The least seconds of each pass over `repeats` rounds, in each of which every pass runs once.

    No round after the first begins that would not end within `limit` seconds.
    """
    best = dict.fromkeys(passes, float("inf"))
    begun = time.perf_counter()
    for done in range(repeats):
        spent = time.perf_counter() - begun
        if done and spent * (done + 1) / done > limit:
            break
        for name, run in passes.items():
            started = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            best[name] = min(best[name], time.perf_counter() - started)
    return best


def describe_measure() -> str | None:
    """What `peak_while` counts here, None where it cannot."""
    if torch.cuda.is_available():
        return "cuda allocated"
    return "anonymous pages" if STATUS.exists() else None


@contextmanager
def exact_pages() -> Iterator[None]:
    """Processes started meanwhile give each tensor pages of its own, so that what is freed is not taken for held.

    glibc reads the variable as a process starts. It costs time: measure seconds in another process.
    """
    os.environ[THRESHOLD] = str(1 << 16)
    try:
        yield
    finally:
        del os.environ[THRESHOLD]


def held_memory() -> int:
    """Bytes of this process's own: anonymous pages, in memory or swapped out. Files' pages come and go."""
    lines = (line.split() for line in STATUS.read_text().splitlines())
    return sum(1024 * int(words[1]) for words in lines if words[0] in ("RssAnon:", "VmSwap:"))


def peak_while(run: Callable[[], object]) -> int:
    """The most bytes held while `run` runs beyond what was held before it; without a GPU looked at every two ms."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with suppress(OSError, AttributeError):  # glibc's; what it keeps of what was freed would be taken for held
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    before, most, over = held_memory(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.002):
            most = max(most, held_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        over.set()
        watcher.join()
    return most - before

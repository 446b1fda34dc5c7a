"""How long notebooks took: kept beside them, as executed copies with equal results are to be equal bytes."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rubric_influence.core.journal import Journal
from rubric_influence.core.scratch import SCRATCH

SECONDS = SCRATCH / "seconds.jsonl"


@contextmanager
def timed(executed: Path) -> Iterator[None]:
    """Keep how long the block took to write an executed notebook; only in a project's root, whose scratch git ignores.

    By content, so that no other execution is taken for the one that wrote what is there now.
    """
    started = time.monotonic()
    yield
    if Path("dvc.yaml").is_file():
        Journal(SECONDS).add(hash_file(executed), round(time.monotonic() - started, 1))


def read_seconds() -> dict[str, float]:
    """Hash of an executed notebook -> seconds of the last execution that wrote it."""
    return Journal(SECONDS).values if SECONDS.is_file() else {}


def hash_file(path: Path) -> str:
    """MD5, as DVC hashes a file."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()

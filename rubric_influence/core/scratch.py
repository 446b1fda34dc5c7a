"""Folders of unfinished work, so that an interrupted stage resumes where it stopped.

DVC deletes a stage's outputs before it runs. So a stage resumes from a git-ignored folder,
`scratch/<stage>/<hash of everything that shapes the result>`: other inputs have another folder. Answers that were paid
for are in `scratch/answers` and outlive a change of inputs, since their keys hold everything that shapes them.

A run may be killed at any moment. So a folder of finished work appears under its name in one step, and goes in one.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from rubric_influence.core.records import content_id

SCRATCH = Path("scratch")


@dataclass(frozen=True)
class Workplace:
    """Folders of one piece of work."""

    out: Path  # receives what is finished
    scratch: Path  # what the work resumes from
    keep: bool = False  # finished work stays in `scratch` until a call without `keep` delivers it again and removes it


def scratch_folder(stage: str, *inputs: object) -> Path:
    """The folder, made if need be, that this stage resumes from when it runs again with the same inputs."""
    folder = SCRATCH / stage / content_id(*inputs)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def answers_path(stage: str, seed: int, process: int = 0) -> Path:
    """The file where a process of a stage keeps the answers of an endpoint, whatever the stage's other inputs are."""
    suffix = f"-process-{process}" if process else ""
    return SCRATCH / "answers" / f"{stage}-seed-{seed}{suffix}.jsonl"


def deliver(finished: Path, out: Path) -> None:
    """Replace `out` by a copy of a finished folder; a folder of that name is whole at any moment."""
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(finished, partial)
    if out.exists():
        discard(out)
    partial.rename(out)


def discard(folder: Path) -> None:
    """Remove a folder. It is renamed first, so that nobody resumes from half of it."""
    doomed = folder.with_name(f"{folder.name}.discarded")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)

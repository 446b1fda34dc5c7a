"""Folders of finished work, so that an interrupted stage resumes where it stopped.

DVC deletes a stage's outputs before it runs. So a stage resumes from a git-ignored folder,
`scratch/<stage>/<hash of everything that shapes the result>`: other inputs have another folder. Answers that were paid
for are in `scratch/answers`, whatever else changed: their keys hold everything that shapes them.

A kill may come at any moment. So finished work appears under its name in one step, and goes in one step.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from rubric_influence.core.files import replace_file
from rubric_influence.core.records import content_id

SCRATCH = Path("scratch")


@dataclass(frozen=True)
class Workplace:
    """Where a piece of work is done: `out` receives what is finished, `scratch` is what it resumes from.

    With `keep`, what is finished stays in `scratch`, and the next call delivers it and removes it.
    """

    out: Path
    scratch: Path
    keep: bool = False


def scratch_folder(stage: str, *inputs: object) -> Path:
    """The folder, made if need be, that this stage resumes from when it runs again with the same inputs."""
    folder = SCRATCH / stage / content_id(*inputs)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def answers_path(stage: str, seed: int, process: int = 0) -> Path:
    """Where a stage keeps what an endpoint answered, whatever its other inputs are; each process its own."""
    own = f"-process-{process}" if process else ""
    return SCRATCH / "answers" / f"{stage}-seed-{seed}{own}.jsonl"


def deliver(finished: str | Path, out: str | Path) -> None:
    """Copy a finished folder to `out`, in place of what is there: a folder of that name is whole."""
    out = Path(out)
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(finished, partial)
    if out.exists():
        discard(out)
    partial.rename(out)


def discard(folder: str | Path) -> None:
    """Remove a folder of work. Under its name it is gone at once, so that nobody goes on from half of it."""
    folder = Path(folder)
    doomed = folder.with_name(f"{folder.name}.discarded")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def write_log(folder: str | Path, log: list[dict]) -> None:
    """Note that the work in a folder is done, with the log of it: `find_finished` finds the folder from now on."""
    with replace_file(Path(folder) / "log.json") as partial:
        partial.write_text(json.dumps(log), encoding="utf-8")


def read_log(folder: str | Path) -> list[dict]:
    """What `write_log` noted."""
    return json.loads((Path(folder) / "log.json").read_text(encoding="utf-8"))


def is_finished(folder: str | Path) -> bool:
    return (Path(folder) / "log.json").is_file()


def find_finished(scratch: str | Path) -> Path | None:
    """The folder with finished work: `scratch` itself, or that of as many processes as did it. None: there is none."""
    return next(filter(is_finished, [Path(scratch), *sorted(Path(scratch).glob("processes-*"))]), None)

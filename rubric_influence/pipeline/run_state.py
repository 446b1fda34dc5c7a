"""What of the pipeline has run: each stage's state by DVC and by its executed notebook, and its data."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import yaml
from dvc.exceptions import DvcException
from dvc.repo import Repo

from rubric_influence.core.checks import MOST_LISTED
from rubric_influence.pipeline.timings import hash_file, read_seconds


class State(StrEnum):
    DONE = "done"
    FAILED = "failed"
    OUTDATED = "out of date"  # what is shown is of an earlier run, with other parameters, code or data
    MISSING = "not run yet"


@dataclass(frozen=True)
class StageRun:
    """A stage of dvc.yaml that executes a notebook. `why`: what a state other than done comes from."""

    name: str
    executed: Path
    state: State
    why: str
    notebook: nbformat.NotebookNode | None  # None where it has not run
    seconds: float | None  # of the execution that wrote the notebook; None where this project did not time it


def read_stages() -> list[StageRun]:
    """The stages of the current project in the order of dvc.yaml. Raises ValueError where none has run."""
    try:
        with Repo() as repo:
            executed = {
                stage.name: Path(out.def_path)
                for stage in repo.index.stages
                for out in stage.outs
                if stage.cmd and out.def_path.endswith(".ipynb")
            }
            needed = {name: [s.name for s in repo.stage.collect(name, with_deps=True)] for name in executed}
            changed = repo.status(list(executed))  # of these alone: the stage that writes the report is locked by now
    except DvcException as error:
        raise ValueError(f"DVC cannot say what has run: {error}") from None
    seconds, stages = read_seconds(), []
    for name, path in executed.items():
        changes = {before: changed[before] for before in needed[name] if before in changed}
        stages.append(read_stage(name, path, changes, seconds))
    if all(stage.state is State.MISSING for stage in stages):
        raise ValueError("no stage has run: there is no executed notebook in reports/; run the pipeline: make repro")
    return stages


def read_stage(name: str, executed: Path, changes: Mapping[str, list], seconds: Mapping[str, float]) -> StageRun:
    """One stage. `changes`: what `dvc status` says of it and of the stages before it, by stage."""
    if not executed.is_file():
        return StageRun(name, executed, State.MISSING, f"there is no {executed}", None, None)
    notebook = nbformat.read(executed, as_version=4)
    taken = seconds.get(hash_file(executed))
    if failure := find_failure(notebook):
        return StageRun(name, executed, State.FAILED, failure, notebook, taken)
    why = "; ".join(describe_change(before, found) for before, found in changes.items())
    return StageRun(name, executed, State.OUTDATED if why else State.DONE, why, notebook, taken)


def find_failure(notebook: nbformat.NotebookNode) -> str:
    """The first error's own words; where a cell was never run, that; "" for a notebook that came to its end."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    for output in (output for cell in code for output in cell.outputs):
        if output.output_type == "error":
            return f"{output.ename}: {output.evalue}"
    left = sum(cell.execution_count is None for cell in code)
    told = f"it ended before {left} of its {len(code)} code cells had run: killed, interrupted, or still running"
    return told if left else ""


def describe_change(stage: str, found: list[dict[str, dict] | str]) -> str:
    """What `dvc status` says of a stage, in one line: "gate: params.yaml (gate.threshold modified)"."""
    told: list[str] = []
    for kind in found:
        if isinstance(kind, str):
            told.append(kind)
            continue
        for changed in kind.values():
            for name, how in changed.items():
                inner = ", ".join(f"{key} {what}" for key, what in how.items()) if isinstance(how, dict) else how
                told.append(f"{name} ({inner})")
    more = [f"and {len(told) - MOST_LISTED} more"] if len(told) > MOST_LISTED else []
    return f"{stage}: {', '.join([*told[:MOST_LISTED], *more])}"


def tabulate_hashes(stages: list[StageRun], lock: Path = Path("dvc.lock")) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What these stages read that no stage writes, and what they wrote, as dvc.lock has it: path, MD5 and bytes.

    DVC's hash of a folder is that of the list of its files' hashes, and ends in .dir. Empty without a dvc.lock.
    """
    locked: dict[str, Any] = (yaml.safe_load(lock.read_text(encoding="utf-8")) if lock.is_file() else {}) or {}
    entries = [locked["stages"][stage.name] for stage in stages if stage.name in locked.get("stages", {})]
    written, read = (
        {(row["path"], row["md5"]): row["size"] for entry in entries for row in entry.get(side, [])}
        for side in ("outs", "deps")
    )
    paths = {path for path, _ in written}
    inputs = {key: size for key, size in read.items() if not any(is_within(key[0], path) for path in paths)}
    return tabulate_sizes(inputs), tabulate_sizes(written)


def is_within(path: str, other: str) -> bool:
    return path == other or path.startswith(f"{other}/")


def tabulate_sizes(sizes: Mapping[tuple[str, str], int]) -> pd.DataFrame:
    rows = [{"path": path, "MD5": md5, "bytes": f"{size:,}"} for (path, md5), size in sorted(sizes.items())]
    return pd.DataFrame(rows, columns=["path", "MD5", "bytes"]).set_index("path")

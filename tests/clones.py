"""Running the pipeline in a clone of the project, as its users do."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

from rubric_influence.core.profiles import merge

REPOSITORY = Path(__file__).resolve().parent.parent


def clone_project(folder: Path) -> Path:
    """Copy what git tracks, as it is in the working tree, into a repository of its own without any lock or result."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if name != "dvc.lock" and not name.startswith(("metrics/", "plots/")) and (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((REPOSITORY / name).read_bytes())
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


def run_command(command: list[str], folder: Path) -> subprocess.CompletedProcess:
    """Run a command of this Python's environment in a clone, on the clone's own copy of the package."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "DVC_NO_ANALYTICS": "1",
    }
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def list_run_stages(output: str) -> list[str]:
    """The stages that a `dvc repro` ran, by its standard output."""
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def set_params(folder: Path, profile: str, changes: dict) -> None:
    """Make a clone's profile, with nested changes, its active one."""
    params = merge(yaml.safe_load((folder / profile).read_text(encoding="utf-8")), changes)
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")

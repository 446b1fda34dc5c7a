"""`make repro` in a folder that is no clone."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_without_a_git_folder_the_way_out_is_told_and_works(tmp_path):
    (tmp_path / "requirements").mkdir()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "requirements/core.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for name in ("dvc", "pip"):
        (tmp_path / ".venv/bin" / name).symlink_to(Path(sys.executable).with_name(name))
    (tmp_path / ".venv/bin/rubric-influence").symlink_to("/bin/true")
    (tmp_path / ".venv/core.done").touch()
    (tmp_path / ".dvc").mkdir()

    def make() -> subprocess.CompletedProcess:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
        return subprocess.run(["make", "repro"], cwd=tmp_path, capture_output=True, text=True, env=environment)

    refused = make()
    assert refused.returncode == 2
    advice = refused.stderr.splitlines()[0]
    assert advice.startswith("This folder has no .git, which DVC looks for.")
    command = advice.partition("do without: ")[2].split()
    subprocess.run(command, cwd=tmp_path, check=True)
    (tmp_path / "dvc.yaml").write_text("stages: {a: {cmd: touch made, outs: [made]}}")
    done = make()
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "made").exists()

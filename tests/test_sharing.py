"""A run travels from clone to clone by the committed remote and the commands of docs/scale.md.

The pipeline's own dvc.yaml, with stand-ins for what its stages would write: what is shared is files, whatever is in
them.
"""

import re
import subprocess
from pathlib import Path

import pytest
from clones import clone_project, run_command
from dvc.repo import Repo
from sources import ROOT

pytestmark = pytest.mark.slow

SECTION = re.search(r"^## Sharing a run\n(.*?)(?=^## |\Z)", (ROOT / "docs/scale.md").read_text("utf-8"), re.M | re.S)[1]
COMMANDS = [line.partition("#")[0].strip() for line in re.findall(r"^    (.+)", SECTION, re.MULTILINE)]
UP_TO_DATE = "Data and pipelines are up to date."
GIT = ["git", "-c", "user.name=someone", "-c", "user.email=someone@example.org"]


def run(command: list[str], folder: Path) -> str:
    result = run_command(command, folder)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}{result.stderr}"
    return result.stdout


def share(folder: Path) -> None:
    """The page's commands for the one who shares, in the clone that has run."""
    run([*GIT, "add", "--all"], folder)
    run([*GIT, "commit", "--message", "A run"], folder)
    assert "dvc push" in COMMANDS
    run(["dvc", "push"], folder)


def list_written(folder: Path) -> set[Path]:
    """A file for every out of the pipeline, and those within outs that later stages read."""
    stages = Repo(folder).index.stages
    outs = {folder / out.def_path for stage in stages for out in stage.outs}
    read = {folder / dep.def_path for stage in stages for dep in stage.deps}
    return {path if path.suffix else path / "seed-0/file.txt" for path in outs} | {
        path for path in read if outs & set(path.parents)
    }


def finish_run(folder: Path, text: str) -> None:
    """Put files with the text where the stages write, and record them as what the stages wrote."""
    for file in list_written(folder):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    run(["dvc", "commit", "--force"], folder)


def read_run(folder: Path) -> set[str]:
    """The texts of all that the stages wrote. Raises FileNotFoundError where one is missing."""
    return {file.read_text("utf-8") for file in list_written(folder)}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone whose run is shared."""
    folder = tmp_path_factory.mktemp("sharing") / "first"
    folder.mkdir()
    clone_project(folder)
    finish_run(folder, "run 1")
    share(folder)
    return folder


@pytest.fixture(scope="module")
def second(first: Path) -> Path:
    """A clone of it that has pulled the run."""
    folder = first.parent / "second"
    subprocess.run(["git", "clone", "--quiet", first, folder], check=True)
    assert not (folder / "data/corpus").exists() and (folder / "metrics/headline.json").exists()
    (told,) = [line for line in COMMANDS if line.startswith("dvc remote modify --local shared url")]
    run([*told.split()[:-1], str(first / told.split()[-1].partition("/")[2])], folder)
    assert "dvc pull" in COMMANDS
    run(["dvc", "pull"], folder)
    return folder


def test_a_pushed_run_is_whole_and_up_to_date_in_a_second_clone(second: Path):
    assert read_run(second) == {"run 1"} and len(list_written(second)) > 20
    assert "dvc status" in COMMANDS
    assert run(["dvc", "status"], second).strip() == UP_TO_DATE


def test_the_default_remote_lies_within_the_clone_and_git_does_not_see_it(first: Path, second: Path):
    assert run(["git", "status", "--short"], first) == run(["git", "status", "--short"], second) == ""
    assert any((first / ".dvc/remote").rglob("*")) and not (second / ".dvc/remote").exists()
    assert sorted(path.name for path in first.parent.iterdir()) == ["first", "second"]


def test_a_later_run_is_pulled_and_an_earlier_one_checked_out_again(first: Path, second: Path):
    finish_run(first, "run 2")
    share(first)
    run(["git", "pull", "--quiet"], second)
    assert run(["dvc", "status"], second).strip() != UP_TO_DATE
    run(["dvc", "pull"], second)
    assert read_run(second) == {"run 2"}
    assert "git checkout COMMIT && dvc checkout" in COMMANDS
    run(["git", "checkout", "--quiet", "HEAD~1"], second)
    run(["dvc", "checkout"], second)
    assert read_run(second) == {"run 1"}
    assert run(["dvc", "status"], second).strip() == UP_TO_DATE


def test_another_remote_takes_one_command(second: Path):
    told = [line.split() for line in COMMANDS if line.startswith("dvc remote modify shared url ")]
    assert [command[-1].partition(":")[0] for command in told] == ["/mnt/shared/rubric-influence", "s3", "ssh"]
    for command in told:
        run(command, second)
        assert run(["dvc", "remote", "list", "--project"], second).split() == ["shared", command[-1], "(default)"]

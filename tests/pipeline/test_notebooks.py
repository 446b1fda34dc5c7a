import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from rubric_influence.core.checks import RunStopped
from rubric_influence.pipeline.notebooks import describe_end, drop_volatile, execute

REPOSITORY = Path(__file__).parents[2]
# What stages do: results on standard output, progress on standard error, in between and at any pace.
CHATTY = """
import random, sys, time
from tqdm import tqdm
for number in tqdm(range(5), desc="working", mininterval=0):
    print("result", number)
    sys.stdout.flush()
    print("started at", time.time(), file=sys.stderr)
    sys.stderr.flush()
    time.sleep(random.random() / 5)
"""


def write_notebook(path, *sources, parameters=""):
    cells = [new_markdown_cell("# A stage"), new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    cells += [new_code_cell(source) for source in sources]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), path)
    return path


def run(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "rubric_influence", "notebook", *arguments],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY), "HOME": str(folder)},
        capture_output=True,
        text=True,
    )


def list_texts(path):
    return [
        output.get("text") for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", [])
    ]


def test_two_runs_give_the_same_bytes_whatever_their_progress(tmp_path):
    source = write_notebook(tmp_path / "stage.ipynb", CHATTY, "object()", "{'accuracy': 0.5}")
    for name in ("first", "second"):
        execute(source, tmp_path / name / "stage.ipynb")
    first = (tmp_path / "first/stage.ipynb").read_bytes()
    assert (tmp_path / "second/stage.ipynb").read_bytes() == first
    printed = "".join(f"result {number}\n" for number in range(5))
    assert list_texts(tmp_path / "first/stage.ipynb") == [printed, None, None]
    assert b"papermill" not in first
    nbformat.validate(nbformat.read(tmp_path / "first/stage.ipynb", as_version=4))


def test_a_command_shows_output_while_it_runs_and_takes_parameters(tmp_path):
    source = write_notebook(
        tmp_path / "stage.ipynb",
        "import sys; print(repr((seed, rate, fast))); print('progress', file=sys.stderr)",
        parameters="seed, rate, fast = 0, 0.1, True",
    )
    result = run(tmp_path, source.name, "out/stage.ipynb", "-p", "seed", "7", "-p", "fast", "false")
    assert result.returncode == 0, result.stderr
    assert "(7, 0.1, False)" in result.stdout and "progress" in result.stderr
    assert list_texts(tmp_path / "out/stage.ipynb") == ["(7, 0.1, False)\n"]


def test_a_failing_notebook_ends_in_one_and_says_why_on_standard_error(tmp_path):
    source = write_notebook(tmp_path / "stage.ipynb", "print('before')", "raise ValueError('no documents at /nowhere')")
    result = run(tmp_path, source.name, "out.ipynb")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-2:]
    assert last == ["stage.ipynb stopped: ValueError: no documents at /nowhere", "(trace: out.ipynb)"]
    kept = (tmp_path / "out.ipynb").read_text(encoding="utf-8")
    assert "before" in kept and "Traceback" in kept


def test_a_kernel_that_dies_ends_in_one_with_a_message(tmp_path):
    source = write_notebook(tmp_path / "stage.ipynb", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    result = run(tmp_path, source.name, "out.ipynb")
    assert result.returncode == 1
    assert "stage.ipynb stopped: its kernel died: it was killed (SIGKILL)" in result.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("code", "short_of_memory", "said"),
    [
        (-9, True, "its kernel died: it was killed (SIGKILL), as the system was short of memory"),
        (-9, False, "its kernel died: it was killed (SIGKILL) by someone, or for want of memory"),
        (-11, False, "its kernel died of SIGSEGV in native code"),
        (-64, False, "its kernel died of SIGRTMAX"),
        (-50, False, "its kernel died of signal 50"),
        (3, False, "its kernel ended itself with exit code 3: code that it ran called exit, perhaps"),
    ],
)
def test_a_death_is_told_with_its_signal_or_exit_code(code, short_of_memory, said):
    assert describe_end(code, short_of_memory) == said


def test_a_kernel_that_exits_is_not_said_to_have_been_killed(tmp_path):
    source = write_notebook(tmp_path / "stage.ipynb", "import os; os._exit(3)")
    with pytest.raises(RunStopped, match="stage.ipynb stopped: its kernel ended itself with exit code 3"):
        execute(source, tmp_path / "out.ipynb")


def test_other_kernels_and_profiles_change_nothing(tmp_path, monkeypatch):
    spec = tmp_path / "jupyter/kernels/python3/kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text('{"argv": ["false"], "display_name": "another", "language": "python"}')
    startup = tmp_path / "ipython/profile_default/startup/00.py"
    startup.parent.mkdir(parents=True)
    startup.write_text("ran_at_start = True")
    temporary = tmp_path / ("long-" * 16)
    temporary.mkdir()
    for name, value in (("JUPYTER_PATH", "jupyter"), ("IPYTHONDIR", "ipython"), ("TMPDIR", temporary.name)):
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setattr(tempfile, "tempdir", None)
    source = write_notebook(tmp_path / "stage.ipynb", "import sys; print(sys.executable, 'ran_at_start' in globals())")
    execute(source, tmp_path / "out.ipynb")
    assert list_texts(tmp_path / "out.ipynb") == [f"{sys.executable} False\n"]


def test_notebooks_at_once_in_one_folder_do_not_meet(tmp_path):
    sources = [write_notebook(tmp_path / f"{name}.ipynb", f"print('{name}')") for name in "abc"]
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda source: run(tmp_path, source.name, f"out/{source.name}"), sources))
    assert [result.returncode for result in results] == [0, 0, 0], [result.stderr for result in results]
    assert [list_texts(tmp_path / "out" / source.name) for source in sources] == [["a\n"], ["b\n"], ["c\n"]]
    assert not list(tmp_path.glob("kernel*"))


def test_a_parameter_that_the_notebook_lacks_is_refused_before_it_runs(tmp_path):
    magic = "%config Completer.use_jedi = False\nepochs, rate = 1, 0.1"
    source = write_notebook(tmp_path / "stage.ipynb", "print(epochs)", parameters=magic)
    with pytest.raises(ValueError, match="stage.ipynb has no parameter 'epoch'; did you mean epochs\\?"):
        execute(source, tmp_path / "out.ipynb", {"epoch": 3})
    with pytest.raises(ValueError, match="has no parameter 'seed'; it has epochs, rate"):
        execute(source, tmp_path / "out.ipynb", {"rate": 0.2, "seed": 3})
    assert not (tmp_path / "out.ipynb").exists()


@pytest.mark.parametrize("content", [None, "not a notebook", "{}"])
def test_a_file_that_is_no_notebook_ends_in_one_with_a_message(tmp_path, content):
    if content is not None:
        (tmp_path / "stage.ipynb").write_text(content, encoding="utf-8")
    result = run(tmp_path, "stage.ipynb", "out.ipynb")
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("stage.ipynb cannot be read as a notebook: ")


def test_only_what_changes_between_equal_runs_is_dropped():
    cell = new_code_cell("f()", execution_count=3, metadata={"tags": ["kept"], "papermill": {}, "execution": {}})
    cell.outputs = [
        new_output("stream", name="stdout", text="one\n"),
        new_output("stream", name="stderr", text="10%"),
        new_output("stream", name="stdout", text="two\n"),
        new_output("display_data", data={"text/plain": "<Axes at 0x7f12ab>", "image/png": "aGk="}),
        new_output("stream", name="stdout", text="three\n"),
        new_output("execute_result", data={"text/plain": "3"}, execution_count=3),
    ]
    notebook = new_notebook(cells=[cell], metadata={"papermill": {"duration": 1.5}, "widgets": {}, "kept": 1})
    drop_volatile(notebook)
    assert notebook.metadata == {"kept": 1}
    assert (cell.id, cell.metadata, cell.execution_count) == ("cell-0", {"tags": ["kept"]}, 3)
    assert [output.get("text") or output.data["text/plain"] for output in cell.outputs] == [
        "one\ntwo\n",
        "<Axes>",
        "three\n",
        "3",
    ]
    assert cell.outputs[1].data["image/png"] == "aGk="

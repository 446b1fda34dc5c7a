"""Run a notebook by papermill and keep an executed copy that is the same bytes for the same results.

Output goes to the terminal while the notebook runs. The copy leaves out what changes from run to run: timestamps,
durations, and standard error, which carries progress and warnings. A failed notebook is kept as it is, to look into.
"""

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import nbformat
import papermill
from traitlets.config import Config

from rubric_influence.core.checks import RunStopped

# glibc gives large buffers back to the system after every operation on them, and fetches them page by page for the
# next one: a fifth of the time of a small model on CPU. The kernel and its workers read these settings as they start.
KEPT_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


def drop_volatile(notebook: nbformat.NotebookNode) -> None:
    """Take out of an executed notebook, in place, what two runs with equal results would not share."""
    for key in ("papermill", "widgets"):
        notebook.metadata.pop(key, None)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            outputs, cell.outputs = cell.outputs, []
            for output in (output for output in outputs if output.get("name") != "stderr"):
                if "text/plain" in output.get("data", {}):  # <Styler at 0x7f...>
                    output.data["text/plain"] = re.sub(r" at 0x[0-9a-f]+", "", output.data["text/plain"])
                if cell.outputs and output.output_type == cell.outputs[-1].output_type == "stream":
                    cell.outputs[-1].text += output.text  # one printed text, which progress parts at random
                else:
                    cell.outputs.append(output)


@contextmanager
def kernel_stderr_silenced() -> Iterator[TextIO]:
    """Yields this process's standard error, which processes that are started meanwhile do not inherit.

    A kernel sends us what its child processes write, and writes it to its own standard error as well: every line of a
    worker's progress would show twice.
    """
    sys.stderr.flush()
    with os.fdopen(os.dup(2), "w", buffering=1) as stderr, open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
        try:
            yield stderr
        finally:
            os.dup2(stderr.fileno(), 2)


def execute(source: str | Path, target: str | Path, parameters: Mapping[str, object] | None = None) -> None:
    """Execute `source` with the kernel of this very Python, and write the executed notebook to `target`.

    Raises RunStopped with the error's own message if a cell raises (`target` then shows where) or the kernel dies, and
    ValueError for a file that is no notebook.
    """
    try:
        nbformat.read(source, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        cause = str(error).partition("\n")[0]
        raise ValueError(f"{source} cannot be read as a notebook: {cause}") from None
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # progress bars are text here, as they should be
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # of every small step before a training run
    for name, value in KEPT_MEMORY.items():
        os.environ.setdefault(name, value)
    options = {"kernel_name": "python3", "progress_bar": False, "stdout_file": sys.stdout}
    options["config"] = Config({"KernelManager": {"transport": "ipc"}})  # no open port
    try:
        with kernel_stderr_silenced() as stderr:
            papermill.execute_notebook(str(source), str(target), dict(parameters or {}), stderr_file=stderr, **options)
    except papermill.PapermillExecutionError as error:
        raise RunStopped(f"\n{source} stopped: {error.ename}: {error.evalue}\n(trace: {target})") from None
    except RuntimeError as error:  # nbclient's DeadKernelError
        raise RunStopped(f"\n{source} stopped: its kernel died, for want of memory perhaps ({error})") from None
    notebook = nbformat.read(target, as_version=4)
    drop_volatile(notebook)
    nbformat.write(notebook, target)

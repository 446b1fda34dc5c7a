"""Run a notebook by papermill and keep an executed copy that is the same bytes for the same results.

    python -m rubric_influence.execution notebooks/01_corpus.ipynb reports/01_corpus.ipynb [-p NAME VALUE ...]

Output goes to the terminal while it runs. From the copy are dropped what changes from run to run: timestamps,
durations, and standard error, which carries progress and warnings. A failed notebook is kept as it is, to look into;
the terminal gets the error's own message, and the exit status is 1.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import nbformat
import papermill
import yaml
from traitlets.config import Config

# glibc gives large buffers back to the system after every operation on them, and fetches them page by page for the
# next: a fifth of the time of a small model on CPU. Read by the kernel and its workers as they start.
KEPT_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


def drop_volatile(notebook: nbformat.NotebookNode) -> None:
    """Take out of an executed notebook, in place, what two runs with equal results would not share."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata.pop("widgets", None)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs = join_streams(output for output in cell.outputs if output.get("name") != "stderr")
            for output in cell.outputs:
                if "text/plain" in output.get("data", {}):  # <Styler at 0x7f...>
                    output.data["text/plain"] = re.sub(r" at 0x[0-9a-f]+", "", output.data["text/plain"])


def join_streams(outputs: Iterable[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """The outputs with printed text that follows on printed text joined: what stood between decided the pieces."""
    joined: list[nbformat.NotebookNode] = []
    for output in outputs:
        if joined and output.output_type == joined[-1].output_type == "stream":
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


@contextmanager
def kernel_stderr_silenced() -> Iterator[TextIO]:
    """Yields this process's standard error, while processes started meanwhile inherit none.

    A kernel sends what its child processes write to us, and writes it to its own standard error as well: every line
    of a worker's progress would show twice.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        with os.fdopen(os.dup(saved), "w", buffering=1) as stderr:
            yield stderr
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def execute(source: str | Path, target: str | Path, parameters: dict | None = None) -> None:
    """Execute `source` with the kernel of this very Python, and write the executed notebook to `target`.

    Raises papermill.PapermillExecutionError if a cell raises; `target` then shows where.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # progress bars are text here, as they should be
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # of every small step before a training run
    for name, value in KEPT_MEMORY.items():
        os.environ.setdefault(name, value)
    with kernel_stderr_silenced() as stderr:
        papermill.execute_notebook(
            str(source),
            str(target),
            parameters=parameters or {},
            kernel_name="python3",
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=stderr,
            config=Config({"KernelManager": {"transport": "ipc"}}),  # no open port
        )
    notebook = nbformat.read(target, as_version=4)
    drop_volatile(notebook)
    nbformat.write(notebook, target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter")
    arguments = parser.parse_args()
    try:
        nbformat.read(arguments.source, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        cause = str(error).partition("\n")[0]
        print(f"{arguments.source} cannot be read as a notebook: {cause}", file=sys.stderr)
        return 1
    try:
        execute(arguments.source, arguments.target, {name: yaml.safe_load(value) for name, value in arguments.p})
    except papermill.PapermillExecutionError as error:
        print(
            f"\n{arguments.source} stopped: {error.ename}: {error.evalue}\n(trace: {arguments.target})", file=sys.stderr
        )
        return 1
    except RuntimeError as error:  # nbclient's DeadKernelError
        print(f"\n{arguments.source} stopped: its kernel died, for want of memory perhaps ({error})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Run a notebook by papermill and keep an executed copy that is the same bytes for the same results.

Output goes to the terminal while the notebook runs. The copy leaves out what changes from run to run: timestamps,
durations, and standard error, which carries progress and warnings. A failed notebook is kept as it is, to look into.

Nothing outside decides what runs: the kernel is that of this very Python, whatever kernels Jupyter finds, it reads no
IPython profile, and its sockets are files in a folder of its own.
"""

import ast
import difflib
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import nbformat
import papermill
from IPython.core.inputtransformer2 import TransformerManager
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines

from rubric_influence.core.checks import RunStopped

# glibc gives large buffers back to the system after every operation on them, and fetches them page by page for the
# next one: a fifth of the time of a small model on CPU. The kernel and its workers read these settings as they start.
KEPT_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
LONGEST_ROOT = 70  # bytes
START_SECONDS = 300  # that a kernel may take to start, on a machine that is busy


class KernelDied(RunStopped):
    """The kernel ended before the notebook did; the message says how."""


class OwnKernelEngine(NBClientEngine):
    """Papermill's engine, with a kernel that depends on nothing but this Python."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, *_: Any, **options: Any) -> None:
        """Run the notebook of papermill's manager. Raises KernelDied."""
        streams = {name: options[name] for name in ("stdout_file", "stderr_file")}
        # A socket's path has 107 bytes at most.
        root = tempfile.gettempdir() if len(tempfile.gettempdir()) < LONGEST_ROOT else "/tmp"
        with tempfile.TemporaryDirectory(prefix="kernel-", dir=root) as folder:
            kernel = AsyncKernelManager(
                kernel_name="python3",
                kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),  # which leaves that of this Python
                transport="ipc",  # no open port
                connection_file=f"{folder}/kernel.json",
            )
            profile = [f"--IPKernelApp.ipython_dir={folder}"]
            killed = count_memory_kills()
            client = PapermillNotebookClient(
                nb_man, km=kernel, startup_timeout=START_SECONDS, extra_arguments=profile, **streams
            )
            try:
                client.execute(cleanup_kc=True)
            except RuntimeError as error:  # nbclient's DeadKernelError, or a kernel that does not start
                process = getattr(kernel.provisioner, "process", None)  # None once it was shut down in good order
                if process is not None and process.poll() is not None:
                    raise KernelDied(describe_end(process.returncode, count_memory_kills() > killed)) from None
                if "respond" in str(error):
                    raise KernelDied(f"its kernel did not start in {START_SECONDS} seconds") from None
                raise


papermill_engines.register("own kernel", OwnKernelEngine)


def describe_end(code: int, short_of_memory: bool) -> str:
    """How a kernel died, by its process's exit code and whether the system ended processes for want of memory."""
    if code >= 0:
        return f"its kernel ended itself with exit code {code}: code that it ran called exit, perhaps"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if -code == signal.SIGKILL:
        cause = ", as the system was short of memory" if short_of_memory else " by someone, or for want of memory"
        return f"its kernel died: it was killed ({name}){cause}"
    return f"its kernel died of {name}" + " in native code" * (-code in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS))


def count_memory_kills() -> int:
    """How many processes the system has ended for want of memory since it started; 0 where it does not say."""
    try:
        found = re.search(r"^oom_kill (\d+)", Path("/proc/vmstat").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


def check_parameters(notebook: nbformat.NotebookNode, parameters: Mapping[str, object], source: str | Path) -> None:
    """Raise ValueError for a parameter that the notebook's cell tagged "parameters" does not assign."""
    cells = [c for c in notebook.cells if c.cell_type == "code" and "parameters" in c.metadata.get("tags", [])]
    code = "\n".join(TransformerManager().transform_cell(cell.source) for cell in cells)
    nodes = ast.walk(ast.parse(code))
    known = sorted({node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)})
    for name in parameters:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(known) or 'none'}"
            raise ValueError(f"{source} has no parameter {name!r}{hint}")


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
    ValueError for a file that is no notebook or lacks one of the parameters.
    """
    try:
        notebook = nbformat.read(source, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        cause = str(error).partition("\n")[0]
        raise ValueError(f"{source} cannot be read as a notebook: {cause}") from None
    check_parameters(notebook, parameters or {}, source)
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # progress bars are text here, as they should be
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # of every small step before a training run
    for name, value in KEPT_MEMORY.items():
        os.environ.setdefault(name, value)
    options = {"kernel_name": "python3", "engine_name": "own kernel", "progress_bar": False, "stdout_file": sys.stdout}
    try:
        with kernel_stderr_silenced() as stderr:
            papermill.execute_notebook(str(source), str(target), dict(parameters or {}), stderr_file=stderr, **options)
    except papermill.PapermillExecutionError as error:
        raise RunStopped(f"\n{source} stopped: {error.ename}: {error.evalue}\n(trace: {target})") from None
    except KernelDied as error:
        raise RunStopped(f"\n{source} stopped: {error}") from None
    notebook = nbformat.read(target, as_version=4)
    drop_volatile(notebook)
    nbformat.write(notebook, target)

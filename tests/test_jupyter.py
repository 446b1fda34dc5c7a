"""`make lab`: a notebook is saved as it is committed, whatever running it leaves, and only below notebooks/."""

import asyncio
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from sources import ROOT, list_notebooks
from traitlets.config import Config, PyFileConfigLoader

SETTINGS = ".jupyter/jupyter_server_config.py"
NAMES = [path.relative_to(ROOT).as_posix() for path in list_notebooks()]
Save = Callable[[str, nbformat.NotebookNode], bytes]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the committed settings and notebooks, and one executed copy."""
    shutil.copytree(ROOT / ".jupyter", tmp_path / ".jupyter")
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    (tmp_path / "reports").mkdir()
    shutil.copy(ROOT / NAMES[0], tmp_path / "reports")
    return tmp_path


@pytest.fixture
def settings(project: Path) -> Config:
    return PyFileConfigLoader(SETTINGS, str(project)).load_config()


@pytest.fixture(params=["hook", "server"])
def save(request: pytest.FixtureRequest, project: Path, settings: Config) -> Save:
    """A function that saves a notebook and returns the bytes of its file: by the hook, and by Jupyter's own manager."""
    if request.param == "hook":

        def save_by_hook(name: str, notebook: nbformat.NotebookNode) -> bytes:
            model = {"type": "notebook", "content": notebook}
            manager = SimpleNamespace(root_dir=settings.ServerApp.root_dir)
            settings.ContentsManager.pre_save_hook(path=name, model=model, contents_manager=manager)
            nbformat.write(model["content"], project / name)
            return (project / name).read_bytes()

        return save_by_hook
    managers = pytest.importorskip(
        "jupyter_server.services.contents.largefilemanager", reason="jupyter_server is not installed: make lab does it"
    )

    def save_by_server(name: str, notebook: nbformat.NotebookNode) -> bytes:
        manager = managers.AsyncLargeFileManager(root_dir=settings.ServerApp.root_dir, config=settings)
        asyncio.run(manager.get(name))  # opened first, which marks cells as trusted
        asyncio.run(manager.save({"type": "notebook", "format": "json", "content": notebook}, name))
        return (project / name).read_bytes()

    return save_by_server


def run_in_lab(path: Path) -> nbformat.NotebookNode:
    """The notebook as JupyterLab sends it once its cells have been run and an output folded away."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.language_info |= {
        "codemirror_mode": {"name": "ipython", "version": 3},
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
        "version": "3.11.9",
    }
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    for number, cell in enumerate(notebook.cells):
        cell.id = str(uuid.uuid4())
        cell.metadata["trusted"] = True
        if cell.cell_type == "code":
            cell.execution_count = number
            cell.outputs = [nbformat.v4.new_output("stream", text="said\n")]
            cell.metadata |= {"execution": {"iopub.status.busy": "now"}, "jupyter": {"outputs_hidden": True}}
            cell.metadata |= {"collapsed": True, "scrolled": True}
    return notebook


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_that_was_run_is_saved_as_it_is_committed(save: Save, name: str):
    saved = save(name, run_in_lab(ROOT / name))
    assert saved == (ROOT / name).read_bytes(), f"{name} is not as Jupyter writes it: save it once in make lab"


def test_a_notebook_that_was_only_opened_is_saved_as_it_is_committed(save: Save):
    assert save(NAMES[0], nbformat.read(ROOT / NAMES[0], as_version=4)) == (ROOT / NAMES[0]).read_bytes()


def test_a_changed_cell_and_a_new_one_are_saved_under_ids_in_order(save: Save):
    notebook = run_in_lab(ROOT / NAMES[0])
    notebook.cells[1].source = "params_file = 'conf/history-lab.yaml'"
    notebook.cells.insert(1, nbformat.v4.new_code_cell("1 + 1", execution_count=9))
    saved = nbformat.reads(save(NAMES[0], notebook).decode(), as_version=4)
    assert [cell.id for cell in saved.cells] == [str(number) for number in range(len(notebook.cells))]
    assert (saved.cells[1].source, saved.cells[1].execution_count) == ("1 + 1", None)
    assert saved.cells[2].source == "params_file = 'conf/history-lab.yaml'"
    assert saved.cells[2].metadata == {"tags": ["parameters"]}


def test_an_executed_copy_keeps_its_outputs(save: Save):
    name = f"reports/{Path(NAMES[0]).name}"
    saved = nbformat.reads(save(name, run_in_lab(ROOT / NAMES[0])).decode(), as_version=4)
    assert all(cell.outputs and cell.execution_count for cell in saved.cells if cell.cell_type == "code")


def test_lab_opens_the_project_at_its_notebooks(project: Path, settings: Config):
    assert settings.ServerApp.root_dir == str(project)
    assert settings.LabApp.default_url == "/lab/tree/notebooks"


def test_make_lab_takes_the_committed_settings():
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    command = ["make", "--dry-run", "lab"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=True).stdout
    assert re.search(r"jupyter lab .*--config=(\S+)", said)[1] == SETTINGS

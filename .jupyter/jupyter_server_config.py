"""JupyterLab as `make lab` starts it: at the project's root, and saving notebooks without what running them leaves.

Stages depend on notebooks/*.ipynb, so outputs there would make a stage run again and fill git's diffs. A saved notebook
is what nbstripout leaves, byte for byte as it is committed. The browser shows outputs until it is closed; executed
copies are in reports/, and these are saved as they are.
"""

import warnings
from pathlib import Path
from typing import Any

import nbformat
from nbstripout import strip_output

ROOT = Path(__file__).resolve().parents[1]
# What nbstripout itself leaves out by default, and what JupyterLab adds when outputs are folded away.
VOLATILE = [
    *("metadata.signature", "metadata.widgets"),
    *(f"cell.metadata.{key}" for key in ("ExecuteTime", "execution", "collapsed", "heading_collapsed", "hidden")),
    *(f"cell.metadata.{key}" for key in ("scrolled", "jupyter")),
]


def strip_notebook(path: str, model: dict[str, Any], contents_manager: Any, **_: Any) -> None:
    """Strip the model of a notebook that is about to be saved below notebooks/, in place."""
    file = Path(contents_manager.root_dir, path.strip("/")).resolve()
    if model.get("type") != "notebook" or not file.is_relative_to(ROOT / "notebooks"):
        return
    notebook = nbformat.from_dict(model["content"])
    strip_output(notebook, keep_output=None, keep_count=False, keep_id=False, extra_keys=VOLATILE)
    if "language_info" in notebook.metadata:  # has the kernel's version
        notebook.metadata.language_info = {"name": notebook.metadata.language_info.name}
    model["content"] = notebook


c = get_config()  # noqa: F821
c.ServerApp.root_dir = str(ROOT)
c.LabApp.default_url = "/lab/tree/notebooks"
c.ContentsManager.pre_save_hook = strip_notebook
warnings.filterwarnings("ignore", "Overriding existing pre_save_hook")  # the server applies this file twice

"""The code of the project as text, notebooks included."""

from pathlib import Path

import nbformat
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).parents[1]


def list_notebooks() -> list[Path]:
    notebooks = sorted((ROOT / "notebooks").rglob("*.ipynb"))
    assert notebooks, "notebooks/ holds no notebook"
    return notebooks


def read_code(path: Path) -> str:
    """The Python of a module, or of a notebook's code cells with magics turned into Python."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(TransformerManager().transform_cell(c.source) for c in cells if c.cell_type == "code")

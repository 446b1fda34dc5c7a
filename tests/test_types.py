"""Types: the library and the code of the notebooks pass the type checker (settings: pyproject.toml)."""

import subprocess
import sys
from pathlib import Path

import pytest
from sources import ROOT, list_notebooks, read_code

pytestmark = pytest.mark.slow


def check_types(folder: Path, sources: dict[str, str]) -> subprocess.CompletedProcess:
    """Check the package, and beside it some sources by name, as modules of a folder."""
    for name, code in sources.items():
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    modules = sorted(folder.glob("*.py"))
    command = [sys.executable, "-m", "mypy", ROOT / "rubric_influence", *modules]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_library_and_notebooks_have_no_type_errors(tmp_path):
    sources = {f"notebook_{path.stem}": read_code(path) for path in list_notebooks()}
    result = check_types(tmp_path, sources)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_call_without_its_parameters_is_found(tmp_path):
    code = "from rubric_influence.lab.pretraining import Recipe\n\nRecipe('field.yaml', 'qwen3')\n"
    result = check_types(tmp_path, {"notebook_wrong": code})
    assert result.returncode == 1 and "notebook_wrong.py:3" in result.stdout, result.stdout + result.stderr

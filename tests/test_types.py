"""Types: the library and the code of the notebooks pass the type checker (settings: pyproject.toml)."""

import subprocess
import sys

import pytest
from sources import ROOT, list_notebooks, read_code

WRONG = "from rubric_influence.lab.pretraining import Recipe\n\nRecipe('field.yaml', 'qwen3')\n"  # out is missing


@pytest.mark.slow
def test_library_and_notebooks_have_no_type_errors_and_a_wrong_call_has_one(tmp_path):
    folder = tmp_path / "cells"  # a package, so that the settings can name it
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "wrong.py").write_text(WRONG, encoding="utf-8")
    for path in list_notebooks():
        (folder / f"of_{path.stem}.py").write_text(read_code(path), encoding="utf-8")
    command = [sys.executable, "-m", "mypy", ROOT / "rubric_influence", folder]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    errors = [line for line in result.stdout.splitlines() if ": error:" in line]
    assert result.returncode == 1 and len(errors) == 1 and "wrong.py:3: error: Missing" in errors[0], result.stdout

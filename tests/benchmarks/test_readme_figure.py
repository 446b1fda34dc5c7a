import subprocess

import pytest
from sources import ROOT

from benchmarks.readme_figure import INK, write_figures

READ = ("metrics/gate.json", "metrics/evaluation.json", "benchmarks/results/textbooks.json")


def read_committed(path):
    """As git has it: on another processor, `make repro` leaves slightly other figures in the working tree."""
    shown = subprocess.run(["git", "show", f":{path}"], cwd=ROOT, capture_output=True)
    if shown.returncode != 0:
        pytest.skip(f"git knows no {path} here")
    return shown.stdout


def test_the_readmes_figure_is_that_of_the_committed_figures(tmp_path):
    for path in READ:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(read_committed(path))
    write_figures(tmp_path, tmp_path)
    for name in INK:
        assert (tmp_path / f"{name}.svg").read_bytes() == read_committed(f"docs/{name}.svg")

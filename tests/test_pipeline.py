"""The whole pipeline, by DVC and papermill, on a small lab: it runs, is then up to date, and reruns what changed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rubric_influence.config import merge
from rubric_influence.layout import TUNED_ARMS, UNTUNED

ROOT = Path(__file__).parents[1]
SMALL = {
    "seeds": [0, 1],
    "corpus": {"documents": 12, "dev_documents": 2, "validation_entities": 6, "guard_entities": 6},
    "budget": {"initial_pairs": 2, "final_pairs": 2},
    "warmup": {"epochs": 3},
    "influence": {"clusters": 3},
    "rl": {"steps": 2, "documents_per_step": 4, "group_size": 4, "save_every": 1},
    "finetuning": {"epochs": 2},
    "evaluation": {"bootstrap": 200},
}
STAGES = ["corpus", "initial", "warmup", "influence", "generators", "final", "finetuning", "evaluation", "report"]

pytestmark = pytest.mark.slow


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),  # this copy of the package, not an installed one
        "DVC_NO_ANALYTICS": "1",
    }
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def list_run_stages(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of what git tracks, with the small lab for its profile, after one `dvc repro`."""
    folder = tmp_path_factory.mktemp("clone")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if name != "dvc.lock" and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    set_params(folder, SMALL)
    result = run(["dvc", "repro"], folder)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert list_run_stages(result.stdout) == STAGES
    return folder


def set_params(folder: Path, changes: dict) -> None:
    params = merge(yaml.safe_load((folder / "params.yaml").read_text()), changes)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def test_every_arm_is_evaluated_with_its_interval(project: Path):
    results = json.loads((project / "metrics/evaluation.json").read_text())
    assert set(results["arms"]) == {UNTUNED, *TUNED_ARMS}
    for row in results["arms"].values():
        assert len(row["accuracy"]) == 2
        assert row["mean"] == pytest.approx(sum(row["accuracy"]) / 2, abs=1e-4)
        low, high = row["ci95"]
        assert 0 <= low <= row["mean"] <= high <= 1


def test_every_arm_has_the_same_number_of_requested_pairs(project: Path):
    counts = json.loads((project / "metrics/final.json").read_text())
    budget = SMALL["corpus"]["documents"] * SMALL["budget"]["final_pairs"]
    for arm, by_seed in counts.items():
        for count in by_seed.values():
            assert count["pairs"]["requested"] == count["pairs"]["valid"] + count["pairs"]["invalid"]
            assert 0.8 * budget <= count["pairs"]["valid"] <= budget, arm


def test_results_can_be_printed_and_shown_by_dvc(project: Path):
    table = run([sys.executable, "-m", "rubric_influence.results"], project)
    assert table.returncode == 0 and all(arm in table.stdout for arm in TUNED_ARMS)
    metrics = run(["dvc", "metrics", "show", "--json"], project)
    assert json.loads(metrics.stdout)[""]["data"]["metrics/evaluation.json"]["data"]["arms"]["optimised"]
    plots = run(["dvc", "plots", "show", "--json"], project)
    assert plots.returncode == 0 and "training" in plots.stdout and "accuracy" in plots.stdout


def test_executed_notebooks_show_figures_and_no_progress(project: Path):
    for name in ("03_warmup", "04_influence", "05_generators", "08_evaluation", "09_report"):
        notebook = json.loads((project / f"reports/{name}.ipynb").read_text())
        outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
        assert any("image/png" in output.get("data", {}) for output in outputs), name
        assert not any(output.get("name") == "stderr" for output in outputs), name


def test_a_second_run_runs_nothing(project: Path):
    result = run(["dvc", "repro"], project)
    assert result.returncode == 0 and list_run_stages(result.stdout) == []
    assert "up to date" in result.stdout


def test_a_stage_that_runs_again_writes_the_same_bytes(project: Path):
    before = (project / "dvc.lock").read_text()
    result = run(["dvc", "repro", "-f", "-s", "initial", "warmup", "influence"], project)
    assert result.returncode == 0 and list_run_stages(result.stdout) == ["initial", "warmup", "influence"]
    assert (project / "dvc.lock").read_text() == before


def test_a_changed_parameter_reruns_only_what_depends_on_it(project: Path):
    set_params(project, {"evaluation": {"bootstrap": 300}})
    result = run(["dvc", "repro"], project)
    assert result.returncode == 0 and list_run_stages(result.stdout)[0] == "evaluation"
    assert set(list_run_stages(result.stdout)) <= {"evaluation", "report"}


def test_a_misspelt_parameter_stops_the_run_with_its_name(project: Path):
    before = (project / "params.yaml").read_text()
    set_params(project, {"corpus": {"documets": 3}})
    result = run(["dvc", "repro"], project)
    (project / "params.yaml").write_text(before)
    assert result.returncode != 0
    assert "corpus.lab.documets: unknown parameter" in result.stdout + result.stderr

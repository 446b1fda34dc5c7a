"""The whole pipeline, by DVC and papermill, on a small lab: it runs, is then up to date, and reruns what changed."""

import json
import sys
from pathlib import Path

import pytest
from clones import clone_project, list_run_stages, run_command, set_params

from rubric_influence.core.paths import TUNED_ARMS, UNTUNED

SMALL = {
    "seeds": [0, 1],
    "corpus": {"documents": 12, "dev_documents": 2, "validation_entities": 6, "guard_entities": 6},
    "budget": {"initial_pairs": 2, "final_pairs": 2},
    "warmup": {"epochs": 3},
    "influence": {"clusters": 3},
    "gate": {"sets": 8, "set_size": 3, "epochs": 1, "override": True},  # too few pairs for a verdict
    "rl": {"steps": 2, "documents_per_step": 4, "group_size": 4, "save_every": 1},
    "finetuning": {"epochs": 2},
    "evaluation": {"bootstrap": 200},
}
STAGES = [
    "corpus",
    "initial",
    "warmup",
    "influence",
    "gate",
    "generators",
    "final",
    "finetuning",
    "evaluation",
    "report",
    "html",
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with the small lab for its profile, after one `dvc repro`."""
    folder = clone_project(tmp_path_factory.mktemp("clone"))
    set_params(folder, "params.yaml", SMALL)
    result = run_command(["dvc", "repro"], folder)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert list_run_stages(result.stdout) == STAGES
    return folder


def test_every_arm_is_evaluated_with_its_interval(project: Path):
    results = json.loads((project / "metrics/evaluation.json").read_text())
    assert set(results["arms"]) == {UNTUNED, *TUNED_ARMS}
    for row in results["arms"].values():
        assert len(row["accuracy"]) == 2
        assert row["mean"] == pytest.approx(sum(row["accuracy"]) / 2, abs=1e-4)
        low, high = row["ci95"]
        assert 0 <= low <= row["mean"] <= high <= 1


def test_every_arm_has_the_same_number_of_requested_pairs(project: Path):
    counts = json.loads((project / "metrics/final.json").read_text())["arms"]
    budget = SMALL["corpus"]["documents"] * SMALL["budget"]["final_pairs"]
    for arm, by_seed in counts.items():
        for count in by_seed.values():
            assert count["pairs"]["requested"] == count["pairs"]["valid"] + count["pairs"]["invalid"]
            assert 0.8 * budget <= count["pairs"]["valid"] <= budget, arm


def test_what_every_stage_cost_can_be_printed(project: Path):
    table = run_command([sys.executable, "-m", "rubric_influence", "ledger"], project)
    assert table.returncode == 0, table.stderr
    assert all(stage in table.stdout for stage in ("initial", "generators", "final", "all"))
    # In RL every rubric that can be used is answered by one pair: at most 2 seeds * 2 steps * 16 rubrics.
    by_seed = json.loads((project / "metrics/generators.json").read_text())["ledger"]
    asked = sum(row["requests"] for ledger in by_seed.values() for row in ledger.values())
    assert 32 < asked <= 64


def test_results_can_be_printed_and_shown_by_dvc(project: Path):
    table = run_command([sys.executable, "-m", "rubric_influence", "results"], project)
    assert table.returncode == 0 and all(arm in table.stdout for arm in TUNED_ARMS)
    metrics = run_command(["dvc", "metrics", "show", "--json"], project)
    (shown,) = json.loads(metrics.stdout)[""]["data"].items()  # one small file
    accuracy = json.loads((project / "metrics/evaluation.json").read_text())["arms"]["optimised"]["mean"]
    assert shown[0] == "metrics/headline.json" and shown[1]["data"]["accuracy"]["optimised"] == accuracy
    plots = run_command(["dvc", "plots", "show", "--json"], project)
    assert plots.returncode == 0 and "training" in plots.stdout and "accuracy" in plots.stdout


def test_executed_notebooks_show_figures_and_no_progress(project: Path):
    for name in ("03_warmup", "04_influence", "05_gate", "06_generators", "09_evaluation", "10_report"):
        notebook = json.loads((project / f"reports/{name}.ipynb").read_text())
        outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
        assert any("image/png" in output.get("data", {}) for output in outputs), name
        assert not any(output.get("name") == "stderr" for output in outputs), name


def test_a_second_run_runs_nothing(project: Path):
    result = run_command(["dvc", "repro"], project)
    assert result.returncode == 0 and list_run_stages(result.stdout) == []
    assert "up to date" in result.stdout


def test_a_gate_that_is_not_passed_stops_the_run_before_rl_and_says_why(project: Path):
    before = (project / "params.yaml").read_text()
    set_params(project, "params.yaml", {"gate": {"threshold": 1.0, "override": False}})
    result = run_command(["dvc", "repro"], project)
    (project / "params.yaml").write_text(before)
    assert result.returncode != 0 and list_run_stages(result.stdout) == ["gate"]
    said = result.stdout + result.stderr
    assert "the reward does not predict gain" in said and "set gate.override: true" in said
    assert json.loads((project / "metrics/gate.json").read_text())["passed"] is False
    again = run_command(["dvc", "repro"], project)
    assert again.returncode == 0 and set(list_run_stages(again.stdout)) <= {"gate"}


def test_a_stage_that_runs_again_writes_the_same_bytes(project: Path):
    before = (project / "dvc.lock").read_text()
    result = run_command(["dvc", "repro", "-f", "-s", "initial", "warmup", "influence"], project)
    assert result.returncode == 0 and list_run_stages(result.stdout) == ["initial", "warmup", "influence"]
    assert (project / "dvc.lock").read_text() == before


def test_a_changed_parameter_reruns_only_what_depends_on_it(project: Path):
    set_params(project, "params.yaml", {"evaluation": {"bootstrap": 300}})
    result = run_command(["dvc", "repro"], project)
    assert result.returncode == 0 and list_run_stages(result.stdout)[0] == "evaluation"
    assert set(list_run_stages(result.stdout)) <= {"evaluation", "report", "html"}


def test_a_misspelt_parameter_stops_the_run_with_its_name(project: Path):
    before = (project / "params.yaml").read_text()
    set_params(project, "params.yaml", {"corpus": {"documets": 3}})
    result = run_command(["dvc", "repro"], project)
    (project / "params.yaml").write_text(before)
    assert result.returncode != 0
    assert "corpus.lab.documets: unknown parameter" in result.stdout + result.stderr

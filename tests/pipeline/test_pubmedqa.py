"""The same pipeline on real text and real expert questions, with stand-ins trained here for the models."""

import json
import sys
from pathlib import Path

import pytest
from clones import clone_project, run_command, set_params

from rubric_influence.core.paths import TUNED_ARMS, UNTUNED

PROFILE = "conf/pubmedqa-standin.yaml"
SMALLER = {"seeds": [0], "corpus": {"max_documents": 16, "max_exam_items": 80}, "rl": {"steps": 2}}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, real_data) -> Path:
    """A clone with PubMedQA in data/input, after training stand-ins and one `dvc repro`."""
    source = real_data("pubmedqa/ori_pqal.json").parent
    folder = clone_project(tmp_path_factory.mktemp("pubmedqa"))
    (folder / "data/input/pubmedqa").mkdir()
    for path in source.glob("*.json"):
        (folder / "data/input/pubmedqa" / path.name).write_bytes(path.read_bytes())
    set_params(folder, PROFILE, SMALLER)
    module = [sys.executable, "-m", "rubric_influence", "standins"]
    made = run_command([*module, "--out", "scratch/standins/pubmedqa", "--steps", "60"], folder)
    assert made.returncode == 0, made.stderr[-3000:]
    result = run_command(["dvc", "repro"], folder)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return folder


def test_every_stage_completes_and_every_arm_is_evaluated(project: Path):
    results = json.loads((project / "metrics/evaluation.json").read_text())
    assert set(results["arms"]) == {UNTUNED, *TUNED_ARMS}
    assert results["corpus"] == "text" and results["items"] >= 20


def test_no_official_test_question_steers_the_rubrics(project: Path):
    official = set(json.loads((project / "data/input/pubmedqa/test_ground_truth.json").read_text()))
    articles = json.loads((project / "data/input/pubmedqa/ori_pqal.json").read_text())
    questions = {articles[name]["QUESTION"] for name in official}
    rows = [json.loads(line) for line in (project / "data/corpus/exam.jsonl").read_text().splitlines()]
    assert {row["split"] for row in rows if row["question"] in questions} == {"test"}
    assert {row["split"] for row in rows} == {"validation", "guard", "dev", "test"}


def test_constrained_decoding_keeps_rubrics_and_pairs_parseable(project: Path):
    counts = json.loads((project / "metrics/final.json").read_text())["arms"]
    for arm in TUNED_ARMS:
        pairs = counts[arm]["seed-0"]["pairs"]
        assert "no JSON object" not in pairs["problems"], arm
        assert pairs["valid"] >= 0.5 * pairs["requested"], arm


def test_the_report_says_that_the_accuracies_mean_nothing(project: Path):
    assert "these accuracies mean nothing" in (project / "reports/10_report.ipynb").read_text()

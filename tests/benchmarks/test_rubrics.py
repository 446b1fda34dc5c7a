import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.rubrics import __main__ as rubrics
from benchmarks.rubrics.arms import ARMS, RL_ARMS, SELECTED
from benchmarks.rubrics.cells import Cell, configure, parse_cell
from rubric_influence.config import load_config
from rubric_influence.layout import TUNED_ARMS, UNTUNED

REPOSITORY = Path(__file__).parents[2]
TINY = {
    "seeds": [0, 1],
    "corpus": {"documents": 6, "dev_documents": 2, "validation_entities": 4, "guard_entities": 2},
    "budget": {"initial_pairs": 2, "final_pairs": 2},
    "synthesis": {"batch_size": 16},
    "warmup": {"epochs": 2},
    "influence": {"clusters": 3},
    "rl": {"steps": 1, "documents_per_step": 2, "group_size": 4, "save_every": 1},
    "finetuning": {"epochs": 1},
    "evaluation": {"bootstrap": 50},
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working directory with the project's profile and lab, and a scratch folder of its own."""
    for name in ("params.yaml", "data"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_profiles_of_the_lab_are_cells(project):
    for field, profile in (("medicine", "params.yaml"), ("history", "conf/history-lab.yaml")):
        assert configure(Cell(field, "qwen3")) == load_config(REPOSITORY / profile)


@pytest.mark.parametrize("text", ["medicine", "botany/qwen3", "medicine/gpt", ""])
def test_what_is_no_cell_is_refused_with_the_cells_there_are(project, text):
    with pytest.raises(ValueError, match="is not FIELD/TARGET with one of the fields .*'finance', 'history'"):
        parse_cell(text)


def test_every_field_of_the_lab_has_a_cell_for_both_targets(project):
    for field in ("medicine", "history", "law", "finance"):
        for target in ("qwen3", "llama"):
            config = configure(parse_cell(f"{field}/{target}"))
            assert config.models.target.path == f"data/lab/models/{field}-{target}"
            assert config.models.teacher.path == f"data/lab/models/{field}-qwen3"


def test_a_cell_without_its_base_says_how_to_make_it(project, monkeypatch, capsys):
    (project / "data").unlink()
    (project / "data/lab/models").mkdir(parents=True)
    (project / "data/lab/fields").symlink_to(REPOSITORY / "data/lab/fields")
    with pytest.raises(ValueError, match="pretraining --field data/lab/fields/law.yaml --family qwen3 --out"):
        parse_cell("law/qwen3")
    monkeypatch.setattr(sys, "argv", ["rubrics", "--json", "found.json", "--cells", "law/qwen3"])
    with pytest.raises(SystemExit):
        rubrics.main()
    assert "needs data/lab/models/law-qwen3, which is not there" in capsys.readouterr().err


@pytest.mark.slow
def test_a_cell_holds_every_arm_and_is_not_run_again(project, monkeypatch):
    monkeypatch.setattr(rubrics, "configure", lambda cell, changes=None: configure(cell, TINY))
    monkeypatch.setattr(sys, "argv", ["rubrics", "--json", "found.json", "--cells", "medicine/qwen3"])
    (project / "found.json").write_text(json.dumps({"cells": [{"field": "law", "target": "llama"}]}))
    rubrics.main()
    kept, cell = json.loads((project / "found.json").read_text())["cells"]
    assert kept == {"field": "law", "target": "llama"}
    assert (cell["field"], cell["target"], cell["teacher"], cell["seeds"]) == ("medicine", "qwen3", "base", 2)
    assert {UNTUNED, *TUNED_ARMS, SELECTED, *RL_ARMS} == {UNTUNED, *ARMS} <= cell.keys()
    for arm in (UNTUNED, *ARMS):
        row = cell[arm]
        assert len(row["accuracy"]) == 2 and row["ci95"][0] <= row["mean"] <= row["ci95"][1]
        assert row["ci_low_vs_initial"] == row["gain_over_initial"]["ci95"][0]
        # Where rubrics were written or dealt, what they ask about is known.
        assert ("topics_by_seed" in row) == (arm not in (UNTUNED, "no_rubric"))
    gain = cell["optimised"]["mean"] - cell["paper_reward"]["mean"]
    assert cell["optimised"]["gain_over_paper_reward"]["mean"] == pytest.approx(gain, abs=2e-4)
    monkeypatch.setattr(rubrics, "SeedRun", None)  # nothing is left to be made
    rubrics.main()
    assert json.loads((project / "found.json").read_text())["cells"] == [kept, cell]


def test_the_table_has_a_column_a_cell_and_the_best_arm_first():
    def make_entry(field, **means):
        rows = {arm: {"mean": mean, "ci95": [mean - 0.05, mean + 0.05]} for arm, mean in means.items()}
        return {"field": field, "target": "qwen3", **rows}

    table = rubrics.tabulate([make_entry("law", initial=0.3, optimised=0.5), make_entry("art", initial=0.25)])
    assert table.splitlines() == [
        "| arm | law, qwen3 | art, qwen3 |",
        "| --- | --- | --- |",
        "| optimised | 50.0 (45.0 to 55.0) |  |",
        "| initial | 30.0 (25.0 to 35.0) | 25.0 (20.0 to 30.0) |",
    ]


def test_arms_are_compared_on_the_same_seeds_and_questions(project):
    one, other = np.ones((2, 8), dtype=bool), np.tile([True, False], (2, 4))
    found = rubrics.compare(one, other, configure(Cell("medicine", "qwen3"), TINY))
    assert found["mean"] == 0.5 and 0 < found["ci95"][0] <= 0.5 <= found["ci95"][1] < 1
    assert rubrics.compare(one, one, configure(Cell("medicine", "qwen3"), TINY)) == {"mean": 0.0, "ci95": [0.0, 0.0]}

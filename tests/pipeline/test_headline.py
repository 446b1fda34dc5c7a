"""The headline figures, from metrics files made by hand."""

import json
from pathlib import Path

import pytest

from rubric_influence.pipeline.headline import collect_headline
from rubric_influence.pipeline.stages.report import report_headline


def spend(requests: int, read: int, written: int) -> dict[str, dict]:
    usage = {"requests": requests, "failed": 0, "prompt_tokens": read, "completion_tokens": written, "usd": 0.5}
    return {"pairs: a teacher": usage}


def phase(first: float, last: float) -> dict[str, dict]:
    return {"first fifth": {"guard_influence": first}, "last fifth": {"guard_influence": last}}


METRICS = {
    "evaluation": {
        "measure": "accuracy",
        "arms": {
            "initial": {"mean": 0.25, "gain_over_initial": {"mean": 0.0, "ci95": [0.0, 0.0]}},
            "optimised": {"mean": 0.75, "gain_over_initial": {"mean": 0.5, "ci95": [0.4, 0.6]}},
        },
    },
    "gate": {
        "passed": True,
        "influence": {"spearman": 0.8, "spearman_ci95": [0.6, 0.9]},
        "similarity": {"spearman": 0.1, "spearman_ci95": [-0.3, 0.4]},
    },
    "initial": {"ledger": {"seed-0": spend(4, 100, 10), "seed-1": spend(4, 200, 20)}},
    "generators": {
        "phases": {"seed-0": phase(0.1, 0.2), "seed-1": phase(0.2, 0.5)},
        "ledger": {"seed-0": spend(8, 1000, 100)},
    },
    "final": {
        "arms": {
            "initial": {"seed-0": {"pairs": {"requested": 10, "valid": 1}}},
            "optimised": {
                "seed-0": {"pairs": {"requested": 10, "valid": 9}},
                "seed-1": {"pairs": {"requested": 30, "valid": 21}},
            },
        },
        "ledger": {"seed-0": spend(10, 5000, 500)},
    },
}


@pytest.fixture
def metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of metrics of the current project."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metrics").mkdir()
    for stage, figures in METRICS.items():
        (tmp_path / f"metrics/{stage}.json").write_text(json.dumps(figures))
    return tmp_path / "metrics"


def test_figures_are_those_worked_out_by_hand(metrics):
    assert collect_headline(metrics) == {
        "accuracy": {"initial": 0.25, "optimised": 0.75},
        "gain": {"mean": 0.5, "low": 0.4, "high": 0.6},
        "gate": {"passed": True, "spearman": 0.8, "spearman_low": 0.6},
        "guard_influence": {"first": 0.15, "last": 0.35},  # means of the two seeds
        "valid": 0.75,  # (9 + 21) / (10 + 30)
        "tokens": 6930,  # 110 + 220 + 1100 + 5500
    }


def test_the_stage_writes_the_figures_that_it_returns(metrics):
    figures = report_headline()
    assert json.loads((metrics / "headline.json").read_text()) == figures == collect_headline(metrics)


def test_a_stage_that_has_not_run_is_named(metrics):
    (metrics / "gate.json").unlink()
    with pytest.raises(FileNotFoundError, match="gate.json"):
        collect_headline(metrics)

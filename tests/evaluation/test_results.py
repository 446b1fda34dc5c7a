"""The results table: what it says follows from the figures, and the README shows the committed run's."""

import subprocess
import sys
from pathlib import Path

import pytest

from rubric_influence.evaluation.results import caution, read_out, read_results, tabulate_measures, tabulate_results

ROOT = Path(__file__).parents[2]


def make_results(gain: float, low: float, high: float, **other) -> dict:
    def row(mean: float, bounds: tuple[float, float] = (0.0, 0.0)) -> dict:
        return {"mean": mean, "ci95": [mean - 0.1, mean + 0.1], "gain_over_initial": {"mean": gain, "ci95": [*bounds]}}

    arms = {"initial": row(0.3), "optimised": row(0.3 + gain, (low, high))}
    base = {"measure": "accuracy", "measures": {}, "tasks": {}, "arms": arms, "items": 10, "seeds": 3, "chance": 0.25}
    return base | {"corpus": "lab", "target_parameters": 900_000} | other


@pytest.mark.parametrize(
    "gain, low, high, verdict",
    [(0.2, 0.1, 0.3, ": a gain"), (-0.2, -0.3, -0.1, ": a loss"), (0.1, -0.1, 0.3, "no difference that this exam can")],
)
def test_the_verdict_follows_from_the_interval(gain, low, high, verdict):
    assert verdict in read_out(make_results(gain, low, high))


def test_arms_are_listed_best_first_in_per_cent():
    table = tabulate_results(make_results(0.2, 0.1, 0.3))
    assert list(table.index) == ["optimised", "initial"]
    assert table.loc["optimised", "accuracy %"] == 50.0
    assert table.loc["optimised", "its 95 % interval"] == "+10.0 to +30.0"
    assert table.loc["initial", "95 % interval"] == "20.0 to 40.0"


def test_an_exam_of_open_questions_is_read_out_in_nats_with_the_fewest_first():
    results = make_results(0.2, 0.1, 0.3, measure="answer_nats", chance=None)
    results["arms"]["optimised"]["mean"] = 0.1  # 0.2 fewer than initial
    assert list(tabulate_results(results).index) == ["optimised", "initial"]
    assert "saved +0.200 nats a token of the answer (95 % interval +0.100 to +0.300)" in read_out(results)
    assert "chance" not in read_out(results)


def test_further_measures_show_what_optimising_gained():
    arms = make_results(0.25, 0.1, 0.3)["arms"]
    arms["untuned"] = arms["initial"]
    results = make_results(0.2, 0.1, 0.3, measures={"option_nats": {"arms": arms}}, tasks={"arc: acc": {"arms": arms}})
    table = tabulate_measures(results)
    assert list(table.index) == ["nats of the right option among the options", "arc: acc"]
    assert table.loc["arc: acc", "gain over initial"] == "+0.250" and table.loc["arc: acc", "optimised"] == "0.550"


def test_results_of_an_earlier_version_are_told(tmp_path):
    (tmp_path / "evaluation.json").write_text('{"arms": {}}')
    with pytest.raises(ValueError, match="is of an earlier version, whose exam scored other tokens"):
        read_results(tmp_path / "evaluation.json")


def test_a_small_target_on_real_text_is_cautioned_against_and_the_lab_is_not():
    assert "mean nothing" in caution(make_results(0.2, 0.1, 0.3, corpus="text"))
    assert caution(make_results(0.2, 0.1, 0.3, corpus="text", target_parameters=600_000_000)) == ""
    assert caution(make_results(0.2, 0.1, 0.3)) == ""


def test_no_results_yet_is_one_clear_line(tmp_path):
    with pytest.raises(ValueError, match="run the pipeline first: make repro"):
        read_results(tmp_path / "evaluation.json")
    (tmp_path / "evaluation.json").write_text("[]")
    with pytest.raises(ValueError, match="evaluation.json holds no results"):
        read_results(tmp_path / "evaluation.json")


def test_the_readme_shows_the_committed_run(tmp_path):
    # As git has it: on another processor, `make repro` leaves slightly other figures in the working tree.
    committed = subprocess.run(["git", "show", ":metrics/evaluation.json"], cwd=ROOT, capture_output=True)
    if committed.returncode != 0:
        pytest.skip("git knows no metrics/evaluation.json here")
    (tmp_path / "evaluation.json").write_bytes(committed.stdout)
    command = [sys.executable, "-m", "rubric_influence", "results", str(tmp_path / "evaluation.json")]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    shown = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line.rstrip() for line in printed.splitlines() if line.strip()]
    assert all(line in shown for line in lines), printed

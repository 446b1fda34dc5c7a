import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.rubrics import __main__ as rubrics
from benchmarks.rubrics import runs
from benchmarks.rubrics.arms import ARMS, CHOSEN, DPO_ARMS, RL_ARMS, ROUNDS, SEARCHED, SELECTED
from benchmarks.rubrics.cells import Cell, configure, open_folder, parse_cell
from rubric_influence.core.paths import TUNED_ARMS, UNTUNED
from rubric_influence.core.profiles import load_config

REPOSITORY = Path(__file__).parents[2]
TINY = {
    "seeds": [0, 1],
    "corpus": {"documents": 6, "dev_documents": 2, "validation_entities": 4, "guard_entities": 2},
    "budget": {"initial_pairs": 2, "final_pairs": 2},
    "synthesis": {"batch_size": 16},
    "warmup": {"epochs": 2},
    "influence": {"clusters": 3},
    "rl": {"steps": 2, "documents_per_step": 2, "group_size": 4, "save_every": 1},
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


@pytest.mark.parametrize(
    "text", ["medicine", "botany/qwen3", "medicine/gpt", "medicine/qwen3/gpt", "medicine/qwen3/llama/", ""]
)
def test_what_is_no_cell_is_refused_with_the_cells_there_are(project, text):
    with pytest.raises(
        ValueError, match="is not FIELD/TARGET or FIELD/TARGET/TEACHER with one of the fields .*'finance', 'history'"
    ):
        parse_cell(text)


def test_every_field_of_the_lab_has_a_cell_for_both_targets(project):
    for field in ("medicine", "history", "law", "finance"):
        for target in ("qwen3", "llama"):
            config = configure(parse_cell(f"{field}/{target}"))
            assert config.models.target.path == f"data/lab/models/{field}-{target}"
            assert config.models.teacher.path == f"data/lab/models/{field}-qwen3"
            other = configure(parse_cell(f"{field}/{target}/llama"))
            assert other.models.teacher.path == f"data/lab/models/{field}-llama"
            assert other.models.rubric_generator == config.models.rubric_generator
    assert str(parse_cell("law/llama/qwen3")) == "law/llama" and str(parse_cell("law/qwen3/llama")) == "law/qwen3/llama"


def test_a_cell_without_its_base_says_how_to_make_it(project, monkeypatch, capsys):
    (project / "data").unlink()
    (project / "data/lab/models").mkdir(parents=True)
    (project / "data/lab/fields").symlink_to(REPOSITORY / "data/lab/fields")
    with pytest.raises(ValueError, match="pretrain --field data/lab/fields/law.yaml --family qwen3 --out"):
        parse_cell("law/qwen3")
    monkeypatch.setattr(sys, "argv", ["rubrics", "--json", "found.json", "--cells", "law/qwen3"])
    with pytest.raises(SystemExit):
        rubrics.main()
    assert "needs data/lab/models/law-qwen3, which is not there" in capsys.readouterr().err


def run_benchmark(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["rubrics", "--json", "found.json", *arguments])
    rubrics.main()
    return json.loads(Path("found.json").read_text())


@pytest.mark.slow
def test_a_cell_holds_every_arm_and_is_not_run_again(project, monkeypatch, capsys):
    monkeypatch.setattr(runs, "configure", lambda cell, changes=None: configure(cell, TINY))
    arms = [arm for arm in ARMS if arm != SEARCHED]
    found = run_benchmark(monkeypatch, "--cells", "medicine/qwen3", "--arms", *arms)
    (cell,) = found["cells"]
    assert (cell["field"], cell["target"], cell["teacher"], cell["seeds"]) == ("medicine", "qwen3", "qwen3", 2)
    assert {UNTUNED, *TUNED_ARMS, SELECTED, CHOSEN, *RL_ARMS, ROUNDS, *DPO_ARMS} == {UNTUNED, *arms} <= cell.keys()
    for arm in (UNTUNED, *arms):
        row = cell[arm]
        assert len(row["accuracy"]) == 2 and row["ci95"][0] <= row["mean"] <= row["ci95"][1]
        assert row["ci_low_vs_initial"] == row["gain_over_initial"]["ci95"][0]
        # Where rubrics were written or dealt, what they ask about is known.
        assert ("topics_by_seed" in row) == (arm not in (UNTUNED, "no_rubric"))
    for other in ("paper_reward", "privileged_rubric", cell["best_baseline"]):
        name = other if other in ("paper_reward", "privileged_rubric") else "best_baseline"
        gain = cell["optimised"]["mean"] - cell[other]["mean"]
        assert cell["optimised"][f"gain_over_{name}"]["mean"] == pytest.approx(gain, abs=2e-4)
    # DPO asks the teacher as often as RL does.
    for arm in ("optimised", *DPO_ARMS):
        for kept in Path("scratch/rubrics").glob(f"*/seed-*/generators/{arm}/trajectories.jsonl"):
            assert len(kept.read_text().splitlines()) == 2 * 2 * 4

    # Two rounds make as many calls as one, and the second has a warm-up of its own.
    for seed in Path("scratch/rubrics").glob("*/seed-*"):
        rounds = [seed / f"generators/two_rounds-{number}/trajectories.jsonl" for number in (0, 1)]
        assert [len(kept.read_text().splitlines()) for kept in rounds] == [1 * 2 * 4, 1 * 2 * 4]
        assert (seed / "warmup-1").is_dir()

    # An entry is all that was ever finished, whatever is asked for now, and nothing of it is made again.
    monkeypatch.setattr(runs, "SeedRun", None)
    assert run_benchmark(monkeypatch, "--cells", "medicine/qwen3", "--arms", "initial") == found
    monkeypatch.undo()

    # The other target's generator is of use for this one, and this one's for the other.
    monkeypatch.chdir(project)
    monkeypatch.setattr(runs, "configure", lambda cell, changes=None: configure(cell, TINY))
    capsys.readouterr()
    both = run_benchmark(monkeypatch, "--cells", "medicine/llama", "--arms", "optimised")
    assert both["cells"][0] == cell and both["cells"][1]["target"] == "llama"
    assert {(e["from_target"], e["to_target"]) for e in both["transfer"]} == {("qwen3", "llama"), ("llama", "qwen3")}
    for entry in both["transfer"]:
        own = next(cell for cell in both["cells"] if cell["target"] == entry["to_target"])
        assert (entry["initial_mean"], entry["own_target_mean"]) == (own["initial"]["mean"], own["optimised"]["mean"])
        gain = entry["optimised_mean"] - entry["initial_mean"]
        assert entry["gain_over_initial"]["mean"] == pytest.approx(gain, abs=2e-4)
    printed = capsys.readouterr().out
    assert "| medicine | qwen3 | llama |" in printed and "| optimised over |" in printed


def test_an_arm_that_is_run_alone_joins_those_of_the_file_and_must_agree_with_them(project, monkeypatch):
    answers = {UNTUNED: [0, 0, 0, 0], "initial": [1, 0, 0, 0], "random_reward": [0, 1, 0, 0], "dpo": [1, 1, 0, 0]}
    answers |= {"optimised": [1, 1, 1, 1]}
    ran = []

    def answer(config, seed, arms, folder):
        ran.append(arms)
        return {arm: {"correct": answers[arm], "topics": {}} for arm in arms}

    monkeypatch.setattr(runs, "configure", lambda cell, changes=None: configure(cell, TINY))
    monkeypatch.setattr(runs, "run_jobs", lambda function, jobs, machine: [answer(*job) for job in jobs])
    cell = Cell("medicine", "qwen3")
    first = runs.run_cell(cell, (UNTUNED, "initial", "optimised"))
    kept = runs.run_cell(cell, (UNTUNED, "initial", "random_reward"), kept=first)
    assert kept["optimised"] == first["optimised"] and kept["random_reward"]["mean"] == 0.25
    assert kept["best_baseline"] == "initial" and set(ran[-1]) == {UNTUNED, "initial", "random_reward"}

    # A better baseline than there was: by how much the optimised arm is ahead of it has an interval once both ran.
    better = runs.run_cell(cell, (UNTUNED, "initial", "dpo"), kept=kept)
    assert better["best_baseline"] == "dpo" and better["random_reward"] == kept["random_reward"]
    assert "gain_over_best_baseline" in kept["optimised"] and "gain_over_best_baseline" not in better["optimised"]
    both = runs.run_cell(cell, (UNTUNED, "initial", "dpo", "optimised"), kept=better)
    assert both["optimised"]["gain_over_best_baseline"]["mean"] == 0.5

    answers["initial"] = [0, 0, 0, 0]
    with pytest.raises(ValueError, match="initial of cell medicine/qwen3 has the accuracies .0.0, 0.0. now, and .0.25"):
        runs.run_cell(cell, (UNTUNED, "initial"), kept=better)


def test_there_is_no_transfer_from_a_cell_that_was_not_run(project):
    cells = Cell("medicine", "qwen3"), Cell("medicine", "llama")
    assert runs.run_transfer(*cells, TINY) is None
    origin = open_folder(configure(cells[0], TINY))
    for seed in TINY["seeds"]:
        generator = origin / f"seed-{seed}/generators/optimised"
        generator.mkdir(parents=True)
        (generator / "trajectories.jsonl").touch()
    assert runs.run_transfer(*cells, TINY) is None  # the other has no results to stand beside it


def test_an_entry_takes_the_place_of_its_own_kind_alone():
    old = [{"field": "law", "target": "qwen3", "teacher": teacher, "mean": 1} for teacher in ("qwen3", "llama")]
    new = old[0] | {"mean": 2}
    assert rubrics.replace_entry(old, new, rubrics.CELL) == [new, old[1]]
    assert rubrics.replace_entry(old[1:], new, rubrics.CELL) == [old[1], new]


def test_without_its_package_the_prompt_optimiser_is_refused_and_says_what_to_do(project, monkeypatch, capsys):
    monkeypatch.setattr(rubrics, "find_spec", lambda name: None)
    for asked in (SEARCHED, "all"):
        with pytest.raises(SystemExit):
            run_benchmark(monkeypatch, "--arms", asked)
        assert "make setup-peers, then run with .venv-peers/bin/python" in capsys.readouterr().err


def test_arms_are_compared_on_the_same_seeds_and_questions(project):
    one, other = np.ones((2, 8), dtype=bool), np.tile([True, False], (2, 4))
    found = runs.compare(one, other, configure(Cell("medicine", "qwen3"), TINY))
    assert found["mean"] == 0.5 and 0 < found["ci95"][0] <= 0.5 <= found["ci95"][1] < 1
    assert runs.compare(one, one, configure(Cell("medicine", "qwen3"), TINY)) == {"mean": 0.0, "ci95": [0.0, 0.0]}

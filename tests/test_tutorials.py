"""The tutorials that need no pipeline stage, run whole, and the code of the influence page, run on its checkpoint."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rubric_influence.pipeline.notebooks import execute
from rubric_influence.rl.history import tabulate_rollouts
from rubric_influence.rl.trajectories import read_trajectories

REPOSITORY = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.slow


def run_tutorial(factory: pytest.TempPathFactory, name: str) -> Path:
    """A folder with the tutorial, NAME.ipynb, executed with its committed parameters, and run/, what it wrote."""
    folder = factory.mktemp(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)  # its paths are relative to the project
        execute(f"notebooks/tutorials/{name}.ipynb", folder / f"{name}.ipynb", {"out": str(folder / "run")})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has run/ranked.csv."""
    return run_tutorial(tmp_path_factory, "influence")


def test_right_answers_outrank_swapped_ones_on_their_own_question(folder: Path):
    ranked = pd.read_csv(folder / "run/ranked.csv")
    assert ranked["own_question"].dropna().is_monotonic_decreasing
    assert set(ranked["pool"]) == {"right", "swapped", "letter", "off-topic"}
    mean = ranked.groupby("pool")[["own_question", "influence", "rank"]].mean()
    assert mean.at["right", "rank"] < mean.at["swapped", "rank"]
    # A margin of several times the spread over seeds: about 0.4 against 0.
    assert mean.at["right", "own_question"] > mean.at["swapped", "own_question"] + 0.2


def test_on_the_mean_over_topics_right_answers_are_above_letters_and_off_topic_pairs(folder: Path):
    mean = pd.read_csv(folder / "run/ranked.csv").groupby("pool")["influence"].mean()
    assert mean["right"] > max(mean["letter"], mean["off-topic"]) + 0.01


def test_every_step_shows_a_table_a_figure_or_a_sentence(folder: Path):
    notebook = json.loads((folder / "influence.ipynb").read_text(encoding="utf-8"))
    shown = [output.get("data", {}) for cell in notebook["cells"] for output in cell.get("outputs", [])]
    sentences = "".join(text for data in shown for text in data.get("text/markdown", []))
    assert "the same, bit for bit, as those of the live optimizer" in sentences
    assert any("image/png" in data for data in shown)
    assert "nan" not in sentences


def read_code(heading: str) -> str:
    page = (REPOSITORY / "docs/influence.md").read_text(encoding="utf-8")
    section = page.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)


@pytest.fixture(scope="module")
def page(folder: Path) -> dict:
    """The variables after the page's code, run on the notebook's checkpoint."""
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        for heading in ("In three calls", "Token by token", "In twenty lines", "Checking your own scores"):
            exec(read_code(heading).replace("scratch/influence", str(folder / "run")), names)
    return names


def test_the_three_calls_of_the_docs_page_rank_what_its_twenty_lines_score(page: dict):
    table = page["table"]
    assert list(table.columns) == ["question", "answer", "influence", "dose", "toxicity"]
    assert list(table["answer"]) == ["10mg", "green"] and table["influence"].is_monotonic_decreasing
    arguments = (page["model"], page["directions"], page["moments"])
    scorer = page["open_scorer"]("adam", *arguments, momentum=False, normalise=False, batch_tokens=4096)
    expected = scorer.score([page["encode"](page["tokenizer"], *pair) for pair in page["candidates"]])
    assert np.allclose(table.sort_index()[["dose", "toxicity"]], expected, rtol=1e-4, atol=1e-5)


def test_the_docs_page_explains_a_candidates_scores_by_its_tokens(page: dict):
    tokens, scores = page["explained"].tokens, page["table"].loc[1]  # the candidate with the right dose
    assert tokens["token"].iloc[0] == "10mg" == scores["answer"]
    for column in ("influence", "dose", "toxicity"):
        assert tokens[column].sum() == pytest.approx(scores[column], rel=1e-4)


def test_the_twenty_lines_of_the_docs_page_agree_with_the_oracle(page: dict):
    scores, slow = page["scores"], page["slow"]
    assert scores.shape == (2, 2) and scores[0, 0] > scores[0, 1]  # the dose's other wording helps the dose
    assert (scores - slow).abs().max() < 1e-5


@pytest.fixture(scope="module")
def one_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has run/tokens.csv and run/gains.csv."""
    return run_tutorial(tmp_path_factory, "one_pair")


def read_gains(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "run/gains.csv", header=[0, 1], index_col=0)


def test_the_pairs_tokens_sum_to_what_a_step_is_predicted_to_gain(one_pair: Path):
    tokens, gains = pd.read_csv(one_pair / "run/tokens.csv"), read_gains(one_pair)
    assert len(tokens) > 10 and (tokens["influence"] > 0).any() and (tokens["influence"] < 0).any()
    slopes = gains["without momentum", "predicted"] / gains.index
    assert slopes.to_numpy() == pytest.approx(tokens["influence"].sum(), rel=1e-4)


def test_short_steps_on_the_pair_gain_what_is_predicted(one_pair: Path):
    gains = read_gains(one_pair)
    for momentum in ("without momentum", "with momentum"):
        measured, predicted = gains[momentum, "measured"], gains[momentum, "predicted"]
        off = (measured / predicted - 1).abs()
        assert off.iloc[0] < 0.02 and off.iloc[-1] > off.iloc[0]


def test_the_pairs_notebook_computes_every_number_twice_alike(one_pair: Path):
    notebook = json.loads((one_pair / "one_pair.ipynb").read_text(encoding="utf-8"))
    shown = [output.get("data", {}) for cell in notebook["cells"] for output in cell.get("outputs", [])]
    sentences = "".join(text for data in shown for text in data.get("text/markdown", []))
    assert "nan" not in sentences and any("image/png" in data for data in shown)
    (scores,) = re.findall(r"they differ by at most (\S+) of it", sentences)
    (rewards,) = re.findall(r"the logged one, \S+, differ by (\S+)\.", sentences)
    assert float(scores) < 1e-4 and float(rewards) < 1e-5


def read_said(notebook: Path) -> tuple[str, str]:
    """The sentences of an executed notebook, and what it printed."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    sentences = [text for output in outputs for text in output.get("data", {}).get("text/markdown", [])]
    return "".join(sentences), "".join(text for output in outputs for text in output.get("text", []))


@pytest.fixture(scope="module")
def own_documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has run/pairs.jsonl."""
    return run_tutorial(tmp_path_factory, "own_documents")


def test_a_newcomers_files_are_read_and_what_is_left_out_is_named(own_documents: Path):
    said, printed = read_said(own_documents / "own_documents.ipynb")
    assert "13 files were read as documents and 1 of them repeated another; 12 documents remain" in said
    assert "beds/plan.png: of a format that is not read (.png)" in said and "nan" not in said
    assert "quiz.csv, row 4: answer is 'E', expected the key, number or text of one of ['fresh manure'" in printed


def test_a_newcomers_pairs_are_scored_and_the_better_half_is_tried(own_documents: Path):
    said, printed = read_said(own_documents / "own_documents.ipynb")
    lines = (own_documents / "run/pairs.jsonl").read_text(encoding="utf-8").splitlines()
    (scored,) = re.findall(r"Of (\d+) pairs, \d+ have positive influence", said)
    assert len(lines) == int(scored) // 2 > 5
    assert f"{len(lines)} pairs; measure: the target as it is, after fine-tuning on them" in printed
    (question,) = re.findall(r"\*\*question\*\*: (.+)", said)
    assert question and "Rubric: " in printed


@pytest.fixture(scope="module")
def gamed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has the two runs' generators in run/."""
    return run_tutorial(tmp_path_factory, "is_the_reward_gamed")


def test_the_run_whose_validation_wants_letters_is_the_one_that_the_guard_tells_apart(gamed: Path):
    kept, ends = {}, {}
    for name in ("honest", "gamed"):
        table = tabulate_rollouts(read_trajectories(gamed / f"run/{name}/trajectories.jsonl"))
        first, last = table[table["step"] <= 2], table[table["step"] > table["step"].max() - 2]
        assert last["influence"].mean() > first["influence"].mean() > 0  # both rewards rise
        kept[name] = last["guard_influence"].mean() / last["influence"].mean()
        ends[name] = last["rubric"].str.contains("multiple choice").mean()
    assert kept["honest"] > 0.8 and kept["gamed"] < 0.4
    assert ends["gamed"] > ends["honest"] + 0.3


def test_the_gamed_runs_notebook_says_what_sets_it_apart(gamed: Path):
    said, _ = read_said(gamed / "is_the_reward_gamed.ipynb")
    assert "**multiple choice** sets the gamed run apart most" in said and "nan" not in said
    assert "- **honest**: It ran to its end, 12 of 12 steps." in said

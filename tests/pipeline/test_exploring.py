"""The exploring notebook on a small finished run, with and without what makes its tables and maps interactive."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from clones import REPOSITORY

from rubric_influence.core.paths import seed_folder
from rubric_influence.pipeline.exploring import read_run, tabulate_pairs
from rubric_influence.pipeline.notebooks import execute
from rubric_influence.pipeline.stages.corpus import make_corpus
from rubric_influence.pipeline.stages.final import make_final_sets
from rubric_influence.pipeline.stages.generators import optimise_generators
from rubric_influence.pipeline.stages.influence import compare_initial_spaces, score_initial_sets
from rubric_influence.pipeline.stages.initial import make_initial_sets
from rubric_influence.pipeline.stages.warmup import warm_up_targets

pytestmark = pytest.mark.slow

SMALL = {
    "budget": {"initial_pairs": 4, "final_pairs": 2},
    "influence": {"directions": "topics"},
    "machine": {"workers": 1},
    "rl": {"checkpoint": "dev"},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory, lab_config) -> Path:
    """A project whose stages up to the final sets have run."""
    folder, config = tmp_path_factory.mktemp("run"), lab_config(SMALL)
    (folder / "dvc.yaml").touch()
    (folder / "params.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_corpus(config)
        make_initial_sets(config)
        warm_up_targets(config)
        score_initial_sets(config)
        compare_initial_spaces(config)
        optimise_generators(config)
        make_final_sets(config)
    return folder


@pytest.fixture
def inside(project, monkeypatch) -> None:
    monkeypatch.chdir(project)


def read_outputs(path: Path) -> list[dict]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [output.get("data", {}) for cell in notebook["cells"] for output in cell.get("outputs", [])]


def join(outputs: list[dict], kind: str) -> str:
    return "".join(line for data in outputs for line in data.get(kind, []))


def explore(project: Path, name: str, **parameters: object) -> list[dict]:
    execute(REPOSITORY / "notebooks/explore.ipynb", project / f"reports/{name}.ipynb", parameters)
    return read_outputs(project / f"reports/{name}.ipynb")


def test_pairs_come_with_rubric_and_document_the_best_first(inside):
    table = tabulate_pairs("optimised", 0)
    assert table["influence"].is_monotonic_decreasing and len(table) > 3
    assert (table["rubric"].str.len() > 0).all() and (table["document"].str.len() > 0).all()
    assert set(tabulate_pairs("no_rubric", 0)["rubric"]) == {""}


def test_the_run_is_read_with_the_directions_that_it_was_scored_along(inside, lab_config):
    trajectories, directions = read_run(0)
    scored = pd.read_parquet(f"{seed_folder(Path('data/influence'), 0)}.parquet")
    assert list(scored.columns[-len(directions.names) :]) == directions.names
    assert len(directions.groups) == 4 and all(name.startswith("dev, ") for name in directions.dev)
    (first, *_) = [taught for each in trajectories for taught in each.pairs if taught.influence]
    assert len(first.influence) == len(directions.names)
    with pytest.raises(ValueError, match="no run of seed 7: .*trajectories.jsonl is missing; run the pipeline first"):
        read_run(7)


def test_the_notebook_shows_the_run_without_itables_and_plotly(inside, project):
    outputs = explore(project, "static", interactive=False)
    said = join(outputs, "text/markdown")
    assert "pairs of optimised, seed 0" in said and "It ran to its end, 3 of 3 steps." in said and "nan" not in said
    assert sum("image/png" in data for data in outputs) == 2  # timeline and maps
    assert "<script" not in join(outputs, "text/html")
    assert all(side in join(outputs, "text/html") for side in ("one", "other", "difference"))


def test_interactive_tables_and_maps_hold_their_pairs_and_fetch_nothing(inside, project):
    pytest.importorskip("itables")
    pytest.importorskip("plotly")
    outputs = explore(project, "interactive", interactive=True)
    pages = ["".join(data.get("text/html", [])) for data in outputs]
    views = [page for page in pages if any(f'id="{name}"' in page for name in ("pairs", "asked", "maps", "timeline"))]
    assert len(views) == 4
    question = tabulate_pairs("optimised", 0)["question"][0]
    assert question in views[0]
    fetched = re.compile(r"""<link|src=["']?https?:|from ['"]https?:|import\(['"]https?:""")
    assert not [found for page in views for found in fetched.findall(page)]
    # The scripts that the views run are in the page, once.
    assert sum(page.count("injectModule(") > 0 for page in pages) == 1
    assert sum("plotly.js v" in page for page in pages) == 1


def test_the_same_run_is_shown_by_the_same_bytes(inside, project):
    for name in ("one", "two"):
        explore(project, name)
    assert (project / "reports/one.ipynb").read_bytes() == (project / "reports/two.ipynb").read_bytes()

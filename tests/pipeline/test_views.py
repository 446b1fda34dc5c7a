import re

import pandas as pd
import pytest
from matplotlib.figure import Figure

from rubric_influence.pipeline.views import STATIC_ROWS, WIDTH, draw_maps, draw_timeline, show_table, tell

HOSTILE = "<script>alert(1)</script> & so on"
PLACES = pd.DataFrame(
    {
        **{"kind": ["expert", "synthetic"], "question": [HOSTILE, "what is the dose ?"], "answer": ["5 mg", "10 mg"]},
        **{"embedding_x": [0.0, 1.0], "embedding_y": [0.5, 1.5]},
    }
)
STEPS = pd.DataFrame(
    {
        **{"influence": [1.0, 2.0], "guard_influence": [1.0, 0.5], "reward": [0.1, 0.2], "valid": [1.0, 1.0]},
        **{"distinct_rubrics": [0.5, 0.5], "covered_directions": [2.0, 1.0]},
    },
    index=pd.Index([1, 2], name="step"),
)
WORDINGS = pd.DataFrame({"step": [1, 2, 2], "rubric": ["ask for the dose", "b" * 200, HOSTILE], "pairs": [4, 3, 1]})


@pytest.fixture
def packages() -> None:
    pytest.importorskip("itables")
    pytest.importorskip("plotly")


def test_a_label_is_short_and_holds_no_html():
    assert tell([HOSTILE]) == "&lt;script&gt;alert(1)&lt;/script&gt; &amp; so on"
    assert tell(["a", "b" * (WIDTH + 1)]) == "a<br>" + "b" * (WIDTH - 1) + "…"


def test_a_static_table_is_its_first_rows_and_holds_no_html():
    table = pd.DataFrame({"question": [HOSTILE, *map(str, range(1000, 1100))]})
    page = show_table(table, "pairs", interactive=False).to_html()
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert str(1000 + STATIC_ROWS - 2) in page and str(1000 + STATIC_ROWS - 1) not in page


def test_static_figures_are_matplotlibs():
    assert isinstance(draw_maps(PLACES, {"embedding": "By embeddings"}, interactive=False), Figure)
    assert isinstance(draw_timeline(STEPS, WORDINGS, interactive=False), Figure)


def test_an_interactive_table_holds_every_row_and_no_html_of_its_own(packages):
    table = pd.DataFrame({"question": [HOSTILE, *(f"question {n:04}" for n in range(3000))]})
    page = show_table(table, "pairs", interactive=True).data
    assert 'id="pairs"' in page and "question 2999" in page
    assert "<script>alert" not in page


def test_a_point_of_a_map_shows_its_pair(packages):
    page = draw_maps(PLACES, {"embedding": "By embeddings"}, interactive=True).data
    assert 'id="maps"' in page and "By embeddings" in page and "what is the dose ?" in page
    assert "<script>alert" not in page


def test_a_step_of_the_timeline_shows_its_commonest_rubrics(packages):
    page = draw_timeline(STEPS, WORDINGS, interactive=True).data
    assert 'id="timeline"' in page and re.search(r"step 1: 1.{0,20}4 (×|.?.?u00d7) ask for the dose", page)
    assert "<script>alert" not in page

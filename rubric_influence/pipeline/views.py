"""Tables and maps to search, sort and point at in JupyterLab, from tables that a run left.

They need itables and plotly (the extra `jupyter`). Without them the same is shown as it stands, by pandas and
matplotlib. Nothing is fetched from a network: the scripts are those of the installed packages, put into the notebook
by `load_scripts`.
"""

from html import escape
from importlib.util import find_spec
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from rubric_influence.evaluation.plots import BLUE, ORANGE, plot_spaces, plot_training

INTERACTIVE = all(map(find_spec, ("itables", "plotly")))
STATIC_ROWS = 20  # of a table that cannot be paged
WIDTH = 80  # characters of a line that a point shows


def load_scripts() -> None:
    """Put the scripts that tables and figures share into the notebook; a page that is to show these keeps this output.

    Raises ImportError without itables and plotly.
    """
    import itables
    from IPython.display import display
    from plotly.offline import get_plotlyjs

    itables.init_notebook_mode(all_interactive=False, connected=False)
    display(HTML(f"<script>{get_plotlyjs()}</script>"))


def show_table(table: pd.DataFrame, name: str, interactive: bool = INTERACTIVE) -> HTML | Styler:
    """The table in pages, to be sorted by any column and searched in all; else its first STATIC_ROWS rows.

    `name` is its id in the page. Texts are shown as texts, whatever they hold.
    """
    if not interactive:
        shown = table.head(STATIC_ROWS).style.format(precision=3, escape="html")
        return shown.set_properties(subset=None, **{"text-align": "left"}).set_uuid(name)
    import itables

    text = itables.to_html_datatable(
        table.round(3), connected=False, table_id=name, maxBytes=0, showIndex=False, classes="display compact",
        columnDefs=[{"className": "dt-left", "targets": "_all"}], display_logo_when_loading=False,
    )  # fmt: skip
    return HTML(text)


def draw_maps(places: pd.DataFrame, titles: dict[str, str], interactive: bool = INTERACTIVE) -> HTML | Figure:
    """Expert and synthetic pairs on one map a space; a point that is pointed at shows its question and answer.

    Columns: kind, question, answer, and x and y of every space in `titles`.
    """
    if not interactive:
        return close(plot_spaces(places, titles))
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    figure = make_subplots(1, len(titles), subplot_titles=list(titles.values()))
    for column, space in enumerate(titles, start=1):
        for kind, symbol, color in (("synthetic", "circle", BLUE), ("expert", "triangle-up", ORANGE)):
            rows = places[places["kind"] == kind]
            said = [tell([question, answer]) for question, answer in zip(rows["question"], rows["answer"], strict=True)]
            points = Scatter(
                x=rows[f"{space}_x"], y=rows[f"{space}_y"], mode="markers", marker={"symbol": symbol, "color": color},
                hovertext=said, hoverinfo="text", name=kind, legendgroup=kind, showlegend=column == 1,
            )  # fmt: skip
            figure.add_trace(points, 1, column)
    figure.update_xaxes(showticklabels=False).update_yaxes(showticklabels=False)
    return embed_figure(figure, "maps", height=480)


def draw_timeline(steps: pd.DataFrame, wordings: pd.DataFrame, interactive: bool = INTERACTIVE) -> HTML | Figure:
    """A run of RL by step: influence, guard influence and reward; a step that is pointed at shows its rubrics.

    `steps`: rl.history.tabulate_steps; `wordings`: rl.history.tabulate_wordings.
    """
    if not interactive:
        return close(plot_training(steps.reset_index().assign(seed=0)))
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    lines = (wordings["pairs"].astype(str) + " × " + wordings["rubric"]).groupby(wordings["step"])
    said = {step: tell(list(rubrics)) for step, rubrics in lines}
    figure = make_subplots(2, 1, shared_xaxes=True, row_heights=[0.65, 0.35], vertical_spacing=0.06)
    for row, (column, label, color, dash) in (
        (1, ("influence", "influence on validation questions", BLUE, "solid")),
        (1, ("guard_influence", "influence on guard questions", ORANGE, "dash")),
        (2, ("reward", "reward", "#555b66", "solid")),
    ):
        labels = [f"step {step}: {value:.4g}<br>{said.get(step, '')}" for step, value in steps[column].items()]
        line = Scatter(
            x=steps.index, y=steps[column], name=label, line={"color": color, "dash": dash}, mode="lines+markers",
            hovertext=labels, hoverinfo="text",
        )  # fmt: skip
        figure.add_trace(line, row, 1)
    figure.update_xaxes(title_text="step", row=2).update_xaxes(nticks=min(10, len(steps)))
    figure.update_yaxes(title_text="influence", row=1).update_yaxes(title_text="reward", row=2)
    return embed_figure(figure, "timeline", height=520)


def close(figure: Figure) -> Figure:
    """The figure, which a notebook would else show a second time, as one that is open."""
    plt.close(figure)
    return figure


def tell(texts: list[str]) -> str:
    """Texts as the lines of a point's label, shortened, with nothing in them that plotly reads as HTML."""
    short = [text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…" for text in texts]
    return "<br>".join(escape(text) for text in short)


def embed_figure(figure: Any, name: str, height: int) -> HTML:
    """A plotly figure for a page that `load_scripts` has put plotly's script into."""
    figure.update_layout(template="plotly_white", height=height, legend={"orientation": "h"})
    text = figure.to_html(full_html=False, include_plotlyjs=False, div_id=name)
    return HTML(text)

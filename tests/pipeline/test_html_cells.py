"""Executed notebooks as HTML, from cells and outputs made by hand."""

import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from rubric_influence.pipeline.html_cells import clean_html, describe_figure, frame_tables, render_page, render_table


def read_cells(*cells):
    page = render_page(new_notebook(cells=list(cells)), "a stage")
    return page, BeautifulSoup(page.body, "html.parser")


def show(data, source="x"):
    return new_code_cell(source, outputs=[new_output("display_data", data=data)], execution_count=1)


def test_the_first_heading_is_the_title_and_later_ones_are_below_it_without_gaps():
    page, soup = read_cells(
        new_markdown_cell("# 9. Evaluation\n\nWho won?"), new_markdown_cell("#### Deep\n\n# Shallow\n\n## Below")
    )
    assert page.title == "9. Evaluation"
    assert [(tag.name, tag.text) for tag in soup(["h3", "h4", "h5", "h6"])] == [
        ("h4", "Deep"),  # level 4 would be h6, two below the title's h3
        ("h3", "Shallow"),
        ("h4", "Below"),
    ]


def test_a_notebook_without_a_heading_is_named_after_its_stage():
    assert read_cells(new_markdown_cell("text"))[0].title == "a stage"


def test_code_is_left_out():
    page, _ = read_cells(new_code_cell("secret = 1"))
    assert "secret" not in page.body


def test_equations_become_mathml_and_prices_do_not():
    _, soup = read_cells(new_markdown_cell(r"Costs $-\log p$, not $5 or $6, `$a$`. $$\frac{1}{2}$$ And $\frac{$."))
    inline, block = soup("math")
    assert inline.text == "−logp" and block["display"] == "block" and block.mfrac.text == "12"
    assert [code.text for code in soup("code")] == ["$a$", r"\frac{"]  # the last is no LaTeX
    assert "$5 or $6" in soup.text


EVIL = '<script>alert(1)</script><img src="http://a.example/x.png" onerror="alert(1)"><b onclick="alert(1)">bold</b>'


@pytest.mark.parametrize(
    "cell",
    [
        show({"text/markdown": f"# A heading\n\n{EVIL} ![i](http://a.example/i.png) [l](http://a.example)"}),
        show({"text/html": f"<h1>A heading</h1>{EVIL}<a href='http://a.example'>l</a><style>* {{color: red}}</style>"}),
        show({"text/plain": EVIL}),
        new_code_cell("x", outputs=[new_output("stream", name="stdout", text=EVIL)]),
        new_code_cell("x", outputs=[new_output("error", ename="E", evalue=EVIL, traceback=[EVIL])]),
        new_markdown_cell(f"text {EVIL} ![i](http://a.example/i.png)"),
    ],
)
def test_nothing_that_a_notebook_quotes_brings_markup_of_its_own(cell):
    _, soup = read_cells(cell)
    assert not soup(["script", "img", "style", "a", "h1", "h2", "h3", "h4"])
    assert {key for tag in soup(True) for key in tag.attrs} <= {"class", "tabindex"}


def test_a_traceback_is_shown_without_terminal_colours():
    error = new_output("error", ename="ValueError", evalue="no", traceback=["\x1b[0;31mValueError\x1b[0m: no"])
    _, soup = read_cells(new_code_cell("x", outputs=[error]))
    assert soup.select_one("pre.trace").text == "ValueError: no"


def test_papermills_own_banner_is_left_out():
    banner = new_markdown_cell("An Exception was encountered", metadata={"tags": ["papermill-error-cell-tag"]})
    assert read_cells(banner)[0].body == ""


def test_a_figure_is_described_by_the_function_that_drew_it():
    assert describe_figure("plot_losses(losses);") == "Training loss by epoch, one line per seed."
    assert describe_figure("frame.plot()") == "Figure; the text beside it reads it."


def test_figures_of_one_cell_are_told_apart():
    png = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAADCAYAAAC56t6BAAAAC0lEQVR4nGNgwAYAABUAAbYAPGsAAAAASUVORK5CYII="  # 2 x 3
    drawn = [new_output("display_data", data={"image/png": png, "text/plain": "<Figure>"}) for _ in range(2)]
    _, soup = read_cells(new_code_cell("plot_losses(a); plot_losses(b)", outputs=drawn))
    assert [(image["width"], image["height"]) for image in soup("img")] == [("2", "3")] * 2
    assert [image["alt"][-8:] for image in soup("img")] == ["(1 of 2)", "(2 of 2)"]


def test_a_table_scrolls_of_itself_and_its_cells_say_what_they_are():
    table = pd.DataFrame({"gain": ["+44.4", "-3.0"], "of": ["x" * 80, "<b>"]}, index=pd.Index(["a", "b"], name="arm"))
    soup = BeautifulSoup(render_table(table), "html.parser")
    box = soup.select_one("div.scroll[tabindex='0'][role=region][aria-label]")
    rows = [[(cell.name, cell.get("scope"), cell.get("class"), cell.text) for cell in row] for row in map(
        lambda row: row(["th", "td"]), box("tr"))]  # fmt: skip
    assert rows == [
        [("th", "col", None, "arm"), ("th", "col", ["number"], "gain"), ("th", "col", None, "of")],
        [("th", "row", None, "a"), ("td", None, ["number"], "+44.4"), ("td", None, ["prose"], "x" * 80)],
        [("th", "row", None, "b"), ("td", None, ["number"], "-3.0"), ("td", None, None, "<b>")],
    ]


def test_names_of_index_and_columns_share_a_header_cell():
    table = pd.DataFrame([[1]], index=pd.Index(["dose"], name="topic"), columns=pd.Index(["test"], name="split"))
    soup = BeautifulSoup(clean_html(table.to_html()), "html.parser")
    assert [[cell.text for cell in row(["th", "td"])] for row in soup("tr")] == [
        ["topic / split", "test"],
        ["dose", "1"],
    ]


def test_two_rows_of_column_names_both_stay():
    columns = pd.MultiIndex.from_tuples([("a", "x"), ("a", "y")])
    assert len(BeautifulSoup(clean_html(pd.DataFrame([[1, 2]], columns=columns).to_html()), "html.parser")("tr")) == 3


def test_text_without_a_table_is_left_as_it_is():
    assert frame_tables("<p>a<br />b</p>") == "<p>a<br />b</p>"

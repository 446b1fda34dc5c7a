"""An executed notebook as HTML: its text, tables, figures and errors, without its code.

Nothing here needs a network or a script. Equations become MathML, which browsers draw themselves. Outputs hold what
documents and models say, so they can bring neither HTML of their own nor links, images or headings into the page.
"""

import base64
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import NewType

import nbformat
import pandas as pd
from bs4 import BeautifulSoup, Tag
from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from rubric_influence.evaluation import plots

STAGE_LEVEL = 3  # the heading of a stage; those within it are deeper
TABLE = ["table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td"]
LONG = 24  # characters of a cell, above which it needs some width to be read in
KEPT_TAGS = {*TABLE, "p", "pre", "br", "ul", "ol", "li", "b", "strong", "i", "em", "code", "sub", "sup"}
NUMBER = re.compile(r"[+\-−]?[\d.,]+(e[+-]?\d+)?( to [+\-−]?[\d.,]+)?|nan|\[.*\d\]", re.IGNORECASE)
# As Pandoc's: no blank within the dollars and no digit after them, so that prices are no equation.
DOLLARS = re.compile(r"\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^\s$`](?:[^$`]*[^\s$`])?)\$(?!\d)", re.DOTALL)
TERMINAL_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
PAPERMILL_BANNER = "papermill-error-cell-tag"

Html = NewType("Html", str)  # escaped where it must be, to stand in a page as it is


@dataclass(frozen=True)
class Page:
    """An executed notebook for the report."""

    title: str
    body: Html


def parse_math(state: StateInline, silent: bool) -> bool:
    """markdown-it's rule for $inline$ and $$block$$ equations."""
    found = DOLLARS.match(state.src, state.pos)
    if not found:
        return False
    if not silent:
        kind = "block" if found["block"] else "inline"
        state.push(f"math_{kind}", "math", 0).content = found[kind]
    state.pos = found.end()
    return True


def render_math(_: object, tokens: list[Token], index: int, *__: object) -> str:
    """MathML, or the source itself where it is no LaTeX that we can read."""
    display, source = tokens[index].type.removeprefix("math_"), tokens[index].content
    try:
        return f'<span class="math {display}">{convert(source, display=display)}</span>'
    except Exception:  # the package's errors have no base of their own
        return f"<code>{escape(source)}</code>"


def make_parser(*without: str) -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable([*without])
    for kind, render in {"image": name_image, "math_inline": render_math, "math_block": render_math}.items():
        parser.add_render_rule(kind, render)
    return parser


def name_image(_: object, tokens: list[Token], index: int, *__: object) -> str:
    """The text that stands for an image: its file is no part of the page."""
    return escape(tokens[index].content)


AUTHORED = make_parser()
AUTHORED.inline.ruler.before("escape", "math", parse_math)
QUOTED = make_parser("link", "autolink", "heading", "lheading", "reference")


def render_page(notebook: nbformat.NotebookNode, name: str) -> Page:
    """What the notebook says. Its first heading is the title, `name` where there is none."""
    headings = Headings()
    parts: list[Html] = []
    for cell in notebook.cells:
        if PAPERMILL_BANNER in cell.metadata.get("tags", []):
            continue  # the report says itself what failed
        if cell.cell_type == "markdown":
            parts.append(headings.render(cell.source))
        elif cell.cell_type == "code":
            parts += list_outputs(cell)
    return Page(headings.title or name, Html("\n".join(parts)))


class Headings:
    """Renders a notebook's Markdown cells one by one: the first heading becomes the title, others keep their order."""

    def __init__(self) -> None:
        self.title, self.level = "", STAGE_LEVEL

    def render(self, source: str) -> Html:
        tokens = AUTHORED.parse(source)
        kept: list[Token] = []
        place = 0
        while place < len(tokens):
            token = tokens[place]
            if token.type == "heading_open" and not self.title:
                self.title = tokens[place + 1].content
                place += 3
                continue
            if token.type == "heading_open":
                self.level = min(int(token.tag[1]) + STAGE_LEVEL - 1, self.level + 1, 6)
            if token.type.startswith("heading_"):
                token.tag = f"h{self.level}"
            kept.append(token)
            place += 1
        return Html(frame_tables(AUTHORED.renderer.render(kept, AUTHORED.options, {})))


def list_outputs(cell: nbformat.NotebookNode) -> Iterator[Html]:
    """A code cell's outputs, each in the richest form that a page without scripts can show."""
    figures, shown = sum("image/png" in output.get("data", {}) for output in cell.outputs), 0
    for output in cell.outputs:
        data = output.get("data", {})
        if output.output_type == "error":
            trace = TERMINAL_COLOUR.sub("", "\n".join(output.traceback))
            yield Html(f'<pre class="trace" tabindex="0">{escape(trace)}</pre>')
        elif output.output_type == "stream":
            if output.name == "stdout":
                yield render_text(output.text)
        elif "image/png" in data:
            shown += 1
            which = f" ({shown} of {figures})" if figures > 1 else ""
            yield render_figure(base64.b64decode(data["image/png"]), describe_figure(cell.source) + which)
        elif "text/html" in data:
            yield clean_html(data["text/html"])
        elif "text/markdown" in data:
            yield Html(frame_tables(QUOTED.render(data["text/markdown"])))
        else:
            yield render_text(data.get("text/plain", f"(an output that this page cannot show: {', '.join(data)})"))


def render_text(text: str) -> Html:
    return Html(f'<pre tabindex="0">{escape(TERMINAL_COLOUR.sub("", text).rstrip())}</pre>')


def describe_figure(source: str) -> str:
    """What a figure shows: the first sentence of the docstring of the function of evaluation.plots that drew it."""
    for name in re.findall(r"\bplot_\w+(?=\()", source):
        if hasattr(plots, name) and (told := getattr(plots, name).__doc__):
            return re.split(r"(?<=\.)\s", " ".join(told.replace("`", "").split()))[0]
    return "Figure; the text beside it reads it."


def render_figure(png: bytes, alt: str) -> Html:
    """The image within the page: as wide as the page at most; in a box that scrolls where that is hard to read."""
    width, height = struct.unpack(">II", png[16:24])  # of the IHDR chunk, which comes first
    source = f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
    size = f'width="{width}" height="{height}" style="--own: {width}px"'
    return Html(f'<figure tabindex="0"><img src="{source}" {size} alt="{escape(alt)}"></figure>')


def render_table(table: pd.DataFrame) -> Html:
    """A table with its index, every text in full and escaped."""
    with pd.option_context("display.max_colwidth", None):
        return clean_html(table.to_html(border=0, na_rep=""))


def clean_html(html: str) -> Html:
    """Tables and plain text of an output; tags that the page does not know lose their markup, scripts everything."""
    soup = BeautifulSoup(html, "html.parser")
    for tag in soup(["script", "style", "template", "iframe", "object", "svg", "head", "title"]):
        tag.decompose()
    for tag in soup(True):
        if tag.name in KEPT_TAGS:
            tag.attrs = {key: value for key, value in tag.attrs.items() if key in ("colspan", "rowspan")}
        else:
            tag.unwrap()
    return Html(frame_tables(str(soup)))


def frame_tables(html: str) -> str:
    """The same HTML, each table in a box that scrolls of itself, its numbers marked and its header cells scoped."""
    if "<table" not in html:
        return html
    soup = BeautifulSoup(html, "html.parser")
    for table in soup("table"):
        merge_header_rows(table)
        box = {"class": "scroll", "role": "region", "aria-label": "Table", "tabindex": "0"}
        table.wrap(soup.new_tag("div", attrs=box))
        for cell in table(["th", "td"]):
            text = cell.get_text(strip=True)
            if cell.name == "th" and not text:
                cell.name = "td"  # a header that names nothing
            elif cell.name == "th":
                cell["scope"] = "col" if cell.find_parent("thead") else "row"
            if cell.name == "td" and NUMBER.fullmatch(text):
                cell["class"] = "number"
            elif len(text) > LONG:
                cell["class"] = "prose"
        align_headers(table)
    return str(soup)


def merge_header_rows(table: Tag) -> None:
    """One header row of pandas' two, where the second has nothing but the names of the index."""
    rows = [row(["th", "td"]) for row in table.select("thead tr")]
    if len(rows) != 2 or len(rows[0]) != len(rows[1]):
        return
    texts = [(upper.get_text(strip=True), lower.get_text(strip=True)) for upper, lower in zip(*rows, strict=True)]
    index = [place for place, (_, lower) in enumerate(texts) if lower]
    if index == list(range(len(index))):
        for place in index:
            upper, lower = texts[place]
            rows[0][place].string = f"{lower} / {upper}" if upper else lower  # pandas: the columns' name
        table.select("thead tr")[1].decompose()


def align_headers(table: Tag) -> None:
    """Headers over numbers stand as these do. Columns are counted from the right: cells on the left may span rows."""
    rows = [list(reversed(row(["th", "td"]))) for row in table.select("tbody tr")]
    for head in table.select("thead tr"):
        for place, cell in enumerate(reversed(head(["th", "td"]))):
            below = [row[place] for row in rows if place < len(row) and row[place].get_text(strip=True)]
            if below and all(found.get("class") == "number" for found in below):
                cell["class"] = "number"

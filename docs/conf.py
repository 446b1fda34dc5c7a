"""The site: `make site` builds it into site/html, and it needs no network, neither to be built nor to be read.

The repository's root is the source folder, so that links between README, docs and notebooks are the same here as there.
"""

import json
import re
from importlib import metadata
from pathlib import Path
from shutil import copyfile

from docutils import nodes
from latex2mathml.converter import convert
from pydantic import BaseModel
from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]

project, author, copyright = "Rubric Influence", "", ""
release = metadata.version("rubric-influence")
extensions = ["myst_nb", "sphinx.ext.autodoc"]
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**.md", "notebooks/tutorials/*.ipynb"]
exclude_patterns = [
    ".*",
    "benchmarks",
    "data",
    "reports",
    "requirements",
    "rubric_influence",
    "scratch",
    "site",
    "tests",
]
root_doc = "docs/index"

html_theme = "furo"  # the system's fonts
html_title = project
html_copy_source = False
html_math_renderer = "mathml"
highlight_language = "text"  # of blocks without a language: commands, profiles and formulas
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # as GitHub's, which links between pages use
nb_execution_mode = "off"  # see show_outputs

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
# Not looked up: other packages' names, type variables, and the sections of a profile, which have a page of their own.
OWN = r"rubric_influence\.core\.(records\.Written|config\..*|\w+_sections\..*)"
nitpick_ignore_regex = [("py:.*", rf"(?!rubric_influence\.).*|{OWN}")]


def show_outputs(app: Sphinx, page: str, source: list[str]) -> None:
    """Show a tutorial as it was executed, from the folder `executed`; where it was not, say so at its head."""
    if not page.startswith("notebooks/"):
        return
    copy = ROOT / app.config.executed / Path(page).with_suffix(".ipynb").name
    if copy.is_file():
        source[0] = copy.read_text(encoding="utf-8")
        return
    notebook = json.loads(source[0])
    note = "```{note}\nShown without its outputs. To see them, run it: `make lab` opens it.\n```"
    notebook["cells"].insert(1, {"id": "note", "cell_type": "markdown", "metadata": {}, "source": note})
    source[0] = json.dumps(notebook)


def read_docstring(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text: words in backticks are code; what is indented or set in columns stays as it stands."""
    text: list[str] = []
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
        if re.search(r"\n    |\S  +\S", f"\n{paragraph}"):
            text += [".. code-block:: text", "", *(f"    {line}" for line in paragraph.splitlines()), ""]
        else:
            text += [*re.sub(r"`([^`]+)`|([*_|\\`])", escape, paragraph).splitlines(), ""]
    lines[:] = text


def escape(found: re.Match[str]) -> str:
    return f"``{found[1]}``" if found[1] else f"\\{found[2]}"


def shorten_signature(app: Sphinx, what: str, name: str, obj: object, *rest: object) -> tuple[str, None] | None:
    """A pydantic model is not made by a call with all of its fields."""
    return ("", None) if isinstance(obj, type) and issubclass(obj, BaseModel) else None


def show_inline_math(self: nodes.NodeVisitor, node: nodes.math) -> None:
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def show_math(self: nodes.NodeVisitor, node: nodes.math_block) -> None:
    self.body.append(f'<div style="overflow-x: auto">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def finish(app: Sphinx, error: Exception | None) -> None:
    """Add README's figures, and a page at the top that leads to the front page, which lies in docs/ as its source."""
    if not error and app.builder.format == "html":
        for figure in (ROOT / "docs").glob("*.svg"):
            copyfile(figure, Path(app.outdir) / "docs" / figure.name)
        way = '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=docs/index.html">'
        title = f'<title>{project}</title><a href="docs/index.html">{project}</a>'
        (Path(app.outdir) / "index.html").write_text(f"{way}{title}\n", encoding="utf-8")


def setup(app: Sphinx) -> None:
    app.add_config_value("executed", "scratch/site", "env", str)
    app.add_lexer("mermaid", TextLexer)  # what would draw it is not at hand without a network
    app.add_html_math_renderer("mathml", (show_inline_math, None), (show_math, None))
    app.connect("source-read", show_outputs)
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("autodoc-process-signature", shorten_signature)
    app.connect("build-finished", finish)

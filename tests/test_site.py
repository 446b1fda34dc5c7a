"""The documentation as a site: built without a warning, read without a network, every link of it good."""

import json
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from sources import ROOT

from rubric_influence import influence

pytestmark = pytest.mark.slow

TUTORIALS = sorted((ROOT / "notebooks/tutorials").glob("*.ipynb"))
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "srcset", "link": "href"}


class Page(HTMLParser):
    """What a page loads by itself, what it links to, and the names that links to it may end in."""

    def __init__(self, path: Path):
        super().__init__()
        self.loaded: set[str] = set()
        self.links: set[str] = set()
        self.names: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.names |= {found.get("id", ""), found.get("name", "")}
        if tag in LOADED and LOADED[tag] in found:
            self.loaded.add(found[LOADED[tag]])
        if tag == "a" and "href" in found:
            self.links.add(found["href"])


def build(source: Path, out: Path, *options: str) -> subprocess.CompletedProcess:
    """A build as `make site` does it."""
    command = [sys.executable, "-m", "sphinx", "-M", "html", source, out, "-c", ROOT / "docs"]
    command += ["-W", "-n", "--keep-going", "-q", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, with one of the tutorials as if it had been executed."""
    folder = tmp_path_factory.mktemp("site")
    notebook = json.loads(TUTORIALS[0].read_text(encoding="utf-8"))
    cell = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "an output of its run"}]
    (folder / "executed").mkdir()
    (folder / "executed" / TUTORIALS[0].name).write_text(json.dumps(notebook), encoding="utf-8")
    built = build(ROOT, folder / "out", "-D", f"executed={folder / 'executed'}")
    assert built.returncode == 0, built.stderr[-5000:]
    return folder / "out/html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def find_broken(pages: dict[Path, Page]) -> set[str]:
    """Links and loaded files of pages that lead to no file, or to no such name in a page."""
    broken = set()
    for path, page in pages.items():
        for address in page.links | page.loaded:
            parts = urlsplit(address)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if parts.scheme in ("http", "https", "mailto"):
                continue
            if not target.is_file() or (target in pages and unquote(parts.fragment) not in pages[target].names | {""}):
                broken.add(f"{path.name}: {address}")
    return broken


def test_every_page_of_the_docs_is_in_the_site(site: Path):
    sources = [*(ROOT / "docs").glob("*.md"), *TUTORIALS, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    missing = [path.name for path in sources if not (site / path.relative_to(ROOT)).with_suffix(".html").is_file()]
    assert not missing


def test_every_link_leads_somewhere(pages: dict[Path, Page]):
    assert len(pages) > 20
    assert not find_broken(pages)


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path):
    page = tmp_path / "a.html"
    page.write_text('<a id="here" href="#here"></a><a href="b.html"></a><a href="a.html#there"></a><img src="c.png">')
    assert find_broken({page: Page(page)}) == {"a.html: b.html", "a.html: a.html#there", "a.html: c.png"}


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Page]):
    """No scheme and no //host in what pages, style sheets and scripts load."""
    assert not {address for page in pages.values() for address in page.loaded if re.match(r"\w+:|//", address)}
    sheets = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert sheets and not any(re.search(r"""(?:url\(|@import)\s*['"]?(?:\w+:)?//""", text) for text in sheets)
    scripts = "\n".join(path.read_text(encoding="utf-8") for path in site.rglob("*.js"))
    assert not re.search(r"""(?:import|fetch|src\s*=)\s*\(?\s*['"](?:https?:)?//""", scripts)


def test_a_search_finds_guide_and_docstrings(site: Path):
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    found = json.loads(index[index.index("{") : index.rindex("}") + 1])
    named = [Path(name).stem for name in found["docnames"]]

    def search(word: str) -> set[str]:
        places = [found[part].get(word, []) for part in ("terms", "titleterms")]
        return {named[place] for part in places for place in (part if isinstance(part, list) else [part])}

    assert "guide" in search("queu")  # stemmed, as the page's own script does
    assert "api" in search("checkpoint")
    assert "troubleshooting" in search("refus")


def test_the_reference_has_all_that_the_influence_library_exports(site: Path):
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    names = {line.split()[0].rpartition(".")[2] for line in zlib.decompress(inventory).decode().splitlines()}
    assert set(influence.__all__) <= names


def test_docstrings_keep_their_formulas_and_code(site: Path):
    page = (site / "docs/api.html").read_text(encoding="utf-8")
    assert re.search(r"<pre>.*?score\(z\) = &lt;grad L_V, Gamma\(z\)&gt;", page, re.DOTALL)
    assert 'class="docutils literal notranslate"><span class="pre">max_tokens</span>' in page


def test_a_tutorial_has_its_outputs_or_says_that_it_has_none(site: Path):
    shown, *others = ((site / "notebooks/tutorials" / path.name).with_suffix(".html").read_text() for path in TUTORIALS)
    note = "Shown without its outputs"
    assert "an output of its run" in shown and note not in shown
    assert others and all(note in other for other in others)


def test_formulas_are_mathml(site: Path):
    page = (site / "notebooks/tutorials/one_pair.html").read_text(encoding="utf-8")
    assert '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block"' in page
    assert "<mi>&#x00393;</mi>" in page or "Γ" in page


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("[gone](gone.md)", "gone.md"),
        ("[gone](index.md#gone)", "gone"),
        ("```{eval-rst}\n.. autofunction:: json.gone\n```", "gone"),
        ("![gone](gone.png)", "gone.png"),
    ],
)
def test_a_broken_link_name_or_picture_ends_the_build(text: str, complaint: str, tmp_path: Path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text(f"# A page\n\n{text}\n", encoding="utf-8")
    built = build(tmp_path, tmp_path / "out")
    assert built.returncode != 0 and complaint in built.stderr

"""The report page, of a small project whose notebooks DVC really runs; in a real browser where there is one."""

import json
import os
import re
import select
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from clones import REPOSITORY, run_command
from dvc.repo import Repo
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from rubric_influence.core.checks import RunStopped
from rubric_influence.core.profiles import load_config
from rubric_influence.pipeline.html_report import list_left_out, render_report, tabulate_refused, write_report
from rubric_influence.pipeline.notebooks import execute
from rubric_influence.pipeline.run_state import State, describe_change, find_failure, read_stages

LARGEST = 5 * 2**20  # bytes
CELLS = {
    "corpus": ["print('a' * 500)", "{'documents': 3}"],
    "gate": ["import pandas as pd\npd.DataFrame({'a long name of a column ' + str(i): [i / 7] for i in range(30)})"],
    "evaluation": [
        "import pandas as pd\nfrom rubric_influence.evaluation.plots import plot_losses\n"
        "plot_losses(pd.DataFrame({'seed': [0, 0], 'epoch': [1, 2], 'loss': [2.0, 1.0]}));",
        "from IPython.display import Markdown\nMarkdown('# A document says <script>alert(1)</script> ' + 'w' * 200)",
    ],
}
TEXT = r"Costs $-\log\left(e^{\ell(\text{right})} / \sum_o e^{\ell(o)} + e^{a + b + c + d + e + f + g + h + i}\right)$."


def write_notebook(path: Path, title: str, sources: list[str]) -> None:
    cells = [new_markdown_cell(f"# {title}\n\n{TEXT}"), *map(new_code_cell, sources)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata=kernel), path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A project of three stages that DVC has run, each waiting for the one before; its figures are the repository's."""
    folder, before, stages = tmp_path_factory.mktemp("project"), [], {}
    for name, sources in CELLS.items():
        write_notebook(folder / f"notebooks/{name}.ipynb", f"Stage {name}", sources)
        command = f"python -m rubric_influence notebook notebooks/{name}.ipynb reports/{name}.ipynb"
        deps = [f"notebooks/{name}.ipynb", *before]
        before = [f"reports/{name}.ipynb"]
        stages[name] = {"cmd": command, "deps": deps, "outs": before}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    shutil.copytree(REPOSITORY / "metrics", folder / "metrics")
    shutil.copy(REPOSITORY / "params.yaml", folder)
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "repro"]):
        result = run_command(command, folder)
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return folder


@pytest.fixture
def project(finished, tmp_path, monkeypatch) -> Path:
    """A copy of it to change, the current folder."""
    folder = shutil.copytree(finished, tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def page(finished) -> Path:
    """The page that the command writes."""
    result = run_command([sys.executable, "-m", "rubric_influence", "report"], finished)
    assert result.returncode == 0, result.stderr
    assert "corpus done, gate done, evaluation done" in result.stdout
    return finished / "reports/report.html"


@pytest.fixture(scope="module")
def soup(page) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


def report(folder: Path) -> tuple[dict[str, State], str]:
    """State by stage, and the page's text with blanks in order."""
    stages = write_report(folder / "report.html")
    text = BeautifulSoup((folder / "report.html").read_text(encoding="utf-8"), "html.parser").get_text(" ")
    return {stage.name: stage.state for stage in stages}, " ".join(text.split())


def find_external(soup: BeautifulSoup) -> list[str]:
    """What a browser would load, or run, to show the page."""
    loaded = [tag[key] for key in ("src", "srcset", "data", "poster", "action") for tag in soup(attrs={key: True})]
    loaded += [tag["href"] for tag in soup("link")] + [tag.name for tag in soup(["script", "iframe", "base"])]
    for style in [tag.string for tag in soup("style")] + [tag["style"] for tag in soup(style=True)]:
        loaded += re.findall(r"url\([^)]*\)|@import[^;]*", style)
    return [name for name in loaded if not name.startswith("data:")]


def test_the_page_is_one_small_file_that_loads_nothing(page, soup):
    assert page.stat().st_size < LARGEST
    assert find_external(soup) == []
    policy = soup.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@pytest.mark.parametrize(
    "html",
    ['<img src="https://a.example/i.png">', "<script></script>", '<link href="a.css">', "<style>@import 'a';</style>",
     '<p style="background: url(a.png)">'],
)  # fmt: skip
def test_what_would_be_loaded_is_found(html):
    assert len(find_external(BeautifulSoup(html, "html.parser"))) == 1


def test_language_headings_images_and_links_are_in_order(soup):
    assert soup.html["lang"] == "en" and soup.title.text
    levels = [int(tag.name[1]) for tag in soup(re.compile("^h[1-6]$"))]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below <= above + 1 for above, below in zip(levels, levels[1:], strict=False))
    assert soup("img") and all(image["alt"].strip() for image in soup("img"))
    names = [tag["id"] for tag in soup(id=True)]
    assert len(names) == len(set(names))
    assert {link["href"].removeprefix("#") for link in soup("a")} <= set(names)


def test_the_headline_is_the_evaluations(soup):
    results = json.loads((REPOSITORY / "metrics/evaluation.json").read_text())
    best = max((row["mean"], arm) for arm, row in results["arms"].items() if arm != "privileged_rubric")[1]
    figures = results["arms"][best]
    low, high = (f"{100 * bound:.1f}" for bound in figures["ci95"])
    said = f"{best.replace('_', ' ')}, accuracy % {100 * figures['mean']:.1f} (95 % interval {low} to {high})"
    headline = soup.select_one(".headline").text
    assert said in headline
    gain = results["arms"]["optimised"]["gain_over_initial"]["mean"]
    assert f"{100 * gain:+.1f} points" in headline
    rows = {row.th.text: row.text for row in soup.select_one("section:has(#results)").table("tr") if row.th}
    assert set(results["arms"]) < set(rows) and low in rows[best]


def test_the_gates_figures_are_those_of_its_file(soup):
    gate = json.loads((REPOSITORY / "metrics/gate.json").read_text())
    section = soup.select_one("section:has(#gate)").text
    assert ("Passed" if gate["passed"] else "Not passed") in section
    assert f"{gate['influence']['spearman']:.2f}" in section


def test_seconds_versions_parameters_and_hashes_are_given(soup, finished):
    text = soup.select_one("section:has(#provenance)").text
    lock = yaml.safe_load((finished / "dvc.lock").read_text())["stages"]
    assert all(row["md5"] in text for stage in lock.values() for row in stage["deps"] + stage["outs"])
    assert (finished / "params.yaml").read_text().strip() in text
    assert f"Python {sys.version.split()[0]}" in text and "torch 2." in text
    timings = soup.select_one("section:has(#costs)")("table")[-1]
    assert all(re.search(r"done\d+\.\d", "".join(row.text.split())) for row in timings("tr")[1:])


def test_the_same_run_gives_the_same_bytes(project, page):
    for name in ("a.html", "b.html"):
        write_report(project / name)
    assert (project / "a.html").read_bytes() == (project / "b.html").read_bytes() == page.read_bytes()


def test_a_notebook_that_failed_is_told_first_and_its_figures_are_marked(project):
    write_notebook(project / "notebooks/gate.ipynb", "Stage gate", ["print('before')", "raise ValueError('no <gain>')"])
    with pytest.raises(RunStopped):
        execute("notebooks/gate.ipynb", "reports/gate.ipynb")
    states, text = report(project)
    assert states == {"corpus": State.DONE, "gate": State.FAILED, "evaluation": State.OUTDATED}
    summary, _, rest = text.partition("The question.")
    assert "not complete: 1 of 3 stages are done. failed gate : ValueError: no <gain>" in summary
    assert "This stage failed. ValueError: no <gain>" in rest and "Traceback" in rest
    assert "The stage evaluation has not run since something before it changed" in rest


def test_a_gate_that_stopped_the_run_is_the_verdict(project):
    metrics = project / "metrics/gate.json"
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"passed": False}))
    assert "Not passed, and overridden by gate.override" in report(project)[1]
    write_notebook(project / "notebooks/gate.ipynb", "Stage gate", ["raise RuntimeError('does not predict gain')"])
    with pytest.raises(RunStopped):
        execute("notebooks/gate.ipynb", "reports/gate.ipynb")
    assert "The gate: Not passed: the run stopped here" in report(project)[1]


def test_a_stage_that_has_not_run_has_no_figures(project):
    (project / "reports/evaluation.ipynb").unlink()
    states, text = report(project)
    assert states["evaluation"] is State.MISSING
    assert "No result: the exam has not been sat" in text and "First of the arms" not in text


def test_a_guard_that_stopped_rl_is_told_with_its_reason(project):
    metrics = project / "metrics/generators.json"
    figures = json.loads(metrics.read_text())
    ending = {"steps": 24, "planned": 40, "kept": 16, "stopped": "the guard's influence fell from 2 to <1>"}
    figures["endings"] = {seed: ending | {"stopped": ""} for seed in figures["phases"]} | {"seed-1": ending}
    metrics.write_text(json.dumps(figures))
    corpus, *rest = read_stages()
    stages = [corpus, *rest, replace(corpus, name="generators")]
    page = BeautifulSoup(render_report(load_config("params.yaml"), "seeds: [0]", stages), "html.parser")
    text = " ".join(page.get_text(" ").split())
    assert "A guard stopped RL early: seed-1. Why" in text
    section = " ".join(page.select_one("section:has(#gate)").get_text(" ").split())
    assert "RL of seed-1 was stopped early: the guard's influence fell from 2 to <1>." in section
    assert section.count("24 of 40 after step 16") == len(figures["phases"])


def test_what_a_change_leaves_behind_is_out_of_date_with_the_reason(project):
    write_notebook(project / "notebooks/gate.ipynb", "Stage gate", ["2"])
    states, text = report(project)
    assert states == {"corpus": State.DONE, "gate": State.OUTDATED, "evaluation": State.OUTDATED}
    assert text.count("Changed since then: gate: notebooks/gate.ipynb (modified).") == 2


def test_a_notebook_of_another_execution_has_no_seconds(project):
    path = project / "reports/corpus.ipynb"
    path.write_text(path.read_text() + "\n")
    assert "corpus out of date not kept reports/corpus.ipynb" in report(project)[1]


def test_where_nothing_has_run_there_is_no_page(project):
    shutil.rmtree(project / "reports")
    with pytest.raises(ValueError, match="no stage has run: .* run the pipeline: make repro"):
        write_report(project / "report.html")
    assert not (project / "report.html").exists()


def test_outside_dvc_one_message_says_so(project):
    shutil.rmtree(project / ".dvc")
    with pytest.raises(ValueError, match="DVC cannot say what has run: you are not inside of a DVC repository"):
        write_report(project / "report.html")


def test_a_killed_notebook_has_failed():
    cells = [new_code_cell("1", execution_count=1), new_code_cell("2"), new_code_cell(""), new_markdown_cell("3")]
    assert find_failure(new_notebook(cells=cells)).startswith("it ended before 1 of its 2 code cells had run")
    assert find_failure(new_notebook(cells=cells[:1])) == ""


def test_a_change_is_told_by_its_parameter():
    found = [{"changed deps": {"params.yaml": {"gate.sets": "modified"}, "data": "deleted"}}, "changed command"]
    assert describe_change("gate", found) == "gate: params.yaml (gate.sets modified), data (deleted), changed command"


def test_what_was_left_out_and_refused_is_counted_over_seeds():
    corpus = {"duplicates_dropped": 2, "repeated_questions_dropped": 0, "left_out": {"no text": 3}}
    assert list_left_out(corpus) == ["2 documents and chunks that repeat others", "3 documents: no text"]
    part = {"requested": 5, "valid": 3, "invalid": 1, "failed": 1, "problems": {"no JSON object": 1}}
    table = tabulate_refused({"sets": {"seed-0": {"rubrics": part, "pairs": part | {"requested": 0}}} | {
        "seed-1": {"rubrics": part, "pairs": part | {"requested": 0}}}}, {})  # fmt: skip
    assert table.to_dict("records") == [
        {"of": "rubrics", "requested": 10, "valid": 6, "invalid": 2, "failed": 2, "reasons": "2 × no JSON object"}
    ]


def test_the_stage_depends_on_every_notebook_and_on_the_code_that_it_runs():
    with Repo(REPOSITORY) as repo:
        stages = {stage.name: stage for stage in repo.index.stages if stage.cmd}
    deps = {Path(dep.def_path) for dep in stages["html"].deps}
    executed = {Path(out.def_path) for stage in stages.values() for out in stage.outs if out.def_path.endswith("ipynb")}
    assert executed <= deps
    code = "import sys, rubric_influence.pipeline.html_report; print(*(m.__file__ for m in sys.modules.values() if "
    code += "m.__name__.startswith('rubric_influence')), sep='\\n')"
    loaded = [
        Path(name).relative_to(REPOSITORY)
        for name in run_command([sys.executable, "-c", code], REPOSITORY).stdout.split()
    ]
    assert Path("rubric_influence/core/config.py") in loaded
    missing = [path for path in loaded if path.name != "__init__.py" and not deps & {path, *path.parents}]
    assert missing == []


def test_the_template_is_part_of_the_package():
    data = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "pipeline/report.html.j2" in data["rubric_influence"]


# Contrast, by WCAG 2.2: relative luminance of sRGB, and (lighter + 0.05) / (darker + 0.05).


def luminance(color: str) -> float:
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


def test_text_can_be_read_on_every_ground_in_both_schemes(soup):
    schemes = re.findall(r":root \{(.*?)\}", soup.style.string, re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colors = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", scheme))
        assert colors.keys() == {"page", "panel", "line", "text", "muted", "link", "good", "bad", "warn"}
        for text in colors.keys() - {"page", "panel", "line"}:
            assert min(contrast(colors[text], colors[ground]) for ground in ("page", "panel")) >= 4.5, text
    used = re.sub(r":root \{.*?\}", "", soup.style.string, flags=re.DOTALL)
    assert set(re.findall(r"#[0-9a-f]{3,8}\b", used)) == {"#ffffff"}  # the ground of figures, which hold black on white


class Browser:
    """A headless Chromium, spoken to by its DevTools protocol over two pipes."""

    def __init__(self, program: str, profile: Path):
        self.reading, writing = os.pipe()
        reading, self.writing = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        shell = f'exec "$@" 3<&{reading} 4>&{writing}'
        self.process = subprocess.Popen(
            ["bash", "-c", shell, "bash", program, *flags, "about:blank"],
            pass_fds=(reading, writing), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(reading)
        os.close(writing)
        self.number, self.rest, self.session, self.events = 0, b"", {}, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.session = {"sessionId": session}
        for domain in ("Page", "Log", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def receive(self) -> dict:
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.reading], [], [], 120)
            chunk = os.read(self.reading, 1 << 16) if ready else b""
            assert chunk, "the browser has ended, or says nothing"
            self.rest += chunk
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def call(self, method: str, **params: object) -> dict:
        self.number += 1
        os.write(
            self.writing, json.dumps({"id": self.number, "method": method, "params": params} | self.session).encode()
        )
        os.write(self.writing, b"\0")
        while (answer := self.receive()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path: Path, width: int, scheme: str, media: str = "") -> None:
        self.events = []
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
        )
        self.call(
            "Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": scheme}]
        )
        self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.receive())

    def evaluate(self, code: str) -> object:
        return self.call("Runtime.evaluate", expression=code, returnByValue=True)["result"].get("value")

    def find_overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        return self.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")

    def list_complaints(self) -> list[dict]:
        return [e for e in self.events if e["method"] in ("Log.entryAdded", "Runtime.consoleAPICalled",
                                                          "Runtime.exceptionThrown")]  # fmt: skip

    def list_requests(self) -> list[str]:
        sent = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith("data:")]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        os.close(self.reading)
        os.close(self.writing)


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on the PATH, so the page is not looked at in a browser")
    opened = Browser(program, tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()


PALE = """
[...document.querySelectorAll("body *")].flatMap(tag => {
  if (![...tag.childNodes].some(node => node.nodeType == 3 && node.data.trim())) return [];
  let ground = tag;
  while (ground && getComputedStyle(ground).backgroundColor == "rgba(0, 0, 0, 0)") ground = ground.parentElement;
  const hex = color => "#" + color.match(/\\d+/g).slice(0, 3).map(n => (+n).toString(16).padStart(2, "0")).join("");
  return [[hex(getComputedStyle(tag).color), hex(getComputedStyle(ground || document.body).backgroundColor)].join(" ")];
})
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_the_page_without_complaint_or_overflow(browser, page, width, scheme):
    browser.open(page, width, scheme)
    assert browser.list_complaints() == [] and browser.list_requests() == [page.as_uri()]
    assert browser.find_overflow() == 0
    assert browser.evaluate("[...document.images].every(image => image.naturalWidth > 0)") is True
    pairs = set(browser.evaluate(PALE))
    assert len(pairs) > 3 and all(contrast(*pair.split()) >= 4.5 for pair in pairs), pairs
    assert browser.evaluate("document.querySelector('.scroll table').clientWidth > 0") is True


def test_paper_is_white_and_holds_the_page_without_its_contents(browser, page):
    browser.open(page, 680, "dark", "print")
    assert {pair.split()[1] for pair in browser.evaluate(PALE)} == {"#ffffff", "#f4f6f8"}
    assert browser.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert browser.evaluate("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"


def test_a_page_that_overflows_loads_and_complains_is_found(browser, tmp_path):
    (tmp_path / "a.html").write_text(
        '<div style="width: 700px; color: #999">text</div><img src="none.png"><script>console.error("no")</script>'
    )
    browser.open(tmp_path / "a.html", 600, "light")
    assert browser.find_overflow() > 0
    assert len(browser.list_requests()) == 2 and browser.list_complaints()
    assert min(contrast(*pair.split()) for pair in browser.evaluate(PALE)) < 4.5

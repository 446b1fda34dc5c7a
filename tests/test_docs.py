"""Docs follow the code: every command, option, parameter, file and name that they give is there."""

import ast
import pkgutil
import re
import shlex
import tomllib
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

import click
import pytest
from pydantic import BaseModel

from rubric_influence.cli.main import commands
from rubric_influence.core.config import Config

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
PROFILES = sorted([ROOT / "params.yaml", *(ROOT / "conf").rglob("*.yaml")])
CODE = sorted([*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "rubric_influence").rglob("*.py")])
COMMAND = re.compile(r"(?:rubric-influence|-m rubric_influence)(?![\w.-])")
STANDS_FOR = {"N": "1", "STAGE": "warmup", "COMMAND": "plan"}  # placeholders where click wants more than some text
PATH = re.compile(
    r"(?<![\w/.-])(?:rubric_influence|notebooks|conf|docs|tests|benchmarks)/[\w./-]*?\w+\.(?:py|ipynb|yaml|md|json)\b"
)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def list_leaves(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every subcommand with the words that call it."""
    for word, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from list_leaves(command, (*words, word))
        else:
            yield (*words, word), command


LEAVES = dict(list_leaves(commands))


def list_code(text: str) -> Iterator[str]:
    """Lines of code blocks, with those that they go on in, and inline code, which may be wrapped."""
    prose, fenced = [], False
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()
        else:
            prose.append(line)
    yield from (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", "\n".join(prose)))


def list_calls(text: str) -> Iterator[str]:
    """What stands after the command's name in every call of it, to the end of the call."""
    for line in list_code(text):
        for found in COMMAND.finditer(line):
            yield re.split(r"\s(?:&&|\||;|>|#)(?:\s|$)", line[found.end() :] + " ")[0].strip()


def list_docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(read(path))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""


def list_examples(command: click.Command) -> list[str]:
    """The Example lines of a command's help, each with the deeper lines that it goes on in."""
    examples, going_on = [], False
    for line in cleandoc(command.help or "").splitlines():
        if line.startswith("Example: "):
            examples.append(line.removeprefix("Example: "))
        elif going_on and line.startswith("  "):
            examples[-1] += " " + line.strip()
        going_on = line.startswith("Example: ") or (going_on and line.startswith("  "))
    return examples


def resolve(call: str) -> click.Command:
    """The subcommand that a call runs; click refuses what it would refuse on the command line.

    A call without options names the command alone, and `...` stands for any that it does not give.
    """
    words = [STANDS_FOR.get(word, word) for word in shlex.split(call)]
    elided, words = "..." in words, [word for word in words if word != "..."]
    command, context = commands, click.Context(commands)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        _, command, words = command.resolve_command(context, words)
    if isinstance(command, click.Group) and not words:
        return command
    try:
        command.make_context(command.name, list(words))
    except click.MissingParameter:
        if words and not elided:
            raise
    except click.exceptions.Exit:  # --help
        pass
    return command


def list_sources() -> Iterator[tuple[str, str]]:
    """(name, text) of all that says how to call the command."""
    yield from ((name(path), read(path)) for path in [*PAGES, ROOT / "CHANGELOG.md"])
    for path in PROFILES:  # commands are comments there
        comments = [line for line in read(path).splitlines() if line.startswith("#")]
        yield name(path), "\n".join(line.replace("#", "   ", 1) for line in comments)
    yield from ((name(path), text) for path in CODE for text in list_docstrings(path))
    for path in (ROOT / "dvc.yaml", ROOT / "Makefile"):
        yield name(path), "\n".join(f"    {line}" for line in read(path).splitlines() if COMMAND.search(line))


def test_every_call_of_the_command_is_one_that_it_accepts():
    calls = [(source, call) for source, text in list_sources() for call in list_calls(text)]
    assert len({source for source, _ in calls}) > 10
    for source, call in calls:
        try:
            resolve(call)
        except click.ClickException as error:
            pytest.fail(f"{source}: rubric-influence {call}: {error.format_message()}")


@pytest.mark.parametrize(
    "text",
    [
        "    rubric-influence plane params.yaml",
        "    rubric-influence lab train --field FILE",
        "    rubric-influence score --checkpoints DIR ...",
        "    rubric-influence score --model MODEL",
        "    accelerate launch -m rubric_influence launch corpus",
        "    rubric-influence notebook a.ipynb \\\n        b.ipynb c.ipynb",
        "Wrapped: `accelerate launch -m\nrubric_influence lunch warmup`.",
        "```\nrubric-influence costs --documents many\n```",
    ],
)
def test_a_call_that_the_command_refuses_is_found(text):
    (call,) = list_calls(text)
    with pytest.raises(click.ClickException):
        resolve(call)


@pytest.mark.parametrize(
    "call", ["", "lab", "--help", "plan", "score --by topic ...", "costs --documents N --gpus 8", "launch STAGE"]
)
def test_a_name_an_elision_or_a_placeholder_is_no_wrong_call(call):
    resolve(call)


def test_a_call_ends_where_the_shell_or_a_comment_goes_on():
    assert list(list_calls("    rubric-influence plan a.yaml && make repro")) == ["plan a.yaml"]
    assert list(list_calls("    rubric-influence results     # who won")) == ["results"]


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_every_subcommands_help_has_examples_that_call_it(words):
    examples = list_examples(LEAVES[words])
    assert examples, f"the help of {' '.join(words)} has no line that begins with Example:"
    for example in examples:
        (call,) = list_calls(f"    {example}")
        assert resolve(call) is LEAVES[words], example


def test_an_example_is_its_line_and_the_deeper_lines_that_follow():
    help_text = "Do it.\n\n\b\nExample: rubric-influence plan a\n           b\nExample: c\n\n  Not this."
    assert list_examples(click.Command("x", help=help_text)) == ["rubric-influence plan a b", "c"]
    assert list_examples(click.Command("x", help="Do it. For example so.")) == []


def find_missing_files(text: str, folder: Path = ROOT) -> set[str]:
    """Files of the repository that a page names, and those that it links to, that are not there."""
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link}
    missing = {link for link in links - {""} if not (folder / link).exists()}
    return missing | {path for path in PATH.findall(text) if not (ROOT / path).is_file()}


def find_missing_names(text: str) -> set[str]:
    """Dotted names of the package, and names imported from it, that are neither module nor attribute."""
    names = set(re.findall(r"(?<![\w/.-])rubric_influence(?:\.\w+)+", text))
    for module, imported in re.findall(r"from (rubric_influence[\w.]*) import (\([^)]*\)|[^\n#]*)", text):
        names |= {
            f"{module}.{one.split(' as ')[0].strip()}" for one in imported.strip("()\n ").split(",") if one.strip()
        }
    return {dotted for dotted in names if not resolves(dotted)}


def resolves(dotted: str) -> bool:
    try:
        pkgutil.resolve_name(dotted)
    except (AttributeError, ImportError):
        return False
    return True


def find_missing_parameters(text: str) -> set[str]:
    """Parameters in inline code, such as rl.reward, that no profile can set."""
    sections = "|".join(Config.model_fields)
    code = " ".join(re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))
    found = set(re.findall(rf"(?<![\w./-])(?:{sections})(?:\.[a-z_]+)+(?![\w/(-])", code))
    return {dotted for dotted in found if not is_parameter(dotted.split("."), Config)}


def is_parameter(path: list[str], *sections: type) -> bool:
    """Whether one of the sections has a field of the path's first name, and what it may hold the rest."""
    if not path:
        return True
    inner = [section.model_fields[path[0]].annotation for section in sections if path[0] in section.model_fields]
    return any(len(path) == 1 or is_parameter(path[1:], *list_sections(kind)) for kind in inner)


def list_sections(kind: object) -> list[type[BaseModel]]:
    """The sections that a type is or is a union of."""
    kinds = [kind, *getattr(kind, "__args__", ())]
    return [one for one in kinds if isinstance(one, type) and issubclass(one, BaseModel)]


def find_missing_targets(text: str) -> set[str]:
    """Targets of make in code that the Makefile has not."""
    targets = set(re.findall(r"^([\w-]+):", read(ROOT / "Makefile"), re.MULTILINE))
    return {found for line in list_code(text) for found in re.findall(r"^make ([a-z-]+)", line)} - targets


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name)
def test_a_page_links_to_files_that_are_there(page):
    links = " ".join(re.findall(r"\]\([^)]*\)", read(page)))
    assert not find_missing_files(links, page.parent)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_names_files_names_parameters_and_targets_that_are_there(page):
    text = read(page)
    assert not find_missing_files(text, page.parent)
    assert not find_missing_names(text)
    assert not find_missing_parameters(text)
    assert not find_missing_targets(text)


@pytest.mark.parametrize(
    "find, right, wrong",
    [
        (find_missing_files, "`rubric_influence/rl/rewards.py`", "`rubric_influence/rewards.py`"),
        (find_missing_files, "notebooks/01_corpus.ipynb.", "notebooks/11_corpus.ipynb."),
        (find_missing_files, "(`conf/accelerate/node-8gpu.yaml`)", "(`conf/accelerate/node-9gpu.yaml`)"),
        (find_missing_files, "tests/core/test_records.py", "tests/test_records.py"),
        (find_missing_files, "[scale](docs/scale.md#memory)", "[scale](scale.md#memory)"),
        (find_missing_names, "rubric_influence.influence.scorers.open_scorer", "rubric_influence.influence.corpus"),
        (find_missing_names, "rubric_influence.core.records.", "rubric_influence.core.records.Pair"),
        (
            find_missing_names,
            "from rubric_influence.core.records import QAPair, Rubric  # two",
            "from rubric_influence.core.records import (\n    QAPair,\n    Pair,\n)",
        ),
        (find_missing_parameters, "`rl.reward: influence`", "`rl.rewards: influence`"),
        (find_missing_parameters, "`models.teacher.endpoint.attempts`", "`models.teacher.attempts`"),
        (find_missing_parameters, "`corpus.max_documents`", "`corpus.most_documents`"),
        (find_missing_targets, "    make repro    # all", "    make run    # all"),
        (find_missing_targets, "`make setup-vllm`", "`make setup-vlm`"),
    ],
)
def test_what_is_not_there_is_found(find, right, wrong):
    assert not find(right)
    assert find(wrong)


def read_floors(text: str) -> tuple[dict[str, set[str]], list[str]]:
    """CONTRIBUTING's tree of the package: floor -> packages, and the modules of a package that are not there."""
    block = re.search(r"^    rubric_influence/\n((?:    .*\n)+)", text, re.MULTILINE).group(1)
    floors: dict[str, set[str]] = {}
    missing, floor, package = [], "", ""
    for line in block.splitlines():
        if found := re.match(r"    (\d| ) (\w+)/ ", line):
            floor, package = found[1].strip() or floor, found[2]
            floors.setdefault(floor, set()).add(package)
        modules = re.findall(r"\w+(?:\.py|/)", line[6:].removeprefix(f"{package}/"))
        missing += [module for module in modules if not (ROOT / "rubric_influence" / package / module).exists()]
    return floors, missing


def test_contributings_floors_are_import_linters_and_name_modules_that_are_there():
    floors, missing = read_floors(read(ROOT / "CONTRIBUTING.md"))
    contracts = tomllib.loads(read(ROOT / "pyproject.toml"))["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    assert not missing
    assert floors == {str(len(layers) - place): set(layer.split(" | ")) for place, layer in enumerate(layers)}


def test_a_module_that_the_tree_names_and_the_package_lacks_is_found():
    tree = (
        "    rubric_influence/\n    2 rl/   rewards.py: x; stages/: y\n    1 core/ records.py,\n            record.py\n"
    )
    assert read_floors(tree) == ({"2": {"rl"}, "1": {"core"}}, ["stages/", "record.py"])


def list_texts(path: Path) -> Iterator[str]:
    """The strings of a module, whatever is filled into them being …."""
    for node in ast.walk(ast.parse(read(path))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)


def list_messages(text: str) -> list[str]:
    """The messages that a page quotes; … stands for what differs from case to case."""
    quotes = re.findall(r"^> .*(?:\n> .*)*", text, re.MULTILINE)
    return [" ".join(line.removeprefix("> ") for line in quote.splitlines()) for quote in quotes]


def is_said(message: str, texts: list[str]) -> bool:
    words = re.compile(".*".join(re.escape(part) for part in message.split("…")), re.DOTALL)
    return any(words.search(text) for text in texts)


TEXTS = [text for path in (ROOT / "rubric_influence").rglob("*.py") for text in list_texts(path)]
TEXTS.append(re.sub(r'" \\\n\s*"', " ", read(ROOT / "Makefile")))


@pytest.mark.parametrize("message", list_messages(read(ROOT / "docs/troubleshooting.md")))
def test_a_message_that_is_explained_is_one_of_the_codes(message):
    assert len(re.sub("[^a-z]", "", message)) > 15, "too little of it is fixed to be found"
    assert is_said(message, TEXTS)


def test_the_likeliest_messages_are_explained():
    assert len(list_messages(read(ROOT / "docs/troubleshooting.md"))) >= 12


def test_a_message_that_the_code_no_longer_gives_is_found():
    assert list_messages("> no model\n> at …\n\nText\n\n> b") == ["no model at …", "b"]
    assert is_said("no model folder at …; check the path", TEXTS)
    assert not is_said("no model folder at …; look the path up", TEXTS)
    assert not is_said("no model … mend the file", ["no model folder", "mend the file"])

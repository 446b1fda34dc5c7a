"""The command as a whole: what its help lists and costs, and how it ends."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from rubric_influence.cli import pipeline
from rubric_influence.cli.main import commands, main
from rubric_influence.core.checks import RunStopped
from rubric_influence.pipeline.costs import Setting

REPOSITORY = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "pandas", "numpy", "pydantic", "datasets"}


def run_python(*arguments: str, **options: object) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, **options)


@pytest.fixture
def raise_in_command(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """A function that makes the command `costs` raise an error."""

    def arrange(error: BaseException) -> None:
        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(pipeline, "print_costs", fail)

    return arrange


def test_help_lists_every_command_in_less_than_a_second_of_processor_time():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = run_python("-m", "rubric_influence", "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0, result.stderr
    listed = {line.split()[0] for line in result.stdout.partition("Commands:\n")[2].splitlines() if line.strip()}
    assert listed == set(commands.commands) and {"plan", "notebook", "synthesise", "score", "lab"} <= listed
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


@pytest.mark.parametrize("arguments", [["--help"], ["costs"], ["score", "--help"], ["lab", "pretrain", "--help"]])
def test_help_and_costs_import_no_library_that_loads_slowly(arguments: list[str]):
    code = (
        f"import json, sys\nfrom rubric_influence.cli.main import main\nstatus = main({arguments!r})\n"
        "print(json.dumps([status, sorted({name.partition('.')[0] for name in sys.modules})]))"
    )
    status, modules = json.loads(run_python("-c", code).stdout.splitlines()[-1])
    assert status == 0 and "click" in modules
    assert not HEAVY & set(modules)


def test_every_option_has_a_help_text_or_shows_its_choices_or_default():
    def list_leaves(group: click.Group) -> list[click.Command]:
        parts = [list_leaves(c) if isinstance(c, click.Group) else [c] for c in group.commands.values()]
        return [command for part in parts for command in part]

    for command in list_leaves(commands):
        for option in (parameter for parameter in command.params if isinstance(parameter, click.Option)):
            told = option.help or isinstance(option.type, click.Choice) or option.default is not None
            assert told, f"{command.name} {option.opts[0]}"
    for option in pipeline.costs.params:
        assert option.help, option.name


def test_costs_takes_every_assumption_and_refuses_what_cannot_be_counted(capsys: pytest.CaptureFixture):
    assert main(["costs", "--documents", "1000", "--documents", "2000", "--gpus", "3", "--rollouts", "7"]) == 0
    assert "| hours | 1,000 on 3 | 2,000 on 3 |" in capsys.readouterr().out
    names = {option.name for option in pipeline.costs.params} - {"documents", "gpus"}
    assert names == set(Setting.__dataclass_fields__)
    assert main(["costs", "--gpus", "0"]) == 2


def test_a_command_that_is_done_gives_0(capsys: pytest.CaptureFixture):
    for arguments in (["costs"], ["--version"], ["--help"], ["plan", "--help"]):
        assert main(arguments) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("rl.steps is 0, expected 1 or more"), "rl.steps is 0, expected 1 or more"),
        (RunStopped("the gate is not passed; set gate.override"), "the gate is not passed; set gate.override"),
        (FileNotFoundError(2, "No such file", "data/x.jsonl"), "[Errno 2] No such file: 'data/x.jsonl'"),
        (OSError(28, "no room to write to scratch/a.jsonl"), "no room to write to scratch/a.jsonl"),
    ],
)
def test_what_the_user_can_mend_is_one_line_on_standard_error_and_1(raise_in_command, capsys, error, line):
    raise_in_command(error)
    assert main(["costs"]) == 1
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", f"{line}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plans"], "No such command 'plans'"),
        (["plan", "--fast"], "No such option"),
        (["synthesise"], "Missing option '--documents'"),
        (["launch", "corpus"], "'corpus' is not one of 'warmup', 'generators', 'finetuning'"),
        (["trace", "0f3a", "--scores", "scores"], "--documents and --scores belong to --corpus"),
        (["release", "--license", "cc-by-4.0", "--out", "x"], "give one of --arm and --shards"),
    ],
)
def test_a_wrong_call_gives_2_and_says_what_is_wrong(capsys, arguments, message):
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown


def test_an_interrupt_gives_130_and_says_how_to_go_on(raise_in_command, capsys):
    raise_in_command(KeyboardInterrupt())
    assert main(["costs"]) == 130
    assert "run the same command to go on" in capsys.readouterr().err


def test_a_bug_shows_its_trace():
    code = (
        "import sys\nfrom rubric_influence.cli import pipeline\nfrom rubric_influence.cli.main import main\n"
        "def broken(*_): return {}['pairs']\n"
        "pipeline.print_costs = broken\nsys.exit(main(['costs']))"
    )
    result = run_python("-c", code)
    assert result.returncode == 1 and result.stdout == ""
    assert "Traceback" in result.stderr and result.stderr.endswith("KeyError: 'pairs'\n")


def test_a_bug_is_raised_to_who_calls_from_python(raise_in_command):
    raise_in_command(KeyError("pairs"))
    with pytest.raises(KeyError):
        main(["costs"])


def test_the_module_is_the_command():
    module = run_python("-m", "rubric_influence", "costs", "--gpus", "2")
    script = subprocess.run(
        [Path(sys.executable).with_name("rubric-influence"), "costs", "--gpus", "2"], capture_output=True, text=True
    )
    assert module.returncode == script.returncode == 0
    assert module.stdout == script.stdout
    missing = run_python("-m", "rubric_influence", "plan", "conf/none.yaml")
    assert (missing.returncode, missing.stdout) == (1, "")
    *_, told = missing.stderr.splitlines()  # after what imported libraries may say on some machines
    assert told == "no profile at conf/none.yaml; give a YAML file such as params.yaml or one of conf/"


def test_a_reader_that_goes_away_gets_no_trace():
    reading, writing = os.pipe()
    os.close(reading)
    try:
        result = subprocess.run(
            [sys.executable, "-m", "rubric_influence", "costs"],
            cwd=REPOSITORY,
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(writing)
    assert result.stderr == ""

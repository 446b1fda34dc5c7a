"""`rubric-influence COMMAND`: all commands, and how they end.

Exit status 0: done. 1: stopped by what the user can mend, told on standard error in the error's own words. 2: a wrong
call. 130: interrupted. Any other error is a fault of the program: it shows its trace, and the status is 1.
"""

from collections.abc import Sequence

import click

from rubric_influence.cli import influence, lab, models, pipeline, synthesis
from rubric_influence.core.checks import RunStopped


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="rubric-influence")
def commands() -> None:
    """Synthetic fine-tuning data that measurably helps a target language model.

    \b
    From a profile to results:     dvc repro, after rubric-influence plan params.yaml
    A corpus of any size:          rubric-influence synthesise, score, release
    Models without a hub:          rubric-influence model fetch
    Training over several GPUs:    accelerate launch -m rubric_influence launch STAGE
    """


for command in (*pipeline.COMMANDS, *synthesis.COMMANDS, *influence.COMMANDS, *models.COMMANDS, *lab.COMMANDS):
    commands.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    try:
        return commands.main(arguments, prog_name="rubric-influence", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        click.echo("stopped; what was finished is kept: run the same command to go on", err=True)
        return 130
    except (RunStopped, ValueError, OSError) as error:
        click.echo((isinstance(error, OSError) and not error.filename and error.strerror) or error, err=True)
        return 1

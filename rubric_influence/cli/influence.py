"""The command that scores samples by influence."""

from functools import partial
from pathlib import Path
from typing import Any

import click

COUNT = click.IntRange(min=1)


@click.command()
@click.option("--model", required=True, help="A local folder or a hub name.")
@click.option(
    "--checkpoint",
    "checkpoints",
    type=Path,
    multiple=True,
    required=True,
    metavar="DIR",
    help="A folder with a LoRA adapter and moments.safetensors or a Trainer's optimizer.pt. Give as many as you have.",
)
@click.option("--validation", type=Path, required=True, metavar="JSONL", help="id, question, answer, perhaps topic.")
@click.option("--samples", type=Path, required=True, metavar="PATH", help="JSON Lines, or a folder of Parquet shards.")
@click.option("--out", type=Path, required=True, metavar="PARQUET", help="Of shards: a folder.")
@click.option("--estimator", type=click.Choice(["adam", "linear", "gradient", "forward"]), default="adam")
@click.option("--momentum", is_flag=True, help="Keep the first moment in Gamma.")
@click.option("--dot", is_flag=True, help="Dot products in place of cosines.")
@click.option("--by", type=click.Choice(["topic", "cluster"]), help="A column for each as well.")
@click.option("--clusters", type=COUNT, default=6, metavar="N")
@click.option("--batch-tokens", type=COUNT, default=8192, metavar="N", help="Of a batch, with padding.")
@click.option("--template", default="{question}", help="What the model is asked.")
@click.option("--max-tokens", type=COUNT, metavar="N", help="Samples are cut there; default: nowhere.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32")
@click.option(
    "--engine",
    type=click.Choice(["transformers", "vllm"]),
    default="transformers",
    help="What runs the samples; vllm with --estimator forward --dot, in float32.",
)
def score(out: Path, **request: Any) -> None:
    """Score every sample of a corpus by its influence on a model, over any number of processes; resumes.

    \b
    Example: rubric-influence score --model MODEL --checkpoint out/checkpoint-12 --validation validation.jsonl
               --samples samples.jsonl --out scores.parquet
    Example: accelerate launch --num_processes 8 -m rubric_influence score ...

    Without a GPU, accelerate starts one process only unless it is given --multi_gpu; torchrun starts as many as it is
    told.
    """
    from rubric_influence.influence.score_corpus import ScoringRequest, score_files
    from rubric_influence.models.processes import open_state

    wanted = ScoringRequest(**request)
    open_losses: partial | None = None
    if wanted.engine == "vllm":
        from rubric_influence.core.model_sections import ModelSpec
        from rubric_influence.engines.vllm_losses import VLLMLosses, read_shape

        spec = ModelSpec(path=wanted.model, dtype=wanted.dtype)
        open_losses = partial(VLLMLosses, spec, read_shape(wanted.model, wanted.checkpoints))
    state = open_state()
    score_files(wanted, out, state, open_losses)
    state.destroy_process_group()


COMMANDS = [score]

"""Commands for synthetic sets: a corpus of any size, where a pair is from, and a set as a dataset."""

import json
from collections import Counter
from pathlib import Path

import click

PROFILE = click.option("--params", "profile", type=Path, default="params.yaml", help="The profile.")
FORMS = ("pairs", "messages", "prompt-completion", "alpaca", "sharegpt")  # of rubric_influence.synthesis.forms
SEED = click.option("--seed", type=int, help="Default: the first seed of the profile.")


@click.command()
@PROFILE
@click.option("--documents", type=Path, required=True, help="A file or folder; docs/data.md has the formats.")
@click.option("--out", type=Path, required=True, help="The folder of shards.")
@SEED
def synthesise(profile: Path, documents: Path, out: Path, seed: int | None) -> None:
    """Write rubrics and pairs for a corpus of any size, in Parquet shards; resumes where it stopped.

    \b
    Example: rubric-influence synthesise --documents documents.jsonl --out data/synthetic
    """
    from rubric_influence.core.profiles import load_config
    from rubric_influence.synthesis.streaming import describe_counts, synthesise_file

    config = load_config(profile)
    found = synthesise_file(documents, config, out, config.seeds[0] if seed is None else seed)
    click.echo(f"{describe_counts(found)}, in {out}")


@click.command()
@click.argument("pair")
@click.option("--corpus", type=Path, help="The folder of a streamed corpus, in place of data/final.")
@click.option("--documents", type=Path, help="The documents of that corpus.")
@click.option("--scores", type=Path, help="A folder with the scores of its pairs.")
@PROFILE
def trace(pair: str, corpus: Path | None, documents: Path | None, scores: Path | None, profile: Path) -> None:
    """Print what made a pair: its document, rubric, models, seed and scores, as JSON.

    Example: rubric-influence trace 0f3a5c2b7d9e1846
    """
    from rubric_influence.core.profiles import load_config
    from rubric_influence.data.documents import AS_NAMED
    from rubric_influence.synthesis.streaming import find_columns
    from rubric_influence.synthesis.trace import find_in_shards, find_pair

    if (documents or scores) and not corpus:
        raise click.UsageError("--documents and --scores belong to --corpus")
    columns = find_columns(load_config(profile)) if documents else AS_NAMED
    traces = find_in_shards(pair, corpus, documents, scores, columns) if corpus else find_pair(pair)
    click.echo(json.dumps(traces, indent=2, ensure_ascii=False))


@click.command()
@PROFILE
@click.option("--arm", help="An arm of data/final, with --seed.")
@click.option("--shards", type=Path, help="A streamed corpus: the --out of synthesise.")
@SEED
@click.option("--documents", type=Path, help="The documents of shards, for the column `document` and checks by it.")
@click.option("--exam", type=Path, default="data/corpus/exam.jsonl", help="The exam that shards are checked against.")
@click.option("--no-exam", is_flag=True, help="There is none: leave the check out.")
@click.option("--form", type=click.Choice(FORMS), default="pairs", help="The columns of question and answer.")
@click.option(
    "--test", type=click.FloatRange(0, 1, max_open=True), default=0.0, help="Part of the documents for a test split."
)
@click.option("--license", "licence", required=True, help="An identifier of the hub's list, such as cc-by-4.0.")
@click.option("--out", type=Path, required=True, help="The folder of the dataset.")
@click.option("--push", metavar="NAME/REPO", help="Upload it to the Hugging Face hub, with the token in HF_TOKEN.")
@click.option("--public", is_flag=True, help="With --push: readable by everyone; by default it is private.")
def release(
    profile: Path,
    arm: str | None,
    shards: Path | None,
    seed: int | None,
    documents: Path | None,
    exam: Path,
    no_exam: bool,
    form: str,
    test: float,
    licence: str,
    out: Path,
    push: str | None,
    public: bool,
) -> None:
    """Write a set of pairs as a dataset that `datasets.load_dataset` loads, with its card.

    \b
    Example: rubric-influence release --arm optimised --seed 0 --license cc-by-4.0 --out release
    Example: rubric-influence release --shards data/synthetic --documents documents.jsonl --form messages --test 0.1
               --license cc-by-4.0 --out release --push NAME/REPO
    """
    from rubric_influence.core.files import read_records
    from rubric_influence.core.profiles import load_config
    from rubric_influence.core.records import ExamItem
    from rubric_influence.synthesis.release import Layout, list_arm, list_shards, push_release, write_release

    if (arm is None) == (shards is None):
        raise click.UsageError("give one of --arm and --shards")
    if arm and documents:
        raise click.UsageError("--documents belongs to --shards")
    config, counts = load_config(profile), Counter[str]()
    if arm is not None:
        batches = list_arm(arm, config.seeds[0] if seed is None else seed, counts)
    elif shards:
        if not no_exam and not exam.is_file():
            raise ValueError(f"no exam at {exam}; give --exam data/corpus/exam.jsonl of a pipeline's run, or --no-exam")
        items = [] if no_exam else read_records(exam, ExamItem)
        batches = list_shards(shards, config, items, counts, documents)
    write_release(out, batches, counts, licence, config, Layout(form, test))
    click.echo(f"{out}: {', '.join(f'{count} {name}' for name, count in sorted(counts.items()))}")
    if push:
        click.echo(push_release(out, push, private=not public))


COMMANDS = [synthesise, trace, release]

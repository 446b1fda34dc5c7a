"""Samples with ids, as a corpus to be scored holds them: read from JSON Lines or Parquet shards, and encoded."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet
from transformers import PreTrainedTokenizerBase

from rubric_influence.core.checks import check_object, check_text
from rubric_influence.core.files import read_json_lines
from rubric_influence.models.examples import Example, encode

REQUIRED = ("id", "question", "answer")


@dataclass(frozen=True)
class Sample:
    id: str
    question: str
    answer: str
    topic: str = ""


def read_samples(path: Path) -> list[Sample]:
    """The samples of a JSON Lines file. Keys that Sample lacks are passed over; whole numbers as ids become text.

    Raises ValueError if there is no file or no sample, or naming a line that is none or repeats an id.
    """
    if not path.is_file():
        raise ValueError(f"no file at {path}; give JSON Lines with {', '.join(REQUIRED)}")
    samples: dict[str, Sample] = {}
    place = f"{path}"
    try:
        for number, value in read_json_lines(path):
            place = f"{path}, line {number}"
            row = {"topic": ""} | check_object(value)
            if missing := [key for key in REQUIRED if key not in row]:
                raise ValueError(f"no {' and no '.join(missing)}; its keys are {sorted(row)}")
            row["id"] = str(row["id"]) if type(row["id"]) is int else row["id"]
            for key in [*REQUIRED, "topic"] if row["topic"] else REQUIRED:
                check_text(row[key], key)
            if row["id"] in samples:
                raise ValueError(f"id {row['id']!r} is that of an earlier line too; give every sample its own")
            samples[row["id"]] = Sample(**{key: row[key] or "" for key in (*REQUIRED, "topic")})
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    if not samples:
        raise ValueError(f"{path} holds no samples; give one a line, with {', '.join(REQUIRED)}")
    return list(samples.values())


def list_shards(folder: Path) -> list[Path]:
    """A folder's Parquet files, by name. Raises ValueError where it has none."""
    if not (shards := sorted(folder.glob("*.parquet"))):
        raise ValueError(f"no *.parquet in {folder}; give a folder of shards, as `rubric-influence synthesise` writes")
    return shards


def read_shard(path: Path) -> list[Sample]:
    """The valid pairs of a shard, perhaps none: those without a `problem`, or all where it has no such column.

    Raises ValueError, naming the file, where it is damaged or lacks a column.
    """
    try:
        file = parquet.ParquetFile(path)
        held = [name for name in (*REQUIRED, "problem") if name in file.schema_arrow.names]
        rows = file.read(columns=held).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} is no shard of pairs with {', '.join(REQUIRED)} ({error})") from None
    if missing := [name for name in REQUIRED if name not in held]:
        raise ValueError(
            f"{path} is no shard of pairs: no column {missing[0]}; give shards as `rubric-influence synthesise` writes "
            "them, or the data folder of a release in the form pairs"
        )
    return [Sample(row["id"], row["question"], row["answer"]) for row in rows if not row.get("problem")]


def encode_sample(tokenizer: PreTrainedTokenizerBase, template: str, max_tokens: int | None, sample: Sample) -> Example:
    try:
        return encode(tokenizer, sample.question, sample.answer, template, max_tokens)
    except ValueError as error:
        raise ValueError(f"sample {sample.id!r}: {error}") from None

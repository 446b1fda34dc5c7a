"""A set of pairs as a dataset that `datasets.load_dataset` loads: Parquet files and a card that says what they hold."""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
from huggingface_hub import DatasetCard, DatasetCardData, HfApi
from pyarrow import parquet

from rubric_influence.core.config import Config
from rubric_influence.core.paths import METRICS
from rubric_influence.core.records import Document, ExamItem, QAPair, Rubric, Written, content_id
from rubric_influence.models.embedders import load_embedder
from rubric_influence.synthesis.forms import FORMS, shape_pair
from rubric_influence.synthesis.licences import check_licence
from rubric_influence.synthesis.screening import NEED_DOCUMENTS, REMOVED, Screen, remove_flagged
from rubric_influence.synthesis.streaming import find_columns, read_run, stream_documents
from rubric_influence.synthesis.trace import PairTrace, pick, trace_set
from rubric_influence.synthesis.writing import FAILED, PAIRS, RUBRICS

# Of every row, besides `id` and those of its form.
PROVENANCE = [
    *((name, pa.string()) for name in ("document_id", "document_title", "document_source", "document", "rubric_id")),
    *((name, pa.string()) for name in ("rubric", "rubric_author", "generator", "teacher", "teacher_model", "flags")),
    *(("seed", pa.int64()), ("slot", pa.int64()), ("influence", pa.float64()), ("guard_influence", pa.float64())),
]
CHUNK = re.compile(r" \(\d+/\d+\)$")  # ends the title of a part of a longer document (data.documents)
Row = dict[str, Any]  # column -> value


@dataclass(frozen=True)
class Layout:
    """How a release is laid out: `form` is one of FORMS, `test` the part of the documents whose pairs are its test."""

    form: str = "pairs"
    test: float = 0.0

    def columns(self) -> pa.Schema:
        return pa.schema([("id", pa.string()), *FORMS[self.form].items(), *PROVENANCE])


DEFAULT_LAYOUT = Layout()


def list_arm(arm: str, seed: int, counts: Counter[str]) -> Iterator[list[Row]]:
    """The kept pairs of an arm of data/final as one batch of rows; `counts` gets all pairs, by what became of them."""
    yield make_rows(trace_set(arm, seed), counts)


def list_shards(
    folder: Path, config: Config, exam: list[ExamItem], counts: Counter[str], documents: Path | None = None
) -> Iterator[list[Row]]:
    """Like `list_arm`, with a batch for every shard of a streamed corpus, checked as `config.quality` says.

    `documents`: those of the corpus; without them, rows have no document. Raises ValueError where they are others, or
    a check needs them.
    """
    embedder = config.quality.embedder
    made_by, screen = read_run(folder), Screen(config.quality, exam, load_embedder(embedder) if embedder else None)
    if screen.needs_documents and documents is None:
        raise ValueError(f"{NEED_DOCUMENTS} need the corpus's documents: --documents")
    stream = stream_documents(documents, find_columns(config), skip_faulty=True) if documents else None
    for path in sorted((folder / PAIRS).glob("*.parquet")):
        try:
            rubrics = {rubric.id: rubric for rubric in read_shard(folder / RUBRICS / path.name, Rubric)}
            pairs = read_shard(path, QAPair)
        except (OSError, pa.ArrowException, KeyError) as error:
            raise ValueError(f"{path} or its rubrics cannot be read ({error}); run synthesise again") from None
        seen = find_documents(stream, {pair.document_id for pair in pairs}, path) if stream else {}
        flags = screen.check(pairs, {name: document.text for name, document in seen.items()})
        traces = (
            PairTrace(pair, seen.get(pair.document_id), rubrics.get(pair.rubric_id), made_by, found, {})
            for pair, found in zip(remove_flagged(pairs, flags, config.quality.remove), flags, strict=True)
        )
        yield make_rows(traces, counts)


def find_documents(stream: Iterator[Document], wanted: set[str], shard: Path) -> dict[str, Document]:
    """The next documents of the stream up to the last wanted one, by id. Raises ValueError where one does not come."""
    found: dict[str, Document] = {}
    while missing := wanted - found.keys():
        if (document := next(stream, None)) is None:
            raise ValueError(f"the documents lack {len(missing)} of {shard}; give those that synthesise was given")
        found[document.id] = document
    return found


def read_shard(path: Path, kind: type[Written]) -> list[Written]:
    """The records of a shard. Raises KeyError where it lacks a field of `kind`."""
    return [kind(*(row[field.name] for field in fields(kind))) for row in parquet.read_table(path).to_pylist()]


def make_rows(traces: Iterable[PairTrace], counts: Counter[str]) -> list[Row]:
    """A row for every kept pair; `counts` gets all pairs, by what became of them, and the flags of kept ones."""
    rows = []
    for trace in traces:
        pair, rubric, problem = trace.pair, trace.rubric, trace.pair.problem
        outcome = "kept" if not problem else "failed" if problem.startswith(FAILED) else "invalid"
        if problem.startswith(REMOVED):
            outcome = ":".join(problem.split(":")[:2])  # with the check, without its reason
        counts.update(("requested", outcome))
        if problem:
            continue
        counts.update(f"flagged: {check}" for check in trace.flags)
        rows.append(
            pick(pair, "id", "question", "answer", "document_id", "rubric_id", "teacher", "seed", "slot")
            | {"generator": trace.made_by["generator"], "teacher_model": trace.made_by["teacher_model"]}
            | {"document_title": trace.document.title if trace.document else None}
            | {"document_source": trace.document.source if trace.document else None}
            | {"document": trace.document.text if trace.document else None}
            | {"rubric": rubric.text if rubric else "", "rubric_author": rubric.author if rubric else ""}
            | {"influence": trace.influence.get("validation"), "guard_influence": trace.influence.get("guard")}
            | {"flags": json.dumps(trace.flags)}
        )
    return rows


def is_test(row: Row, part: float) -> bool:
    """Whether the row's document is in the test: by a hash, so that it stays there when a corpus grows.

    All chunks of a document are on the same side.
    """
    title = row["document_title"] or ""
    chunk = CHUNK.search(title)
    home = (row["document_source"] or "").partition(", ")[0]  # the file: a chunk may be on a line of its own
    whole = content_id(home, CHUNK.sub("", title)) if chunk else row["document_id"]
    return int(content_id("test", whole), 16) < part * 16**16


def write_release(
    out: Path,
    batches: Iterable[list[Row]],
    counts: Counter[str],
    licence: str,
    config: Config,
    layout: Layout = DEFAULT_LAYOUT,
) -> Path:
    """Write data/*.parquet and the card; returns `out`, which is whole or not there.

    Raises ValueError where it has files, the hub does not know the licence, or a split has no pair.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; remove it or give another folder")
    check_licence(licence)
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "data").mkdir(parents=True)
    try:
        sizes = write_splits(partial / "data", batches, config, layout)
        if not counts["kept"]:
            raise ValueError(f"no pair is kept of {counts['requested']}: {dict(counts)}; nothing to release")
        if layout.test:
            counts.update({f"in {side}": size for side, size in sizes.items()})
        if empty := [side for side, size in sizes.items() if not size]:
            kept = counts["kept"]
            raise ValueError(f"no document of {kept} pairs is in {empty[0]}; change --test ({layout.test:g})")
        (partial / "README.md").write_text(str(write_card(counts, licence, config, layout)), encoding="utf-8")
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def write_splits(folder: Path, batches: Iterable[list[Row]], config: Config, layout: Layout) -> dict[str, int]:
    """Write each batch's rows to a file for each split that has some; returns how many rows a split has."""
    sizes = dict.fromkeys(["train", "test"] if layout.test else ["train"], 0)
    for number, rows in enumerate(batches):
        sides: dict[str, list[Row]] = {side: [] for side in sizes}
        for row in rows:
            shaped = shape_pair(layout.form, config.prompts, row["question"], row["answer"])
            sides["test" if is_test(row, layout.test) else "train"].append(row | shaped)
        for side, held in sides.items():
            sizes[side] += len(held)
            if held:
                table = pa.Table.from_pylist(held, layout.columns())
                parquet.write_table(table, folder / f"{side}-{number:05d}.parquet")
    return sizes


def write_card(counts: Counter[str], licence: str, config: Config, layout: Layout) -> DatasetCard:
    """The dataset card. It holds no text that a document or model could have written, so none can change it."""
    language = config.quality.language
    files = [{"split": side, "path": f"data/{side}-*.parquet"} for side in ("train", "test") if counts[f"in {side}"]]
    data = DatasetCardData(
        license=licence,
        language=[language] if language and language != "document" else None,
        task_categories=["question-answering"],
        tags=["synthetic", "rubric-influence"],
        configs=[{"config_name": "default", "data_files": files or "data/*.parquet"}],
    )
    corpus, models = config.corpus, config.models
    source = f"the lab's world of {corpus.field}" if corpus.kind == "lab" else Path(corpus.inputs[0]).name
    results = METRICS / "evaluation.json"
    lines = [
        *("---", data.to_yaml(), "---", "# Synthetic question-answer pairs", ""),
        "Pairs that a teacher model wrote from documents and rubrics; the rubrics are a generator's, trained on the",
        "influence of its pairs on a target model where the set is of that arm. Written by models: check before use.",
        *("", "| | |", "|---|---|", f"| documents | {source} |"),
        *(f"| {role.replace('_', ' ')} | {getattr(models, role).path} |" for role in type(models).model_fields),
        *("", "## Counts", "", "| | pairs |", "|---|---|"),
        *(f"| {name} | {count} |" for name, count in sorted(counts.items())),
        *("", "requested = kept + removed + invalid + failed. Flags are of kept pairs; one may have several."),
        *(("", "Train and test are split by document.") if layout.test else ()),
        *("", "## Columns", "", ", ".join(f"`{name}`" for name in layout.columns().names) + "."),
        *("", "`document` is the text, or chunk of a text, that the pair was written from, where it was at hand."),
        *("", "`flags` is JSON: the check and its reason. `generator` and `teacher_model` are fingerprints of the"),
        "checkpoints; `influence` and `guard_influence` are on the validation and guard questions, where scored.",
        *("", "## Checks", "", "```json", config.quality.model_dump_json(indent=2), "```"),
    ]
    if results.is_file():
        found = json.loads(results.read_text(encoding="utf-8"))
        arms, measure = found["arms"], found.get("measure", "accuracy")
        lines += ["", "## Results", "", f"Exam {measure} of the target after fine-tuning on each arm:", ""]
        lines += [f"| arm | {measure} | 95 % interval |", "|---|---|---|"]
        lines += [f"| {arm} | {row['mean']} | {row['ci95'][0]} to {row['ci95'][1]} |" for arm, row in arms.items()]
    return DatasetCard("\n".join(lines) + "\n")


def push_release(folder: Path, repository: str, private: bool = True) -> str:
    """Upload the folder to the hub and return the commit's address. Raises ValueError without a token in HF_TOKEN."""
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise ValueError("HF_TOKEN is not set; put a token with write access there, in no file")
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
    done = api.upload_folder(
        repo_id=repository, repo_type="dataset", folder_path=folder, commit_message="Release of synthetic pairs"
    )
    return done.commit_url

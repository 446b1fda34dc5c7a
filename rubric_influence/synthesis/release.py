"""A set of pairs as a dataset that `datasets.load_dataset` loads: Parquet files and a card that says what they hold."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
from huggingface_hub import DatasetCard, DatasetCardData, HfApi
from pyarrow import parquet

from rubric_influence.core.config import Config
from rubric_influence.core.paths import METRICS
from rubric_influence.core.records import ExamItem, QAPair, Rubric, Written
from rubric_influence.synthesis.screening import REMOVED, Screen, remove_flagged
from rubric_influence.synthesis.streaming import read_run
from rubric_influence.synthesis.trace import PairTrace, pick, trace_set
from rubric_influence.synthesis.writing import FAILED, PAIRS, RUBRICS

COLUMNS = pa.schema(
    [(name, pa.string()) for name in ("id", "question", "answer", "document_id", "document_source", "rubric_id")]
    + [(name, pa.string()) for name in ("rubric", "rubric_author", "generator", "teacher", "teacher_model", "flags")]
    + [("seed", pa.int64()), ("slot", pa.int64()), ("influence", pa.float64()), ("guard_influence", pa.float64())]
)
Row = dict[str, object]  # column -> value


def list_arm(arm: str, seed: int, counts: Counter[str]) -> Iterator[list[Row]]:
    """The kept pairs of an arm of data/final as one batch of rows; `counts` gets all pairs, by what became of them."""
    yield make_rows(trace_set(arm, seed), counts)


def list_shards(folder: Path, config: Config, exam: list[ExamItem], counts: Counter[str]) -> Iterator[list[Row]]:
    """Like `list_arm`, with a batch for every shard of a streamed corpus, checked as `config.quality` says."""
    made_by, screen = read_run(folder), Screen(config.quality, exam)
    for path in sorted((folder / PAIRS).glob("*.parquet")):
        try:
            rubrics = {rubric.id: rubric for rubric in read_shard(folder / RUBRICS / path.name, Rubric)}
            pairs = read_shard(path, QAPair)
        except (OSError, pa.ArrowException, KeyError) as error:
            raise ValueError(f"{path} or its rubrics cannot be read ({error}); run synthesise again") from None
        flags = screen.check(pairs)
        traces = (
            PairTrace(pair, None, rubrics.get(pair.rubric_id), made_by, found, {})
            for pair, found in zip(remove_flagged(pairs, flags, config.quality.remove), flags, strict=True)
        )
        yield make_rows(traces, counts)


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
            | {"document_source": trace.document.source if trace.document else None}
            | {"rubric": rubric.text if rubric else "", "rubric_author": rubric.author if rubric else ""}
            | {"influence": trace.influence.get("validation"), "guard_influence": trace.influence.get("guard")}
            | {"flags": json.dumps(trace.flags)}
        )
    return rows


def write_release(out: Path, batches: Iterable[list[Row]], counts: Counter[str], licence: str, config: Config) -> Path:
    """Write data/*.parquet and the card; returns `out`. Raises ValueError where it has files, or no pair is kept."""
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; remove it or give another folder")
    if not licence.strip():
        raise ValueError("the licence is empty; name that of the documents' publisher, such as cc-by-4.0")
    for number, rows in enumerate(batches):
        if rows:
            (out / "data").mkdir(parents=True, exist_ok=True)
            parquet.write_table(pa.Table.from_pylist(rows, COLUMNS), out / "data" / f"train-{number:05d}.parquet")
    if not counts["kept"]:
        raise ValueError(f"no pair is kept of {counts['requested']}: {dict(counts)}; nothing to release")
    (out / "README.md").write_text(str(write_card(counts, licence, config)), encoding="utf-8")
    return out


def write_card(counts: Counter[str], licence: str, config: Config) -> DatasetCard:
    """The dataset card. It holds no text that a document or model could have written, so none can change it."""
    language = config.quality.language
    data = DatasetCardData(
        license=licence,
        language=[language] if language else None,
        task_categories=["question-answering"],
        tags=["synthetic", "rubric-influence"],
        configs=[{"config_name": "default", "data_files": "data/*.parquet"}],
    )
    corpus, models = config.corpus, config.models
    source = Path(corpus.documents).name if corpus.kind == "text" else f"the lab's world of {corpus.field}"
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
        *("", "## Columns", "", ", ".join(f"`{name}`" for name in COLUMNS.names) + "."),
        *("", "`flags` is JSON: the check and its reason. `generator` and `teacher_model` are fingerprints of the"),
        "checkpoints; `influence` and `guard_influence` are on the validation and guard questions, where scored.",
        *("", "## Checks", "", "```json", config.quality.model_dump_json(indent=2), "```"),
    ]
    if results.is_file():
        arms = json.loads(results.read_text(encoding="utf-8"))["arms"]
        lines += ["", "## Results", "", "Exam accuracy of the target after fine-tuning on each arm:", ""]
        lines += ["| arm | accuracy | 95 % interval |", "|---|---|---|"]
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

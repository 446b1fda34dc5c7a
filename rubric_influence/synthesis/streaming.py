"""Synthesis of a corpus of any size: documents in, folders of Parquet files out, a window of documents at a time.

`synthesise_corpus` (rubric-influence synthesise) writes OUT/rubrics/00000.parquet, OUT/pairs/00000.parquet and so on,
OUT/counts.json (records and ledger, the same for the same run) and OUT/effort.json (what it took this time). Memory
holds one window (synthesis.window documents). After an interruption the same command goes on: it skips finished
windows and takes the answers of the unfinished one from OUT/answers. A window with failed requests is done again by
the next run, which asks for these alone.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet
from tqdm import tqdm

from rubric_influence.core.config import Config
from rubric_influence.core.files import replace_file, write_json
from rubric_influence.core.fingerprints import fingerprint
from rubric_influence.core.journal import Journal
from rubric_influence.core.records import Document, QAPair, Rubric, content_id
from rubric_influence.data.documents import read_documents
from rubric_influence.engines.base import Engine
from rubric_influence.engines.endpoint import EndpointEngine
from rubric_influence.engines.ledger import Ledger
from rubric_influence.engines.open import open_engine
from rubric_influence.synthesis.writing import (
    PAIRS,
    RUBRICS,
    SynthesisContext,
    count_records,
    follow_rubrics,
    identify,
    write_pairs,
    write_rubrics,
)


def synthesise_corpus(
    documents: Iterable[Document], config: Config, out: str | Path, seed: int, total: int | None = None
) -> dict:
    """budget.final_pairs rubrics and pairs for every document, in shards under `out`.

    Returns what OUT/counts.json holds: documents, counts of rubrics and of pairs, ledger. `total`, if known, gives the
    progress line its time left. Raises ValueError where `out` was begun with other settings, BudgetReached,
    EndpointError and OSError as engines and journals do; then everything that was answered is kept.
    """
    out = Path(out)
    begin_run(out / "run.json", config, seed)
    settings, models = config.synthesis, config.models
    ledger = Ledger(settings.budget_usd, settings.budget_tokens)
    engines = {
        what: open_engine(spec, settings.batch_size, ledger=ledger, what=what)
        for what, spec in ((RUBRICS, models.rubric_generator), (PAIRS, models.teacher))
    }
    done = Journal(out / "windows.jsonl")
    totals = {"documents": 0, RUBRICS: Counter(), PAIRS: Counter()}
    with tqdm(total=total, desc="synthesis", unit="document") as bar:
        for number, window in enumerate(split(documents, settings.window)):
            name = f"{number:05d}"
            mark = content_id(*(document.id for document in window))
            entry = done.values.get(name)
            if entry is None or entry["documents"] != mark or entry[RUBRICS]["failed"] or entry[PAIRS]["failed"]:
                before = ledger.report()
                context = SynthesisContext(
                    config.prompts, settings, seed, Journal(out / "answers" / f"{name}.jsonl"), ledger
                )
                counts = synthesise_window(window, engines, config.budget.final_pairs, context, out, name)
                entry = {"documents": mark, **counts, "ledger": subtract(ledger.report(), before)}
                done.add(name, entry)
            else:
                ledger.restore(entry["ledger"])
            totals["documents"] += len(window)
            for what in (RUBRICS, PAIRS):
                totals[what].update({key: count for key, count in entry[what].items() if key != "problems"})
            bar.update(len(window))
            shown = {key: totals[PAIRS][key] for key in ("valid", "failed")} | {"tokens": ledger.tokens}
            bar.set_postfix(shown | ({"usd": f"{ledger.usd:.2f}"} if ledger.usd else {}))
    found = {key: dict(value) if isinstance(value, Counter) else value for key, value in totals.items()}
    found["ledger"] = ledger.report()
    write_json(out / "counts.json", found)
    write_json(out / "effort.json", ledger.report_effort())
    return found


def begin_run(path: Path, config: Config, seed: int) -> None:
    """Write what shapes the run's records, or check that a run that goes on has the same."""
    models = config.models
    shape = {
        "prompts": config.prompts.model_dump(),
        "synthesis": identify(config.synthesis),
        "window": config.synthesis.window,  # what is in which shard
        "pairs": config.budget.final_pairs,
        "models": [fingerprint(models.rubric_generator), fingerprint(models.teacher)],
        "seed": seed,
    }
    if not path.exists():
        write_json(path, shape)
    begun = json.loads(path.read_text(encoding="utf-8"))
    if other := [key for key in shape if begun.get(key) != shape[key]]:
        raise ValueError(f"{path.parent} was begun with other {', '.join(other)}; set them back or give another folder")


def split(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    rest = iter(documents)
    while window := list(islice(rest, size)):
        yield window


def synthesise_window(
    window: list[Document],
    engines: dict[str, Engine],
    per_document: int,
    context: SynthesisContext,
    out: Path,
    name: str,
) -> dict[str, dict]:
    """Write one window's shards; returns its counts."""
    for engine in engines.values():
        if isinstance(engine, EndpointEngine):
            engine.journal = context.journal
    rubrics = write_rubrics(engines[RUBRICS], window, per_document, context)
    pairs = write_pairs(engines[PAIRS], follow_rubrics(window, rubrics), context)
    write_shard(out / RUBRICS / f"{name}.parquet", rubrics)
    write_shard(out / PAIRS / f"{name}.parquet", pairs)
    return {RUBRICS: count_records(rubrics), PAIRS: count_records(pairs)}


def write_shard(path: Path, records: Sequence[Rubric | QAPair]) -> None:
    """Records with their ids, in one step: a shard that is there is whole."""
    with replace_file(path) as partial:
        parquet.write_table(pa.Table.from_pylist([{"id": record.id, **asdict(record)} for record in records]), partial)


def subtract(after: dict[str, dict], before: dict[str, dict]) -> dict[str, dict]:
    """What a ledger's report has more than an earlier one."""
    return {
        name: {key: round(value - before.get(name, {}).get(key, 0), 6) for key, value in row.items()}
        for name, row in after.items()
    }


def stream_documents(path: Path) -> Iterator[Document]:
    """The documents of `path`: a .jsonl file (text, title, source) line by line, all else as corpus.read_documents."""
    if path.suffix != ".jsonl":
        yield from read_documents(path)
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                document = Document(row["text"], row.get("title") or "", row.get("source") or "")
                if not row["text"].strip():
                    raise ValueError("its text is empty")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise ValueError(f'{path}, line {number}: not a document {{"text": ...}} ({error!r})') from None
            yield document


def count_documents(path: Path) -> int | None:
    if path.suffix != ".jsonl":
        return None
    with path.open("rb") as file:
        return sum(1 for _ in file)


def synthesise_file(documents: Path, config: Config, out: Path, seed: int) -> dict:
    """`synthesise_corpus` of the documents at a path. Raises ValueError where there are none."""
    if not documents.exists():
        raise ValueError(f"no documents at {documents}")
    return synthesise_corpus(stream_documents(documents), config, out, seed, count_documents(documents))


def describe_counts(found: dict) -> str:
    """What `synthesise_corpus` returned, in a line."""
    pairs = found[PAIRS]
    return (
        f"{found['documents']} documents, {pairs['requested']} pairs requested = {pairs['valid']} valid + "
        f"{pairs['invalid']} invalid + {pairs['failed']} failed"
    )

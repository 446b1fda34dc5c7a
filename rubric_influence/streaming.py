"""Synthesis of a corpus of any size: documents in, folders of Parquet files out, a window of documents at a time.

    python -m rubric_influence.streaming --params params.yaml --documents documents.jsonl --out data/synthetic

writes OUT/rubrics/00000.parquet, OUT/pairs/00000.parquet and so on, OUT/counts.json (records and ledger, the same for
the same run) and OUT/effort.json (what it took this time). Memory holds one window (synthesis.window documents).
Interrupted, by whatever, the same command goes on: finished windows are skipped, answers of the unfinished one come
from OUT/answers. A window with failed requests is done again by the next run, which asks for these alone.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet
from tqdm import tqdm

from rubric_influence.config import Config, load_config
from rubric_influence.corpus import read_documents
from rubric_influence.endpoint import EndpointEngine, EndpointError
from rubric_influence.generation import open_engine
from rubric_influence.journal import Journal
from rubric_influence.layout import fingerprint
from rubric_influence.ledger import BudgetReached, Ledger
from rubric_influence.metrics import write_metrics
from rubric_influence.records import Document, QAPair, Rubric, content_id
from rubric_influence.synthesis import (
    PAIRS,
    RUBRICS,
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
                counts = synthesise_window(window, engines, config, seed, out, name, ledger)
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
    write_metrics(out / "counts.json", found)
    write_metrics(out / "effort.json", ledger.report_effort())
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
        write_metrics(path, shape)
    begun = json.loads(path.read_text(encoding="utf-8"))
    if other := [key for key in shape if begun.get(key) != shape[key]]:
        raise ValueError(f"{path.parent} was begun with other {', '.join(other)}; set them back or give another folder")


def split(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    rest = iter(documents)
    while window := list(islice(rest, size)):
        yield window


def synthesise_window(
    window: list[Document], engines: dict, config: Config, seed: int, out: Path, name: str, ledger: Ledger
) -> dict[str, dict]:
    """Write one window's shards; returns its counts."""
    journal = Journal(out / "answers" / f"{name}.jsonl")
    for engine in engines.values():
        if isinstance(engine, EndpointEngine):
            engine.journal = journal
    shared = (config.prompts, config.synthesis, seed, journal, ledger)
    rubrics = write_rubrics(engines[RUBRICS], window, config.budget.final_pairs, *shared)
    pairs = write_pairs(engines[PAIRS], follow_rubrics(window, rubrics), *shared)
    write_shard(out / RUBRICS / f"{name}.parquet", rubrics)
    write_shard(out / PAIRS / f"{name}.parquet", pairs)
    return {RUBRICS: count_records(rubrics), PAIRS: count_records(pairs)}


def write_shard(path: Path, records: Sequence[Rubric | QAPair]) -> None:
    """Records with their ids, in one step: a shard that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    parquet.write_table(pa.Table.from_pylist([{"id": record.id, **asdict(record)} for record in records]), partial)
    partial.replace(path)


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", default="params.yaml", help="the profile")
    parser.add_argument("--documents", type=Path, required=True, help="a .jsonl file, or a folder of texts")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, help="default: the profile's first")
    arguments = parser.parse_args()
    try:
        if not arguments.documents.exists():
            raise ValueError(f"no documents at {arguments.documents}")
        config = load_config(arguments.params)
        seed = config.seeds[0] if arguments.seed is None else arguments.seed
        total = count_documents(arguments.documents)
        found = synthesise_corpus(stream_documents(arguments.documents), config, arguments.out, seed, total)
    except (ValueError, EndpointError, BudgetReached, OSError) as error:
        print(f"\n{(isinstance(error, OSError) and error.strerror) or error}", file=sys.stderr)
        return 1
    pairs = found[PAIRS]
    print(f"{found['documents']} documents, {pairs['requested']} pairs requested = {pairs['valid']} valid + ", end="")
    print(f"{pairs['invalid']} invalid + {pairs['failed']} failed, in {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

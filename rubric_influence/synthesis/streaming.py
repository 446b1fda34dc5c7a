"""Synthesis of a corpus of any size: documents in, folders of Parquet files out, a window of documents at a time.

`synthesise_corpus` (rubric-influence synthesise) writes OUT/rubrics/00000.parquet, OUT/pairs/00000.parquet and so on,
OUT/counts.json (records and ledger, the same for the same run) and OUT/effort.json (what it took this time). Memory
holds one window (synthesis.window documents). After an interruption the same command goes on: it skips finished
windows and takes the answers of the unfinished one from OUT/answers. The next run also does windows with failed
requests again, and sends these requests alone.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet
from tqdm import tqdm

from rubric_influence.core.config import Config
from rubric_influence.core.corpus_sections import DocumentColumns, TextCorpus
from rubric_influence.core.files import replace_file, write_json
from rubric_influence.core.fingerprints import fingerprint
from rubric_influence.core.journal import Journal
from rubric_influence.core.records import Document, QAPair, Rubric, content_id
from rubric_influence.data.corpora import count_skipped, tell_left_out
from rubric_influence.data.documents import AS_NAMED, check_documents, each_document, locate
from rubric_influence.engines.endpoint import EndpointEngine
from rubric_influence.engines.open import open_engine
from rubric_influence.synthesis.outcomes import open_ledger
from rubric_influence.synthesis.parsing import PARSER
from rubric_influence.synthesis.writing import PAIRS, RUBRICS, SynthesisContext, count_records, identify, write_set


def synthesise_corpus(
    documents: Iterable[Document], config: Config, out: str | Path, seed: int, total: int | None = None
) -> dict[str, Any]:
    """budget.final_pairs rubrics and pairs for every document, in shards under `out`.

    Returns what OUT/counts.json holds: documents, counts of rubrics and of pairs, ledger. `total`, if known, is the
    number of documents, for the progress bar. Raises ValueError where `out` was begun with other settings; RunStopped
    where more fails than synthesis.most_failures allows; BudgetReached, EndpointError and OSError as engines and
    journals do. Everything that was answered is kept. Nothing is written before the first window is read.
    """
    out, settings, shape = Path(out), config.synthesis, describe_run(config, seed)
    check_begun(out, shape)
    ledger = open_ledger(settings)
    generator = open_engine(config.models.rubric_generator, settings.batch_size, ledger=ledger, what=RUBRICS)
    teacher = open_engine(config.models.teacher, settings.batch_size, ledger=ledger, what=PAIRS)
    rest = iter(documents)
    first, windows = list(islice(rest, settings.window)), iter(lambda: list(islice(rest, settings.window)), [])
    write_json(out / "run.json", shape)
    done = Journal(out / "windows.jsonl")
    found: dict[str, Any] = {"documents": 0, RUBRICS: Counter(), PAIRS: Counter()}
    with tqdm(total=total, desc="synthesis", unit="document") as bar:
        for number, window in enumerate(chain([first] if first else [], windows)):
            name, mark = f"{number:05d}", content_id(*(document.id for document in window))
            entry = done.values.get(name)
            if entry and entry["documents"] == mark and not entry[RUBRICS]["failed"] and not entry[PAIRS]["failed"]:
                ledger.restore(entry["ledger"])
                for what, engine in ((RUBRICS, generator), (PAIRS, teacher)):
                    ledger.tallies[what, engine.name].asked += entry[what]["valid"]
            else:
                before, journal = ledger.report(), Journal(out / "answers" / f"{name}.jsonl")
                context = SynthesisContext(config.prompts, settings, seed, journal, ledger)
                for engine in (generator, teacher):
                    if isinstance(engine, EndpointEngine):  # keeps its answers itself, here in the window's journal
                        engine.journal = journal
                rubrics, pairs = write_set(generator, teacher, window, config.budget.final_pairs, context)
                write_shard(out / RUBRICS / f"{name}.parquet", rubrics)
                write_shard(out / PAIRS / f"{name}.parquet", pairs)
                entry = {"documents": mark, RUBRICS: count_records(rubrics), PAIRS: count_records(pairs)}
                done.add(name, entry | {"ledger": subtract(ledger.report(), before)})
            found["documents"] += len(window)
            for what in (RUBRICS, PAIRS):
                found[what].update({key: count for key, count in entry[what].items() if key != "problems"})
            bar.update(len(window))
            shown = {key: found[PAIRS][key] for key in ("valid", "failed")} | {"tokens": ledger.tokens}
            bar.set_postfix(shown | ({"usd": f"{ledger.usd:.2f}"} if ledger.usd else {}))
    found["ledger"] = ledger.report()
    write_json(out / "counts.json", found)
    write_json(out / "effort.json", ledger.report_effort())
    return found


def describe_run(config: Config, seed: int) -> dict[str, Any]:
    """What shapes the records and the shards of a run, as its run.json holds it."""
    return {
        "prompts": config.prompts.model_dump(),
        "synthesis": identify(config.synthesis),
        "window": config.synthesis.window,  # decides what is in which shard
        "pairs": config.budget.final_pairs,
        "models": [fingerprint(config.models.rubric_generator), fingerprint(config.models.teacher)],
        "seed": seed,
        "parser": PARSER,
    }


def check_begun(out: Path, shape: dict[str, Any]) -> None:
    """Raise ValueError where answers in `out` are of a run of another shape."""
    path = out / "run.json"
    if not path.exists() or not any(file.stat().st_size for file in out.rglob("*.jsonl")):
        return
    begun = json.loads(path.read_text(encoding="utf-8"))
    if other := [key for key in shape if key != "parser" and begun.get(key) != shape[key]]:
        raise ValueError(f"{out} was begun with other {', '.join(other)}; set them back or give another folder")
    if begun.get("parser") != PARSER:
        raise ValueError(
            f"{out} was begun by a version that read answers in another way, and its shards would not be of one kind; "
            f"copy {out / 'answers'} into a new folder and give that: answers are read anew, not asked for again"
        )


def read_run(out: Path) -> dict[str, Any]:
    """`PairTrace.made_by` of a streamed corpus, with `synthesis` (settings). Raises ValueError where there is none."""
    try:
        run = json.loads((out / "run.json").read_text(encoding="utf-8"))
        generator, teacher = run["models"]
        made_by = {"generator": generator, "teacher_model": teacher, "prompts": run["prompts"]}
        return made_by | {"synthesis": run["synthesis"], "run_seed": run["seed"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{out} holds no run.json of a streamed corpus ({error!r}); give synthesise's --out") from None


def write_shard(path: Path, records: Sequence[Rubric | QAPair]) -> None:
    """Write records with their ids, in one step: a shard that is there is whole."""
    with replace_file(path) as partial:
        parquet.write_table(pa.Table.from_pylist([{"id": record.id, **asdict(record)} for record in records]), partial)


def subtract(after: dict[str, dict], before: dict[str, dict]) -> dict[str, dict]:
    """A ledger's report less an earlier one."""
    return {
        name: {key: round(value - before.get(name, {}).get(key, 0), 6) for key, value in row.items()}
        for name, row in after.items()
    }


def stream_documents(path: Path, columns: DocumentColumns = AS_NAMED, skip_faulty: bool = False) -> Iterator[Document]:
    """The documents that `read_documents` returns, one by one.

    Raises ValueError for the first that cannot be used, with its place and what is wrong, unless `skip_faulty`.
    """
    for item in each_document(path, columns):
        if isinstance(item, Document):
            yield item
        elif item.fault and not skip_faulty:
            raise ValueError(locate(path, item))


def find_columns(config: Config) -> DocumentColumns:
    """The columns of the profile's documents; those of files named as this project does, where it has none."""
    return config.corpus.document_columns if isinstance(config.corpus, TextCorpus) else AS_NAMED


def synthesise_file(documents: Path, config: Config, out: Path, seed: int) -> dict[str, Any]:
    """`synthesise_corpus` of the documents at a path, all read once before the first is asked about.

    Raises ValueError where there are none, or some cannot be used (see `read_documents`).
    """
    columns = find_columns(config)
    skip_faulty = isinstance(config.corpus, TextCorpus) and config.corpus.skip_faulty_documents
    total, skipped = check_documents(documents, columns, skip_faulty)
    for line in tell_left_out(count_skipped(skipped)):
        tqdm.write(line, file=sys.stderr)
    return synthesise_corpus(stream_documents(documents, columns, skip_faulty), config, out, seed, total)


def describe_counts(found: dict[str, Any]) -> str:
    """One line about what `synthesise_corpus` returned."""
    outcomes = " + ".join(f"{found[PAIRS][key]} {key}" for key in ("valid", "invalid", "failed"))
    return f"{found['documents']} documents, {found[PAIRS]['requested']} pairs requested = {outcomes}"

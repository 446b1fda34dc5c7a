"""Why a pair is in a set: the document, rubric, models, seed and scores behind it (rubric-influence trace)."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import parquet

from rubric_influence.core.checks import check_object
from rubric_influence.core.corpus_sections import DocumentColumns
from rubric_influence.core.files import read_json_lines, read_records
from rubric_influence.core.paths import DOCUMENTS, FINAL, seed_folder
from rubric_influence.core.records import Document, QAPair, Rubric
from rubric_influence.data.documents import AS_NAMED
from rubric_influence.synthesis.screening import Flags
from rubric_influence.synthesis.streaming import read_run, stream_documents
from rubric_influence.synthesis.writing import PAIRS, RUBRICS

Json = dict[str, Any]


@dataclass(frozen=True)
class PairTrace:
    """A pair with all that made it.

    made_by: `generator` and `teacher_model` (fingerprints of checkpoints; generator "" where no model wrote the
    rubrics), `prompts` and `run_seed`. influence: on the questions of `validation` and `guard`, in the unit of
    rl.scoring.TargetScorer; None for a pair with a problem.
    """

    pair: QAPair
    document: Document | None  # None where documents are not at hand
    rubric: Rubric | None  # None where the teacher saw no rubric
    made_by: Mapping[str, Any]
    flags: Flags
    influence: Mapping[str, float | None]  # empty where pairs are not scored

    def to_json(self, arm: str) -> Json:
        """What `rubric-influence trace` prints of a pair of an arm."""
        pair, document, rubric = self.pair, self.document, self.rubric
        return (
            {"id": pair.id, "arm": arm, **pick(pair, "question", "answer", "problem")}
            | {"document": document and pick(document, "id", "title", "source", "text")}
            | {"rubric": rubric and pick(rubric, "id", "text", "author", "seed")}
            | {"generator": self.made_by["generator"], "teacher": pair.teacher, **self.made_by}
            | {"seed": pair.seed, "slot": pair.slot, "flags": self.flags, "influence": self.influence}
        )


def pick(record: object, *names: str) -> Json:
    return {name: getattr(record, name) for name in names}


def trace_set(arm: str, seed: int) -> Iterator[PairTrace]:
    """Every pair of one arm and seed, in order. Raises ValueError for an unknown set and for one that is not whole."""
    folder = seed_folder(FINAL / arm, seed)
    check_known(arm, seed)
    wanted = [DOCUMENTS, *(folder / name for name in ("pairs.jsonl", "rubrics.jsonl", "traces.jsonl", "made_by.json"))]
    if missing := [str(path) for path in wanted if not path.is_file()]:
        raise ValueError(f"arm {arm!r}, seed {seed} lacks {', '.join(missing)}; run the stage final first")
    texts = {document.id: document for document in read_records(DOCUMENTS, Document)}
    rubrics = {rubric.id: rubric for rubric in read_records(folder / "rubrics.jsonl", Rubric)}
    made = json.loads((folder / "made_by.json").read_text(encoding="utf-8"))
    made_by = {"generator": made["generator"], "teacher_model": made["teacher"]}
    made_by |= {"prompts": made["prompts"], "run_seed": made["seed"]}
    found = {row["id"]: row for row in (check_object(row) for _, row in read_json_lines(folder / "traces.jsonl"))}
    for pair in read_records(folder / "pairs.jsonl", QAPair):
        document, rubric, row = texts.get(pair.document_id), rubrics.get(pair.rubric_id), found.get(pair.id)
        if not document or not row or (pair.rubric_id and not rubric):
            raise ValueError(f"pair {pair.id} of {folder} names records that are not there; run the stage final again")
        yield PairTrace(pair, document, rubric, made_by, row["flags"], row["influence"])


def list_sets() -> dict[str, list[int]]:
    """Arm -> the seeds that data/final has its sets of."""
    found: dict[str, list[int]] = {}
    for path in sorted(FINAL.glob("*/seed-*")):
        found.setdefault(path.parent.name, []).append(int(path.name.removeprefix("seed-")))
    return found


def check_known(arm: str, seed: int) -> None:
    """Raise ValueError, saying what there is, where data/final has no set of the arm and seed."""
    if not (known := list_sets()):
        raise ValueError(f"no final set in {FINAL}; run the stage final first: make repro")
    if arm not in known:
        raise ValueError(f"no arm {arm!r} in {FINAL}; its arms are {', '.join(known)}")
    if seed not in known[arm]:
        raise ValueError(f"no seed {seed} of the arm {arm} in {FINAL}; its seeds are {', '.join(map(str, known[arm]))}")


def find_pair(pair_id: str) -> list[Json]:
    """Every trace of a pair in data/final as JSON, over arms and seeds. Raises ValueError where no set holds it."""
    if not (sets := list_sets()):
        raise ValueError(f"no final set in {FINAL}; run the stage final first (make repro), or give --corpus")
    traces = []
    for arm, seed in ((arm, seed) for arm, seeds in sets.items() for seed in seeds):
        path = seed_folder(FINAL / arm, seed) / "pairs.jsonl"
        if path.is_file() and pair_id in path.read_text(encoding="utf-8"):
            traces += [trace.to_json(arm) for trace in trace_set(arm, seed) if trace.pair.id == pair_id]
    if not traces:
        raise ValueError(f"no pair {pair_id!r} in {FINAL}; give the id of a line of its pairs.jsonl")
    return traces


def find_in_shards(
    pair_id: str,
    corpus: Path,
    documents: Path | None = None,
    scores: Path | None = None,
    columns: DocumentColumns = AS_NAMED,
) -> list[Json]:
    """Every trace of a pair in a corpus of `rubric-influence synthesise` as JSON, with its shard and run's settings.

    Without `documents`, `document` has only an id; without `scores`, `influence` is None. Raises ValueError where no
    shard holds the pair, or `corpus` is no streamed corpus.
    """
    made_by, traces = read_run(corpus), []
    for shard in sorted((corpus / PAIRS).glob("*.parquet")):
        for pair in read_rows(shard, pair_id):
            document = {"id": pair.pop("document_id")}
            rubric = next(iter(read_rows(corpus / RUBRICS / shard.name, pair["rubric_id"])), None)
            influence = next(iter(read_rows(scores / shard.name, pair_id)), None) if scores else None
            made = {"shard": shard.name, "document": document, "rubric": rubric, **made_by}
            traces.append(pair | made | {"influence": influence})
    if not traces:
        raise ValueError(f"no pair {pair_id!r} in {corpus / PAIRS}; give the id of a row of its shards")
    for read in stream_documents(documents, columns, skip_faulty=True) if documents else ():
        for trace in traces:
            if trace["document"]["id"] == read.id:
                trace["document"] |= pick(read, "title", "source", "text")
    return traces


def read_rows(shard: Path, record_id: str) -> list[Json]:
    """The rows of a Parquet file that have an id. Memory holds only these rows."""
    return parquet.read_table(shard, filters=[("id", "=", record_id)]).to_pylist()

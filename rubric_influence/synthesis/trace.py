"""Why a pair is in a set: the document, rubric, models, seed and scores behind it (rubric-influence trace).

`find_pair` looks in data/final, `find_in_shards` in a corpus that `rubric-influence synthesise` wrote.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from pyarrow import parquet

from rubric_influence.core.files import read_records
from rubric_influence.core.paths import DOCUMENTS, FINAL, seed_folder
from rubric_influence.core.records import Document, QAPair, Rubric
from rubric_influence.synthesis.streaming import stream_documents
from rubric_influence.synthesis.writing import PAIRS, RUBRICS


def trace_set(arm: str, seed: int, final: Path = FINAL, documents: Path = DOCUMENTS) -> Iterator[dict]:
    """Every pair of one arm and seed, in order, with all that made it, as plain values.

    `generator` and `teacher_model` are fingerprints (layout.fingerprint): of the checkpoint that wrote the rubric, ""
    where the rubric is fixed or there is none, and of the teacher. `influence` holds the scores of a valid pair on the
    validation and guard questions, in the unit of scoring.TargetScorer. Raises ValueError where a file of the set is
    missing or damaged, or names what the others do not hold.
    """
    folder = seed_folder(final / arm, seed)
    wanted = [documents, *(folder / name for name in ("pairs.jsonl", "rubrics.jsonl", "traces.jsonl", "made_by.json"))]
    if missing := [str(path) for path in wanted if not path.is_file()]:
        raise ValueError(f"arm {arm!r}, seed {seed} lacks {', '.join(missing)}; run the stage final first")
    texts = {document.id: document for document in read_records(documents, Document)}
    rubrics = {rubric.id: rubric for rubric in read_records(folder / "rubrics.jsonl", Rubric)}
    made = json.loads((folder / "made_by.json").read_text(encoding="utf-8"))
    lines = (folder / "traces.jsonl").read_text(encoding="utf-8").splitlines()
    found = {row["id"]: row for row in map(json.loads, lines)}
    for pair in read_records(folder / "pairs.jsonl", QAPair):
        unknown = pair.document_id not in texts or (pair.rubric_id and pair.rubric_id not in rubrics)
        if unknown or pair.id not in found:
            raise ValueError(f"pair {pair.id} of {folder} names records that are not there; run the stage final again")
        document, rubric = texts[pair.document_id], rubrics.get(pair.rubric_id)
        yield {
            "id": pair.id,
            "arm": arm,
            "question": pair.question,
            "answer": pair.answer,
            "problem": pair.problem,
            "document": {
                **{"id": document.id, "title": document.title, "source": document.source},
                "text": document.text,
            },
            "rubric": {"id": rubric.id, "text": rubric.text, "author": rubric.author, "seed": rubric.seed}
            if rubric
            else None,
            "generator": made["generator"],
            "teacher": pair.teacher,
            "teacher_model": made["teacher"],
            "prompts": made["prompts"],
            "run_seed": made["seed"],
            "seed": pair.seed,
            "slot": pair.slot,
            "flags": found[pair.id]["flags"],
            "influence": found[pair.id]["influence"],
        }


def find_pair(pair_id: str, final: Path = FINAL, documents: Path = DOCUMENTS) -> list[dict]:
    """Every trace of the pair, over all arms and seeds. Raises ValueError where no set holds it."""
    traces = []
    for path in sorted(final.glob("*/seed-*/pairs.jsonl")):
        if pair_id in path.read_text(encoding="utf-8"):
            seed = int(path.parent.name.removeprefix("seed-"))
            traces += [t for t in trace_set(path.parent.parent.name, seed, final, documents) if t["id"] == pair_id]
    if not traces:
        raise ValueError(f"no pair {pair_id!r} in {final}; give the id of a line of its pairs.jsonl")
    return traces


def find_in_shards(pair_id: str, corpus: Path, documents: Path | None = None, scores: Path | None = None) -> list[dict]:
    """Every trace of a pair in a streamed corpus, with its shard and the run's fingerprints, prompts and settings.

    `document` is only the id without `documents`, `influence` None without `scores`. Raises ValueError where no shard
    holds the pair, or `corpus` is no streamed run.
    """
    if not (corpus / "run.json").is_file():
        raise ValueError(
            f"{corpus} holds no run.json; give the folder that rubric_influence.synthesis.streaming wrote to"
        )
    run = json.loads((corpus / "run.json").read_text(encoding="utf-8"))
    generator, teacher = run["models"]
    traces = []
    for shard in sorted((corpus / PAIRS).glob("*.parquet")):
        for pair in read_row(shard, pair_id):
            rubrics = read_row(corpus / RUBRICS / shard.name, pair["rubric_id"])
            influence = read_row(scores / shard.name, pair_id) if scores else []
            models = {"generator": generator, "teacher_model": teacher}
            shaped = {"prompts": run["prompts"], "synthesis": run["synthesis"], "run_seed": run["seed"]}
            document = {"id": pair.pop("document_id")}
            traces.append(
                pair
                | {"shard": shard.name, "document": document, "rubric": rubrics[0] if rubrics else None}
                | {**models, **shaped, "influence": influence[0] if influence else None}
            )
    if not traces:
        raise ValueError(f"no pair {pair_id!r} in {corpus / PAIRS}; give the id of a row of its shards")
    wanted = {trace["document"]["id"] for trace in traces}
    for document in stream_documents(documents) if documents else ():
        if document.id in wanted:
            for trace in (t for t in traces if t["document"]["id"] == document.id):
                trace["document"] |= {"title": document.title, "source": document.source, "text": document.text}
    return traces


def read_row(shard: Path, record_id: str) -> list[dict]:
    """The rows of a Parquet file with an id, with no more of the file in memory than they take."""
    return parquet.read_table(shard, filters=[("id", "=", record_id)]).to_pylist()

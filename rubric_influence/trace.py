"""Why a pair is in a final set: the document, rubric, models, seed and scores behind it.

python -m rubric_influence.trace PAIR_ID        every place of data/final that holds the pair, as JSON
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from rubric_influence.layout import DOCUMENTS, FINAL, seed_folder
from rubric_influence.records import Document, QAPair, Rubric, read_records


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", help="the pair's id")
    try:
        print(json.dumps(find_pair(parser.parse_args().pair), indent=2, ensure_ascii=False))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Hostile input for every parser of model output and for the loaders of files: only a ValueError may come of it.

    python -m benchmarks.fuzz --inputs 100000 --json FILE

Inputs are hypothesis's, half of them grown around what a well-formed one looks like, the same for the same seed. A
crash or a hang (an input that takes over ten seconds of processor time) ends the target's run and is written down with
its input.
"""

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from rubric_influence.core.files import read_records
from rubric_influence.core.journal import Journal, write_entry
from rubric_influence.core.profiles import load_config
from rubric_influence.core.records import ExamItem, QAPair
from rubric_influence.data.documents import read_documents
from rubric_influence.data.exam_formats import read_exam
from rubric_influence.influence.moments import load_moments
from rubric_influence.influence.samples import read_shard
from rubric_influence.synthesis.parsing import parse_pair, parse_rubric
from rubric_influence.synthesis.screening import find_personal_data
from rubric_influence.synthesis.streaming import stream_documents

SLOWEST = 10.0  # seconds
PIECES = ['{"question": "', '", "answer": "', '"}', '{"rubric": "', '{"text": "', '"options": ', "[", "]", "{", "}"]
PIECES += [
    ",",
    ":",
    "\n",
    '"',
    "\\",
    "\\ud800",
    "<think>",
    "</think>",
    "```",
    "9" * 5000,
    "null",
    "1e999",
    "NaN",
    "\x00",
]
PIECES += [
    '"document_id": ',
    '"seed": ',
    "question,a,b,c,d,A",
    "&a ",
    "*a",
    "!!python/object",
    "what is it ?",
    "\ufeff",
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=20).map("".join)
BYTES = st.binary(max_size=200) | TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass"))


# What begins and ends as a Parquet file does, or gives a header's length as safetensors does.
FRAMED = st.binary(max_size=200).map(lambda content: b"PAR1" + content + b"PAR1") | TEXTS.map(
    lambda text: (body := text.encode("utf-8", "surrogatepass"), len(body).to_bytes(8, "little") + body)[1]
)
DAMAGED_ENTRIES = st.tuples(st.text(max_size=20), st.integers(0, 200), st.binary(max_size=5)).map(
    lambda drawn: (line := write_entry(drawn[0], {"text": drawn[0]}), line[: drawn[1]] + drawn[2] + line[drawn[1] :])[1]
)


def open_journal(path: Path) -> Journal:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged lines, as it should
        return Journal(path)


def load(name: str, read: Callable[[Path], object]) -> Callable[[bytes], None]:
    """Writes the input to a file of that name and reads it; a ValueError with a message is what a loader may raise."""

    def run(content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            path.write_bytes(content)
            try:
                read(path)
            except ValueError as error:
                assert str(error), "a ValueError without a message"

    return run


TARGETS = {
    "parse_rubric": (TEXTS, parse_rubric),
    "parse_pair": (TEXTS, parse_pair),
    "find_personal_data": (TEXTS, find_personal_data),
    "documents .jsonl": (BYTES, load("d.jsonl", read_documents)),
    "documents .json": (BYTES, load("d.json", read_documents)),
    "documents .txt": (BYTES, load("d.txt", read_documents)),
    "documents, streamed": (BYTES, load("d.jsonl", lambda path: list(stream_documents(path)))),
    "exam pubmedqa": (BYTES, load("e.json", lambda path: read_exam(path, "pubmedqa"))),
    "exam medqa": (BYTES, load("e.jsonl", lambda path: read_exam(path, "medqa"))),
    "exam mmlu": (BYTES, load("e.csv", lambda path: read_exam(path, "mmlu"))),
    "exam table .csv": (BYTES, load("e.csv", lambda path: read_exam(path, "table"))),
    "exam table .json": (BYTES, load("e.json", lambda path: read_exam(path, "table"))),
    "exam table .parquet": (BYTES | FRAMED, load("e.parquet", lambda path: read_exam(path, "table"))),
    "records of pairs": (BYTES, load("r.jsonl", lambda path: read_records(path, QAPair))),
    "records of exam items": (BYTES, load("r.jsonl", lambda path: read_records(path, ExamItem))),
    "profile": (BYTES, load("p.yaml", load_config)),
    "answers' journal": (BYTES | DAMAGED_ENTRIES, load("j.jsonl", open_journal)),
    "Parquet shard": (BYTES | FRAMED, load("s.parquet", read_shard)),
    "moments": (BYTES | FRAMED, load("moments.safetensors", load_moments)),
}


def build_attack(name: str, inputs: int, report: Callable[[float], None] = lambda seconds: None) -> Callable[[], None]:
    """A hypothesis test of a target; `report` is told how many seconds an input took."""
    strategy, target = TARGETS[name]

    @seed(0)
    @settings(max_examples=inputs, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def attack(value: object) -> None:
        began = time.process_time()  # not the clock's: a busy machine is no hang
        target(value)
        took = time.process_time() - began
        report(took)
        assert took < SLOWEST, f"{took:.0f} seconds"

    return attack


def fuzz(name: str, inputs: int) -> dict:
    """How many inputs a target took, in how many seconds, and what was found ("" for nothing)."""
    times: list[float] = []
    began, finding = time.monotonic(), ""
    try:
        build_attack(name, inputs, times.append)()
    except Exception as error:  # whatever it is, it is what was looked for
        finding = f"{type(error).__name__}: {error} {getattr(error, '__notes__', '')}"[:1000]
    seconds, slowest = time.monotonic() - began, max(times, default=0.0)
    return {"inputs": len(times), "seconds": round(seconds, 1), "slowest": round(slowest, 3), "finding": finding}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="over all targets")
    parser.add_argument("--json", type=Path)
    given_ = parser.parse_args()
    found = {}
    for name in TARGETS:
        found[name] = fuzz(name, -(-given_.inputs // len(TARGETS)))
        print(name, found[name], flush=True)
    found["total"] = {"inputs": sum(row["inputs"] for row in found.values())}
    if given_.json:
        given_.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

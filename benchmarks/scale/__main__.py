"""Does memory grow with the corpus, and what does an item cost?

    python -m benchmarks.scale --json FILE [--sizes 1000 10000 100000]

The two commands that go through a corpus of any size, each in a process of its own for every size:

synthesise  lab documents in JSON Lines -> rubrics and pairs in Parquet shards, a pair a document. Rubric generator and
            teacher are a local endpoint that answers at once: what is measured is what the product itself needs.
score       shards of as many pairs -> shards of scores. The target is an untrained Llama of 16 hidden units, for speed;
            the code is what every target runs through.

peak_mib is the process's largest resident set, by the kernel's count (ru_maxrss). growth is that at the largest size
over that at the one before. bytes_per_* are what lies on disk at the end, the answers' journal apart.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import yaml
from pyarrow import parquet

from benchmarks.engines.endpoint import run_server
from rubric_influence.lab.world import draw_choice, draw_entities, load_field, write_document, write_pair

FIELD, PROFILE = "data/lab/fields/medicine.yaml", "params.yaml"
ENTITIES = 250  # of a world, as a field has names for some 250 only
WINDOW = 512  # documents or pairs of a shard
LAUNCHER = str(Path(__file__).with_name("launcher.py"))
COMMAND = [sys.executable, "-m", "rubric_influence"]
PREPARE = [sys.executable, "-m", "benchmarks.scale.target"]


def draw_worlds(count: int) -> Iterator[tuple]:
    """`count` entities of as many worlds as it takes, each with its world's field and source of chance."""
    field = load_field(FIELD)
    for seed in range(-(-count // ENTITIES)):
        rng = random.Random(seed)
        for entity in draw_entities(field, min(ENTITIES, count - seed * ENTITIES), rng):
            yield field, entity, rng


def write_documents(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number, (field, entity, rng) in enumerate(draw_worlds(count)):
            file.write(json.dumps({"text": f"{write_document(field, entity, rng)} {number}", "title": entity.name}))
            file.write("\n")


def write_pairs(folder: Path, count: int) -> None:
    """Shards of pairs as `synthesise` writes them, of the columns that scoring reads."""
    folder.mkdir()
    rows, shards = [], 0
    for number, (field, entity, rng) in enumerate(draw_worlds(count), start=1):
        question, answer = write_pair(field, entity, draw_choice(field, rng), rng, field.topics)
        rows.append({"id": f"{number:016x}", "question": question, "answer": answer, "problem": ""})
        if len(rows) == WINDOW or number == count:
            parquet.write_table(pa.Table.from_pylist(rows), folder / f"{shards:05d}.parquet")
            rows, shards = [], shards + 1


def run_measured(command: list[str]) -> dict:
    """Seconds and peak memory of a command. Raises RuntimeError with the end of its output where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        launched = [sys.executable, "-I", "-S", LAUNCHER, str(figures), *command]
        ended = subprocess.run(launched, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if ended.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {ended.stdout.decode(errors='replace')[-2000:]}")
        return json.loads(figures.read_text())


def measure_synthesis(count: int, folder: Path) -> dict:
    """Of `count` lab documents, a rubric and a pair each."""
    write_documents(folder / "documents.jsonl", count)
    with run_server(seconds=0.0) as url:
        profile = yaml.safe_load(Path(PROFILE).read_text(encoding="utf-8"))
        for role, name in (("rubric_generator", "rubrics"), ("teacher", "pairs")):
            profile["models"][role] = {"path": name, "engine": "openai", "endpoint": {"base_url": url}}
        profile["budget"]["final_pairs"], profile["synthesis"]["window"] = 1, WINDOW
        (folder / "params.yaml").write_text(yaml.safe_dump(profile), encoding="utf-8")
        out = folder / "out"
        command = [*COMMAND, "synthesise", "--params", str(folder / "params.yaml")]
        found = run_measured([*command, "--documents", str(folder / "documents.jsonl"), "--out", str(out)])
    counts = json.loads((out / "counts.json").read_text(encoding="utf-8"))
    if counts["pairs"]["valid"] != count:
        raise RuntimeError(f"{count} documents led to {counts['pairs']}; a valid pair each was expected")
    return {
        "documents": count,
        **found,
        "cpu_ms_per_record": round(1000 * found["cpu_seconds"] / (2 * count), 3),
        "bytes_per_record": round(count_bytes([out / "rubrics", out / "pairs"]) / (2 * count)),
        "journal_bytes_per_answer": round(count_bytes([out / "answers"]) / (2 * count)),
    }


def measure_scoring(count: int, folder: Path) -> dict:
    """Of `count` lab pairs, along one direction."""
    write_pairs(folder / "pairs", count)
    subprocess.run([*PREPARE, str(folder)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    command = [*COMMAND, "score", "--model", str(folder / "model")]
    command += ["--checkpoint", str(folder / "checkpoint-1"), "--validation", str(folder / "validation.jsonl")]
    found = run_measured([*command, "--samples", str(folder / "pairs"), "--out", str(folder / "scores")])
    rows = sum(parquet.read_metadata(file).num_rows for file in (folder / "scores").glob("*.parquet"))
    if rows != count:
        raise RuntimeError(f"{rows} of {count} pairs have scores")
    return {"pairs": count, **found, "bytes_per_score": round(count_bytes([folder / "scores"]) / count)}


def count_bytes(folders: list[Path]) -> int:
    return sum(file.stat().st_size for folder in folders for file in folder.glob("*"))


PARTS = {"synthesis": measure_synthesis, "scoring": measure_scoring}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--sizes", nargs="+", type=int, default=[1000, 10_000, 100_000])
    arguments = parser.parse_args()
    sizes = sorted(arguments.sizes)
    found = {"machine": {"cores": os.cpu_count(), "load_before": round(os.getloadavg()[0], 2)}}
    for part, measure in PARTS.items():
        found[part] = []
        for size in sizes:
            with tempfile.TemporaryDirectory() as folder:
                found[part].append(measure(size, Path(folder)))
            print(part, found[part][-1], flush=True)
    peaks = {part: [row["peak_mib"] for row in found[part]] for part in PARTS}
    found["growth"] = {part: round(peak[-1] / peak[-2], 3) for part, peak in peaks.items() if len(peak) > 1}
    arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for part, growth in found["growth"].items():
        verdict = "met" if growth <= 1.3 else "NOT MET"
        print(f"{part}: peak memory at {sizes[-1]} over that at {sizes[-2]}: {growth}  <= 1.3  {verdict}")


if __name__ == "__main__":
    main()

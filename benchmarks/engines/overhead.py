"""The share of a synthesis run that is our own code: everything but waiting for the engine.

A real run over lab documents with the lab's models in this process, from loading them to the last shard. The engine's
time is what its calls took; a larger model takes longer, and the share falls.
"""

import json
import random
import tempfile
import time
from pathlib import Path

from rubric_influence.config import load_config
from rubric_influence.lab.world import draw_entities, load_field, write_document
from rubric_influence.records import Document
from rubric_influence.streaming import synthesise_corpus

DOCUMENTS = 2000


def make_documents(field_path: str, count: int) -> list[Document]:
    field, rng = load_field(field_path), random.Random(0)
    return [Document(write_document(field, entity, rng), entity.name) for entity in draw_entities(field, count, rng)]


def measure_overhead() -> dict:
    """Seconds of a run over DOCUMENTS lab documents, one rubric and pair each, and the part not spent in the engine."""
    config = load_config("params.yaml", {"budget": {"final_pairs": 1}})
    documents = make_documents(config.corpus.field, DOCUMENTS)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        counts = synthesise_corpus(documents, config, folder, seed=0, total=len(documents))
        wall = time.perf_counter() - started
        waited = sum(row["seconds"] for row in json.loads(Path(folder, "effort.json").read_text()).values())
    return {
        "own_share": round((wall - waited) / wall, 4),
        "wall_seconds": round(wall, 2),
        "engine_seconds": round(waited, 2),
        "documents": DOCUMENTS,
        "pairs": counts["pairs"],
    }

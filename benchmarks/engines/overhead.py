"""The share of a synthesis run that is our own code: everything but waiting for the engine.

A real run over lab documents with the lab's models in this process, from loading them to the last shard. The engine's
time is what its calls took; a larger model takes longer, and the share falls.
"""

import json
import random
import tempfile
import time
from pathlib import Path

from rubric_influence.core.profiles import load_config
from rubric_influence.core.records import Document
from rubric_influence.lab.world import draw_entities, load_field, write_document
from rubric_influence.synthesis.streaming import synthesise_corpus

WORLDS, ENTITIES = 8, 250


def make_documents(field_path: str, worlds: int) -> list[Document]:
    """Of several worlds, as a field has names for some 250 entities only."""
    field, documents = load_field(field_path), []
    for seed in range(worlds):
        rng = random.Random(seed)
        entities = draw_entities(field, ENTITIES, rng)
        documents += [Document(write_document(field, entity, rng), entity.name) for entity in entities]
    return documents


def measure_overhead() -> dict:
    """Seconds of a run over 2000 lab documents, one rubric and pair each, and the part not spent in the engine."""
    config = load_config("params.yaml", {"budget": {"final_pairs": 1}})
    documents = make_documents(config.corpus.field, WORLDS)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        counts = synthesise_corpus(documents, config, folder, seed=0, total=len(documents))
        wall = time.perf_counter() - started
        waited = sum(row["seconds"] for row in json.loads(Path(folder, "effort.json").read_text()).values())
    return {
        "own_share": round((wall - waited) / wall, 4),
        "wall_seconds": round(wall, 2),
        "engine_seconds": round(waited, 2),
        "documents": len(documents),
        "pairs": counts["pairs"],
    }

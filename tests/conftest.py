"""Fixtures that several test files share."""

import os
import random
from collections.abc import Callable
from pathlib import Path

# Read by torch as it is imported. Two workers of several threads each would wait for each other's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch
from peft import LoraConfig, get_peft_model

from rubric_influence.core.config import Config
from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.core.profiles import load_config, merge
from rubric_influence.core.records import QAPair
from rubric_influence.lab import world
from rubric_influence.lab.networks import build_model
from rubric_influence.lab.standins import train_tokenizer
from rubric_influence.lab.world import Field, load_field
from rubric_influence.models.loading import load_model

REPOSITORY = Path(__file__).resolve().parent.parent

# No test depends on how fast the machine is, so an example may take as long as it likes.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The runs of whole pipelines go first: with several workers, the longest must not be left to the last."""
    items.sort(key=lambda item: item.path.name not in ("test_pipeline.py", "test_pubmedqa.py"))


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """A function from a name within the optional real data to its path; it skips the test where that is absent."""
    root = Path(os.environ.get("RUBRIC_INFLUENCE_DATA", REPOSITORY.parent / "shared" / "data"))

    def find(name: str) -> Path:
        if not (root / name).exists():
            pytest.skip(f"real data absent: no {name} in {root}; set RUBRIC_INFLUENCE_DATA to the folder that holds it")
        return root / name

    return find


@pytest.fixture(scope="session")
def medicine() -> Field:
    return load_field(REPOSITORY / "data/lab/fields/medicine.yaml")


@pytest.fixture(scope="session")
def subword_model(tmp_path_factory) -> Path:
    """A random model over a byte-level BPE, its outputs as wild as bytes can be."""
    folder = tmp_path_factory.mktemp("subword")
    tokenizer = train_tokenizer(["What is the question?", 'The answer is "5 mg", says the rubric.'], vocabulary=320)
    torch.manual_seed(0)
    for part in (build_model(tokenizer, hidden_size=128, layers=2), tokenizer):  # vLLM has no kernel for narrower heads
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def embedder(subword_model, tmp_path_factory) -> Path:
    """A tiny random model of sentence-transformers."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    folder = tmp_path_factory.mktemp("embedders") / "tiny"
    states = Transformer(str(subword_model))
    states.tokenizer.pad_token = states.tokenizer.eos_token
    SentenceTransformer(modules=[states, Pooling(states.get_embedding_dimension())], device="cpu").save(str(folder))
    return folder


@pytest.fixture(scope="session")
def lab_config() -> Callable[..., Config]:
    """A function from nested changes to the lab's profile, made small; paths are absolute, for any working directory.

    All three roles are the shipped base model, loaded as the profile says.
    """
    small = {
        "seeds": [0],
        "corpus": {
            "field": str(REPOSITORY / "data/lab/fields/medicine.yaml"),
            **{"documents": 6, "dev_documents": 2, "validation_entities": 4, "guard_entities": 2},
        },
        "models": {
            role: {"path": str(REPOSITORY / "data/lab/models/medicine-qwen3")}
            for role in ("rubric_generator", "teacher", "target")
        },
        "synthesis": {"batch_size": 16},
        "warmup": {"epochs": 3},
        "influence": {"clusters": 3},
        "rl": {"steps": 3, "documents_per_step": 2, "group_size": 4, "save_every": 1},
        "finetuning": {"epochs": 3},
    }

    def configure(changes: dict | None = None) -> Config:
        return load_config(REPOSITORY / "params.yaml", merge(small, changes or {}))

    return configure


@pytest.fixture(scope="session")
def draw_pairs(medicine) -> Callable[..., list[QAPair]]:
    """A function from a count and a seed to pairs as a competent teacher writes them, of all forms."""

    def draw(count: int, seed: int = 0) -> list[QAPair]:
        rng = random.Random(seed)
        pairs = []
        for slot in range(count):
            entity = world.draw_entity(medicine, rng.choice(medicine.entity_names), rng)
            pair = world.write_pair(medicine, entity, world.draw_choice(medicine, rng), rng, medicine.topics)
            pairs.append(QAPair(*pair, document_id=entity.name, rubric_id="", teacher="world", seed=seed, slot=slot))
        return pairs

    return draw


@pytest.fixture(scope="session")
def write_adapter() -> Callable[..., Path]:
    """A function from a model's folder, a folder to write and a seed to a LoRA adapter, strong enough to be noticed."""

    def write(model: str | Path, out: Path, seed: int = 0, r: int = 4, targets: str | list[str] = "all-linear") -> Path:
        spec = ModelSpec(path=str(model), dtype="float32", attention="eager")
        torch.manual_seed(seed)
        lora = LoraConfig(r=r, lora_alpha=8 * r, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
        get_peft_model(load_model(spec, "cpu"), lora).save_pretrained(out)
        return out

    return write

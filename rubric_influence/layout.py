"""Where every stage reads and writes, relative to the project's root, and the arms that are compared."""

import hashlib
import os
from pathlib import Path

from rubric_influence.config import Config, ModelSpec
from rubric_influence.records import content_id

DOCUMENTS = Path("data/corpus/documents.jsonl")
EXAM = Path("data/corpus/exam.jsonl")
INITIAL = Path("data/initial")
WARMUP = Path("data/warmup")
INFLUENCE = Path("data/influence")
GATE = Path("data/gate")
GENERATORS = Path("data/generators")
FINAL = Path("data/final")
FINETUNED = Path("data/finetuned")
ANSWERS = Path("data/evaluation/answers.parquet")
METRICS = Path("metrics")
PLOTS = Path("plots")

UNTUNED = "untuned"
# Arm -> what its pairs are made from. All have one pair budget.
TUNED_ARMS = {
    "no_rubric": "the teacher sees the document alone",
    "expert_rubric": "fixed rubrics written by hand, before seeing the exam",
    "initial": "rubrics of the generator before training",
    "influence_filtered": "the best half, by influence, of twice as many initial pairs",
    "optimised": "rubrics of the generator after training on influence",
    "privileged_rubric": "fixed rubrics by someone who knows the exam: an upper mark",
}


def list_arms(config: Config) -> list[str]:
    """The arms that a profile fine-tunes; no privileged rubric in the profile, no such arm."""
    return [arm for arm in TUNED_ARMS if arm != "privileged_rubric" or config.prompts.privileged_rubrics]


def seed_folder(root: Path, seed: int) -> Path:
    return root / f"seed-{seed}"


def enter_project() -> Path:
    """Make the project's root the working directory, from wherever in it a notebook was opened, and return it."""
    for folder in [Path.cwd(), *Path.cwd().parents]:
        if (folder / "dvc.yaml").is_file():
            os.chdir(folder)
            return folder
    raise FileNotFoundError(f"no dvc.yaml in {Path.cwd()} or above it; start inside a clone of the project")


def hash_weights(folder: str | Path) -> str:
    """Tells weights from others at the same path: a hash of each safetensors file's size, first and last MiB."""
    parts: list[object] = []
    for file in sorted(Path(folder).glob("*.safetensors")):
        with file.open("rb") as stream:
            head = stream.read(1 << 20)
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - (1 << 20)))
            parts += [file.name, size, hashlib.sha256(head + stream.read()).hexdigest()]
    return content_id(*parts)


def hash_adapter(folder: str | Path) -> str:
    """Tells a LoRA adapter from others at the same path: its weights, and its settings, as alpha scales them."""
    return content_id(hash_weights(folder), Path(folder, "adapter_config.json").read_text(encoding="utf-8"))


def fingerprint(spec: ModelSpec) -> str:
    """Tells a model from every other: what its profile says, and its weights where they are local.

    Of an endpoint only what shapes an answer counts, so that a new price or time limit makes no other model.
    """
    parts = [spec.model_dump(exclude={"endpoint", "adapter"}), hash_weights(spec.path)]
    if spec.adapter:
        parts.append(hash_adapter(spec.adapter))
    if spec.endpoint:
        parts += [spec.endpoint.base_url, spec.endpoint.extra_body]
    return content_id(*parts)

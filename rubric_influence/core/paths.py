"""The files that stages read and write, relative to the project's root, and the arms that are compared."""

import os
from pathlib import Path

from rubric_influence.core.config import Config

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
# Each arm that is fine-tuned, with what its pairs are made from; all arms have the same number of pairs.
TUNED_ARMS = {
    "no_rubric": "the teacher sees the document alone",
    "expert_rubric": "fixed rubrics written by hand, before seeing the exam",
    "initial": "rubrics of the generator before training",
    "influence_filtered": "the best half, by influence, of twice as many initial pairs",
    "optimised": "rubrics of the generator after training on influence",
    "privileged_rubric": "fixed rubrics by someone who knows the exam: an upper mark",
}


def list_arms(config: Config) -> list[str]:
    """The arms that a profile fine-tunes: privileged_rubric only where the profile has privileged rubrics."""
    return [arm for arm in TUNED_ARMS if arm != "privileged_rubric" or config.prompts.privileged_rubrics]


def seed_folder(root: Path, seed: int) -> Path:
    return root / f"seed-{seed}"


def enter_project() -> Path:
    """Change the working directory to the root of the project that it lies in, and return the root."""
    for folder in [Path.cwd(), *Path.cwd().parents]:
        if (folder / "dvc.yaml").is_file():
            os.chdir(folder)
            return folder
    raise FileNotFoundError(f"no dvc.yaml in {Path.cwd()} or above it; start inside a clone of the project")

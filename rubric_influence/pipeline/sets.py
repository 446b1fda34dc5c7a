"""A seed's set of rubrics and pairs, the initial one or an arm's, and its valid ones read from data/."""

from pathlib import Path
from typing import NamedTuple

from rubric_influence.core.files import read_records
from rubric_influence.core.paths import seed_folder
from rubric_influence.core.records import QAPair, Rubric, keep_valid


class ArmSet(NamedTuple):
    """Rubrics and the pairs that they led to, valid or rejected."""

    rubrics: list[Rubric]
    pairs: list[QAPair]


def read_rubrics(root: Path, seed: int) -> list[Rubric]:
    """The valid rubrics of a set, such as that of data/final/optimised."""
    return keep_valid(read_records(seed_folder(root, seed) / "rubrics.jsonl", Rubric))


def read_pairs(root: Path, seed: int) -> list[QAPair]:
    """The valid pairs of a set, those that training may use."""
    return keep_valid(read_records(seed_folder(root, seed) / "pairs.jsonl", QAPair))

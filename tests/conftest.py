"""Fixtures that several test files share."""

import os
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

from rubric_influence.lab.world import Field, load_field

REPOSITORY = Path(__file__).resolve().parent.parent

# No test depends on how fast the machine is, so an example may take as long as it likes.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


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

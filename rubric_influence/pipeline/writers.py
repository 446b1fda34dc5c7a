"""The models that write a stage's rubrics and pairs, and the journals that the stage resumes from."""

from collections.abc import Sequence
from typing import Literal

from rubric_influence.core.config import Config
from rubric_influence.core.fingerprints import fingerprint
from rubric_influence.core.journal import Journal
from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.core.scratch import answers_path, scratch_folder
from rubric_influence.engines.base import Engine
from rubric_influence.engines.open import open_engine
from rubric_influence.synthesis.outcomes import open_ledger
from rubric_influence.synthesis.writing import SynthesisContext, identify


def open_writers(
    stage: Literal["initial", "final"], config: Config, seed: int, asked: Sequence[tuple[ModelSpec, str]]
) -> tuple[list[Engine], SynthesisContext]:
    """An engine for each model and what it is asked for (RUBRICS or PAIRS), and the context that they share.

    An endpoint's answers are kept in scratch/answers. The context's journal keeps those of other engines, in a folder
    of scratch/STAGE that is named by a hash of all that shapes them.
    """
    settings = config.synthesis
    identity = ([fingerprint(spec) for spec, _ in asked], config.prompts, identify(settings), seed)
    journal = Journal(scratch_folder(stage, *identity) / "answers.jsonl")
    ledger = open_ledger(settings)
    kept = Journal(answers_path(stage, seed))
    engines = [open_engine(spec, settings.batch_size, journal=kept, ledger=ledger, what=what) for spec, what in asked]
    return engines, SynthesisContext(config.prompts, settings, seed, journal, ledger)

"""What lab rubrics ask for: shares of topics, question types, registers and styles, since the lab can read them."""

from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd

from rubric_influence.lab.world import QUESTION_TYPES, REGISTERS, STYLES, Field, read_rubric


def tabulate_choices(field: Field, rubrics: Sequence[str]) -> pd.Series:
    """Share of each choice within its kind, indexed by (kind, choice); rubrics that name no choice are left out.

    Every choice that the field offers is listed, with 0 where no rubric makes it.
    """
    choices = [asdict(choice) for text in rubrics if (choice := read_rubric(field, text))]
    shares = {}
    for kind, options in list_options(field).items():
        for option in options:
            made = sum(choice[kind] == option for choice in choices)
            shares[kind, option] = made / len(choices) if choices else 0.0
    return pd.Series(shares)


def list_options(field: Field) -> dict[str, list[str]]:
    return {
        "topic": field.exam_topics + [topic for topic in field.topics if topic not in field.exam_topics],
        "question_type": list(QUESTION_TYPES),
        "register": list(REGISTERS),
        "style": list(STYLES),
    }

"""What the lab's rubrics ask for: the share of each topic, question type, register and style among them."""

from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd

from rubric_influence.lab.world import Field, list_options, read_choice


def tabulate_choices(field: Field, rubrics: Sequence[str]) -> pd.Series:
    """The share within its kind of every choice of the field, by (kind, choice), over the rubrics that state one."""
    choices = [asdict(choice) for text in rubrics if (choice := read_choice(field, text))]
    shares = {
        (kind, option): sum(choice[kind] == option for choice in choices) / max(len(choices), 1)
        for kind, options in list_options(field).items()
        for option in options
    }
    return pd.Series(shares)

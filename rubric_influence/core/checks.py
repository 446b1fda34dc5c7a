"""Checks of what users bring, with messages that name the value, what was expected and the fix."""

import re
from collections.abc import Sequence
from typing import Any

HALF = re.compile("[\ud800-\udfff]")  # JSON's \ud800 without its partner
MOST_LISTED = 20  # problems shown in one message; the rest are counted


class RunStopped(RuntimeError):
    """A run stopped for a reason that its user can mend: the message says what happened, what is kept and the fix."""


def refuse(heading: str, problems: Sequence[str]) -> None:
    """Raise one ValueError for all problems, if there are any."""
    if problems:
        more = [f"and {len(problems) - MOST_LISTED} more"] if len(problems) > MOST_LISTED else []
        raise ValueError("\n  ".join([heading, *problems[:MOST_LISTED], *more]))


def check_text(value: object, name: str) -> str:
    """`value` without outer blanks. Raises ValueError unless it is non-empty text that UTF-8 can hold."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is {value!r}, expected non-empty text")
    if HALF.search(value):
        raise ValueError(f"{name} holds half a surrogate pair, which is no character: {value[:60]!r}; remove it")
    return value.strip()


def check_object(row: object) -> dict[str, Any]:
    """`row`, a value of `read_json_lines`. Raises ValueError unless it is a JSON object."""
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {str(row)[:60]!r}")
    return row

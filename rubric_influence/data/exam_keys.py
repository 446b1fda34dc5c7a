"""Which option is the right one: by its key, its text or its number, told from all rows of an exam together.

A 2 in one row may be the second option or the third, an "A" may be a key or the text of another option. So every way
in which a value can be read is listed, and what is open in one row is settled by the others: a way must fit each row.
"""

from collections.abc import Sequence

from rubric_influence.data.exam_columns import Asked

LETTERS = "abcdefghijklmnopqrstuvwxyz"
NUMBERS = {"numbers from 0", "numbers from 1"}
Kind = tuple[str, bool, bool]  # a value's column, whether it is a number, and whether keys of its options are numbers
Ways = dict[str, int]  # how a value is read -> the option that it then names


def list_ways(value: object, names: Sequence[str], texts: Sequence[str]) -> Ways:
    """All ways to read a value as one of the options. Where a key is a number, numbers are keys and no positions."""
    if isinstance(value, list):
        if len(value) == len(texts) and value.count(1) == 1 and value.count(0) == len(value) - 1:
            return {"flags": value.index(1)}
        value = value[0] if len(value) == 1 else None
    if isinstance(value, bool) or not isinstance(value, int | str):
        return {}
    text, ways = str(value).strip(), {}
    keys = [name.casefold() for name in names] or list(LETTERS[: len(texts)])
    if keys.count(folded := text.casefold()) == 1:
        ways["keys"] = keys.index(folded)
    if text.isdecimal() and len(text) < 4 and not has_numbers(names):
        number = int(text)
        ways |= {f"numbers from {first}": number - first for first in (0, 1) if 0 <= number - first < len(texts)}
    if text in texts:
        ways["texts"] = texts.index(text)
    return ways


def keep_said(ways: Ways, value: object, said: str | None, alone: bool) -> Ways:
    """The ways that agree with what the profile says of them. A value that is not `alone` may be of another kind."""
    if said not in NUMBERS:
        allowed = {said} if said and alone else set(ways)
    else:
        allowed = {said, "keys"} if alone and is_number(value) else ways.keys() - NUMBERS | {said}
    return {way: index for way, index in ways.items() if way in allowed}


def is_number(value: object) -> bool:
    return str(value).strip().isdecimal()


def has_numbers(names: Sequence[str]) -> bool:
    return any(map(str.isdecimal, names))


def find_answers(rows: Sequence[Asked], said: Sequence[str | None]) -> list[int | ValueError]:
    """The right option of each row, or what is wrong with the row. `said`: the `answers_are` of its file.

    Raises ValueError, with the way out, where the rows together leave open how their values are to be read.
    """
    found = [agree(row, way) for row, way in zip(rows, said, strict=True)]
    fitting: dict[Kind, set[str]] = {}  # the ways that fit all rows
    for row, ways in zip(rows, found, strict=True):
        if not isinstance(ways, ValueError):
            for kind, each in zip(list_kinds(row), ways, strict=True):
                fitting[kind] = fitting.get(kind, set(each)) & each.keys()
    answers: list[int | ValueError] = []
    unsettled: list[tuple[Asked, Ways]] = []
    for row, ways in zip(rows, found, strict=True):
        if isinstance(ways, ValueError):
            answers.append(ways)
            continue
        left = set(ways[0].values())
        if len(left) > 1:
            for kind, each in zip(list_kinds(row), ways, strict=True):
                left &= {index for way, index in each.items() if way in fitting[kind]}
            if len(left) != 1:
                unsettled.append((row, ways[0]))
        answers.append(min(left, default=0))
    if unsettled:
        row, open_ways = unsettled[0]
        column, value = row.given[0]
        readings = " or ".join(f"{row.texts[index]!r} ({way})" for way, index in sorted(open_ways.items()))
        raise ValueError(
            f"{column} is {value!r} for the question {row.question[:60]!r}: {readings}? No single way to read {column} "
            f"is left by all questions, and {len(unsettled)} are open; say which it is in corpus.exam_columns, "
            "answers_are: keys, texts, numbers from 0 or numbers from 1"
        )
    return answers


def list_kinds(row: Asked) -> list[Kind]:
    numbered = has_numbers(row.names)
    return [(column, is_number(value), numbered) for column, value in row.given]


def agree(row: Asked, said: str | None) -> list[Ways] | ValueError:
    """The ways of each given value that name the same option as the others, or what is wrong if there are none."""
    if not row.given:
        return ValueError("no right answer is given")
    alone = len(row.given) == 1
    ways = [keep_said(list_ways(value, row.names, row.texts), value, said, alone) for _, value in row.given]
    for (column, value), each in zip(row.given, ways, strict=True):
        if not each:
            options = list(row.names or row.texts)
            return ValueError(f"{column} is {value!r:.100}, expected the key, number or text of one of {options}")
    common = set.intersection(*(set(each.values()) for each in ways))
    if not common:
        said = " but ".join(f"{column} is {value!r:.100}" for column, value in row.given)
        return ValueError(f"{said}; the options are {list(row.texts)}")
    return [{way: index for way, index in each.items() if index in common} for each in ways]

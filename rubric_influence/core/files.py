"""Files read and written: UTF-8 text, JSON, JSON Lines and records. Each file is replaced in one step."""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

Record = TypeVar("Record")


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Yields the name of a file to write; it becomes `path` in one step once it is written.

    A file of that name is therefore whole, whenever a run is killed. Its folder is made if need be.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    yield partial
    partial.replace(path)


def read_text(path: str | Path) -> str:
    """A file's text without a byte order mark. Raises ValueError if it is no UTF-8."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text ({error.reason} at byte {error.start}); convert it to UTF-8") from None


def parse_json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError also for integers of thousands of digits
        raise ValueError(f"not JSON ({error})") from None


def read_json_lines(path: Path) -> Iterator[tuple[int, object]]:
    """Line numbers and values of a JSON Lines file; a value is a ValueError where the line is not JSON."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except ValueError as error:
                yield number, error


def write_json(path: str | Path, values: object) -> None:
    """Write indented JSON, keys in the order given: the same bytes for the same values."""
    with replace_file(path) as partial:
        partial.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Write records as JSON Lines, each with its id first. Returns how many."""
    count = 0
    with replace_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps({"id": record.id, **dataclasses.asdict(record)}, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_records(path: str | Path, kind: type[Record]) -> list[Record]:
    """Read records of one kind. Raises ValueError naming the file, line and what is wrong with it."""
    names = {field.name for field in dataclasses.fields(kind)}
    required = {f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}
    records = []
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error})") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError also for integers of thousands of digits
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: not a {kind.__name__} but {str(row)[:60]!r}")
        row.pop("id", None)
        if not required <= row.keys() <= names:
            wrong = sorted((required - row.keys()) | (row.keys() - names))
            raise ValueError(f"{path}, line {number}: not a {kind.__name__}; missing or unknown keys {wrong}")
        if "options" in row:
            if not isinstance(row["options"], list):
                raise ValueError(f"{path}, line {number}: options is {row['options']!r}, expected a list")
            row["options"] = tuple(row["options"])
        records.append(kind(**row))
    return records

"""Files read and written: UTF-8 text, JSON, JSON Lines and records. Each file is replaced in one step."""

import dataclasses
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rubric_influence.core.records import Record


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to, which is renamed to `path` once the file is whole. Its folder is made if need be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    yield partial
    partial.replace(path)


def read_bytes(path: str | Path) -> bytes:
    """A file's bytes, unpacked if it is a .gz. Raises ValueError for a .gz that cannot be unpacked."""
    content = Path(path).read_bytes()
    try:
        return gzip.decompress(content) if str(path).lower().endswith(".gz") else content
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"not a gzip file ({error})") from None


def read_text(path: str | Path) -> str:
    """A file's text without a byte order mark, unpacked if it is a .gz. Raises ValueError if it is no UTF-8."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text ({error.reason} at byte {error.start}); convert it to UTF-8") from None


def parse_json(text: str) -> object:
    """The value. Raises ValueError for text that is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError also for integers of thousands of digits
        raise ValueError(f"not JSON ({error})") from None


def read_lines(path: str | Path) -> Iterator[str | ValueError]:
    """A file's lines one by one, unpacked if it is a .gz, without byte order marks; an error for one that is no UTF-8.

    Raises ValueError for a .gz that cannot be unpacked.
    """
    path = Path(path)
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            for line in file:
                try:
                    yield line.decode("utf-8-sig")
                except UnicodeDecodeError as error:
                    yield ValueError(f"not UTF-8 text ({error.reason} at byte {error.start}); convert it to UTF-8")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"not a gzip file ({error})") from None


def read_json_lines(path: str | Path) -> Iterator[tuple[int, object]]:
    """Line numbers and values of a JSON Lines file, one by one; a ValueError where a line is no JSON or no UTF-8."""
    for number, line in enumerate(read_lines(path), start=1):
        if isinstance(line, ValueError):
            yield number, line
        elif line.strip():
            try:
                yield number, parse_json(line.rstrip("\n"))
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
    """Read records of one kind. Raises ValueError naming the file, the line and what is wrong with it."""
    records, place = [], f"{path} is"
    try:
        for number, row in read_json_lines(path):
            place = f"{path}, line {number}:"
            records.append(make_record(row, kind))
    except ValueError as error:
        raise ValueError(f"{place} {error}") from None
    return records


def make_record(row: object, kind: type[Record]) -> Record:
    """The record of a value of `read_json_lines`. Raises ValueError where its keys are not the fields of `kind`."""
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, dict):
        raise ValueError(f"not a {kind.__name__} but {str(row)[:60]!r}")
    row.pop("id", None)
    fields = dataclasses.fields(kind)
    required = {field.name for field in fields if field.default is dataclasses.MISSING}
    if wrong := (required - row.keys()) | (row.keys() - {field.name for field in fields}):
        raise ValueError(f"not a {kind.__name__}; missing or unknown keys {sorted(wrong)}")
    for key in {"options", "answers"} & row.keys():
        if not isinstance(row[key], list):
            raise ValueError(f"{key} is {row[key]!r}, expected a list")
        row[key] = tuple(row[key])
    return kind(**row)

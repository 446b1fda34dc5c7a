"""Rows of a file, whatever its form: CSV, TSV, JSON, JSON Lines or Parquet, the text forms also compressed (.gz)."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from rubric_influence.core.files import parse_json, read_json_lines, read_lines, read_text
from rubric_influence.data.folders import DESCRIPTIONS

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
Rows = Iterator[tuple[str, object]]  # where a row is, and its columns by name, or a ValueError for what is no row


def find_suffix(path: Path) -> str:
    """The ending that tells a file's form, in small letters: ".csv" for a.csv and a.CSV.gz."""
    path = Path(path.name.lower())
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix


def list_tables(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of these forms in a folder and its subfolders, but hidden ones and a data set's own description."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if find_suffix(path) in suffixes
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.name not in DESCRIPTIONS
    ]


def read_table(path: Path) -> Rows:
    """Where each row is ("row 2", "line 3") and its columns. Raises ValueError for a file that cannot be read."""
    suffix = find_suffix(path)
    if suffix == ".parquet":
        return read_parquet(path)
    if suffix == ".json":
        return read_json(path)
    if suffix in (".csv", ".tsv"):
        return read_named_cells(path)
    if suffix not in SUFFIXES:
        raise ValueError(f"its name ends in {suffix!r}, expected one of {', '.join(SUFFIXES)}, alone or before .gz")
    return ((f"line {number}", row) for number, row in read_json_lines(path))


def read_cells(path: Path, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Row numbers and cells of a file of separated values, one by one, without empty rows."""
    csv.field_size_limit(2**31 - 1)  # a cell may hold a whole document
    try:
        for number, cells in enumerate(csv.reader(list_lines(path), delimiter=delimiter, strict=True), start=1):
            if cells:
                yield number, cells
    except csv.Error as error:
        raise ValueError(f"not a CSV file ({error})") from None


def list_lines(path: Path) -> Iterator[str]:
    """The lines of `read_lines`. Raises ValueError for the first that is no UTF-8."""
    for number, line in enumerate(read_lines(path), start=1):
        if isinstance(line, ValueError):
            raise ValueError(f"line {number}: {line}")
        yield line


def read_named_cells(path: Path) -> Rows:
    """Rows of a file whose first row names the columns; an empty cell is None.

    A .csv is separated by what its first line has most of: commas, semicolons or tabs.
    """
    first = next(list_lines(path), "")
    cells = read_cells(path, "\t" if find_suffix(path) == ".tsv" else max(",;\t", key=first.count))
    _, names = next(cells, (1, []))
    names = [name.strip() for name in names]
    if len(set(names)) < len(names):
        raise ValueError(f"two columns have one name: {names}; the first row must name the columns")
    for number, row in cells:
        wrong = ValueError(f"{len(row)} cells, expected {len(names)} as in the first row")
        yield (
            f"row {number}",
            dict(zip(names, (c or None for c in row), strict=True)) if len(row) == len(names) else wrong,
        )


def read_json(path: Path) -> Rows:
    """Rows of a list of objects, alone or as the one such value of an object, of a mapping of names to objects, or one.

    Where the file is no JSON but its first line is, its lines are read: publishers call JSON Lines .json too.
    """
    try:
        content = parse_json(read_text(path))
    except ValueError:
        lines = list(read_json_lines(path))
        if not lines or not isinstance(lines[0][1], dict):
            raise
        return ((f"line {number}", row) for number, row in lines)
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list) and isinstance((value or [0])[0], dict)]
        if len(lists) > 1:
            raise ValueError(f"{len(lists)} lists of objects under the keys {list(content)[:20]}, expected one")
        if content and all(isinstance(value, dict) for value in content.values()):
            return ((f"entry {name}", row) for name, row in content.items())
        content = lists[0] if lists else [content]
    if not isinstance(content, list):
        raise ValueError(f"expected a list of objects, found {content!r:.60}")
    return ((f"item {number}", row) for number, row in enumerate(content, start=1))


def read_parquet(path: Path) -> Rows:
    try:
        with parquet.ParquetFile(path) as file:
            batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=256))
            yield from ((f"row {number}", row) for number, row in enumerate((r for b in batches for r in b), start=1))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"not a Parquet file ({error})") from None

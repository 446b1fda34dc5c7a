"""Rows of files with many documents: those of `tables`, Excel's workbooks and the Arrow files of `datasets`."""

import datetime as dt
from pathlib import Path

import pyarrow as pa

from rubric_influence.data import tables
from rubric_influence.data.tables import Rows, find_suffix

WORKBOOKS = (".xlsx", ".xls", ".ods")
SUFFIXES = (*tables.SUFFIXES, ".arrow", *WORKBOOKS)


def read_rows(path: Path) -> Rows:
    """Where each row is and its columns, one by one but for .json and workbooks. Raises ValueError as `read_table`."""
    suffix = find_suffix(path)
    if suffix in WORKBOOKS:
        return read_workbook(path)
    return read_arrow(path) if suffix == ".arrow" else tables.read_table(path)


def read_workbook(path: Path) -> Rows:
    """The rows of all sheets, cells as text; the first row of a sheet names its columns."""
    from python_calamine import CalamineError, CalamineWorkbook

    try:
        with CalamineWorkbook.from_path(path) as book:
            for name in book.sheet_names:
                sheet = book.get_sheet_by_name(name)
                first = sheet.start[0] + 1 if sheet.start else 1  # calamine leaves out empty rows above
                header, *rows = sheet.to_python() or [[]]
                columns = [write_cell(cell) or "" for cell in header]
                if twice := {column for column in columns if column and columns.count(column) > 1}:
                    raise ValueError(f"sheet {name}: two columns are named {', '.join(sorted(twice))}")
                for number, cells in enumerate(rows, start=first + 1):
                    if any(texts := [write_cell(cell) for cell in cells]):
                        row = {column: text for column, text in zip(columns, texts, strict=False) if column}
                        yield f"sheet {name}, row {number}", row
    except (CalamineError, OSError) as error:
        raise ValueError(f"not a readable workbook ({error}); save it as .xlsx without a password") from None


def write_cell(value: object) -> str | None:
    """A cell as text: whole numbers without a point, dates as 2026-01-31; None for an empty one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, dt.datetime) and value.time() == dt.time():
        value = value.date()
    return str(value).strip() or None


def read_arrow(path: Path) -> Rows:
    """The rows of a file of `datasets` (a stream) or of another Arrow file."""
    try:
        with pa.memory_map(str(path)) as file:
            if file.read(6) == b"ARROW1":
                reader = pa.ipc.open_file(file)
                batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
            else:
                file.seek(0)
                batches = iter(pa.ipc.open_stream(file))
            number = 0
            for batch in batches:
                for start in range(0, batch.num_rows, 256):
                    for row in batch.slice(start, 256).to_pylist():
                        number += 1
                        yield f"row {number}", row
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"not an Arrow file ({error})") from None

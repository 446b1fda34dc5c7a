import pyarrow as pa
import pytest
from document_samples import make_workbook
from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.data.row_files import read_rows


def test_cells_of_a_workbook_are_text_and_its_sheets_follow_each_other(tmp_path):
    path = tmp_path / "t.xlsx"
    first = [[None], [None, "text", "year", "share", "day"], [None, " a ", 1999, 0.5, "date:45688"], [], [None, "b"]]
    path.write_bytes(make_workbook(One=first, Two=[["text"], ["c"]], Empty=[]))
    assert list(read_rows(path)) == [
        ("sheet One, row 3", {"text": "a", "year": "1999", "share": "0.5", "day": "2025-01-31"}),
        ("sheet One, row 5", {"text": "b", "year": None, "share": None, "day": None}),
        ("sheet Two, row 2", {"text": "c"}),
    ]


def test_two_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "t.xlsx").write_bytes(make_workbook(S=[["text", "text"], ["a", "b"]]))
    with pytest.raises(ValueError, match="sheet S: two columns are named text"):
        list(read_rows(tmp_path / "t.xlsx"))


@pytest.mark.parametrize("new", [pa.ipc.new_stream, pa.ipc.new_file])
def test_arrow_files_of_both_kinds_give_their_rows(tmp_path, new):
    rows = [{"text": str(number)} for number in range(600)]
    table = pa.Table.from_pylist(rows)
    with new(str(tmp_path / "t.arrow"), table.schema) as file:
        file.write_table(table, max_chunksize=500)
    found = list(read_rows(tmp_path / "t.arrow"))
    assert [row for _, row in found] == rows and found[-1][0] == "row 600"


@given(st.sampled_from([".xlsx", ".xls", ".ods", ".arrow"]), st.binary(max_size=100) | st.just(make_workbook()[:-9]))
def test_any_bytes_are_rows_or_a_value_error(tmp_path_factory, suffix, content):
    path = tmp_path_factory.mktemp("rows") / f"t{suffix}"
    path.write_bytes(content)
    try:
        list(read_rows(path))
    except ValueError as error:
        assert str(error)

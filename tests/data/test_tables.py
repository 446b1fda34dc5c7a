import gzip

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from rubric_influence.data.tables import SUFFIXES, find_suffix, list_tables, read_table


def read(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_table(path))


@pytest.mark.parametrize("separator", [",", ";"])
def test_the_first_line_names_the_columns_and_tells_the_separator(tmp_path, separator):
    text = '\ufeffa, b \n1,\n\n"x\ny",3\n'.replace(",", separator)
    assert read(tmp_path / "t.csv", text) == [("row 2", {"a": "1", "b": None}), ("row 4", {"a": "x\ny", "b": "3"})]


def test_a_tsv_keeps_its_commas(tmp_path):
    assert read(tmp_path / "t.tsv", 'a,c\tb\n1,2\t"say ""no"""\n') == [("row 2", {"a,c": "1,2", "b": 'say "no"'})]


def test_a_row_of_another_length_is_a_fault_of_its_own(tmp_path):
    (_, first), (place, second) = read(tmp_path / "t.csv", "a,b\n1,2\n1,2,3\n")
    assert first == {"a": "1", "b": "2"} and place == "row 3"
    assert isinstance(second, ValueError) and "3 cells, expected 2 as in the first row" in str(second)


ROWS = [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ('[{"a": 1}, {"a": 2}]', ["item 1", "item 2"]),
        ('{"version": "1.1", "data": [{"a": 1}, {"a": 2}]}', ["item 1", "item 2"]),
        ('{"x": {"a": 1}, "y": {"a": 2}}', ["entry x", "entry y"]),
        ('{"a": 1}\n\n{"a": 2}\n', ["line 1", "line 3"]),
    ],
    ids=["a list", "a list within", "a mapping", "JSON Lines"],
)
def test_a_json_file_may_hold_its_rows_as(tmp_path, text, places):
    assert read(tmp_path / "t.json", text) == list(zip(places, ROWS, strict=True))


def test_parquet_and_compressed_lines_give_the_same_rows(tmp_path):
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "t.parquet")
    lines = read(tmp_path / "t.jsonl.gz", gzip.compress(b'{"a": 1}\n{"a": 2}\n'))
    assert [row for _, row in read_table(tmp_path / "t.parquet")] == [row for _, row in lines] == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "a,a\n1,2\n", "two columns have one name"),
        ("t.csv", 'a,b\n"1,2\n', "not a CSV file"),
        ("t.json", "3", "expected a list of objects, found 3"),
        ("t.json", "{", "not JSON"),
        ("t.json", '{"a": [{"b": 1}], "c": [{"d": 1}]}', "2 lists of objects under the keys"),
        ("t.parquet", "PAR1", "not a Parquet file"),
        ("t.csv.gz", "a,b", "not a gzip file"),
        ("t.csv", b"a\n\xff", r"line 2: not UTF-8 text \(invalid start byte at byte 0\); convert it to UTF-8"),
        ("t.xlsx", "", r"its name ends in '.xlsx', expected one of .csv, .tsv"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name, content)


def test_a_folder_gives_its_tables_in_order(tmp_path):
    for name in ("b.CSV", "a/c.json.gz", ".hidden/d.csv", "state.json", "read.me"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in list_tables(tmp_path, SUFFIXES)] == ["c.json.gz", "b.CSV"]
    assert find_suffix(tmp_path / "b.CSV") == ".csv"


@given(st.sampled_from([*SUFFIXES, ".csv.gz"]), st.binary(max_size=100) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_rows_or_a_value_error(tmp_path_factory, suffix, content):
    path = tmp_path_factory.mktemp("table") / f"t{suffix}"
    path.write_bytes(content)
    try:
        rows = list(read_table(path))
    except ValueError:
        return
    assert all(isinstance(place, str) for place, _ in rows)

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.core.files import read_records, write_records
from rubric_influence.core.records import Document, ExamItem, QAPair, Rubric, content_id

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
DOCUMENTS = st.builds(Document, TEXT, TEXT, TEXT)
ITEMS = st.builds(
    ExamItem, TEXT, st.lists(TEXT, min_size=1).map(tuple), st.just(0), st.sampled_from(["validation", "test"]), TEXT
)


def test_content_id_is_the_same_on_every_machine():
    # sha256 of the eight bytes ["a", "1"] by coreutils', first 16 digits
    assert content_id("a", 1) == "b343590635d7675b"


def test_content_id_depends_on_where_one_part_ends():
    assert content_id("ab", "c") != content_id("a", "bc")


def test_a_document_is_known_by_its_text_alone():
    assert Document("t", "one", "a.txt").id == Document("t", "two", "b.txt").id != Document("u", "one", "a.txt").id


def test_an_item_keeps_its_id_when_it_gets_a_split():
    assert ExamItem("q", ("a", "b"), 0, "").id == ExamItem("q", ("a", "b"), 0, "test").id


def test_an_items_answer_is_the_option_at_its_index():
    assert ExamItem("q", ("a", "b"), 1, "test").answer == "b"


def test_two_samples_of_the_same_text_have_two_ids():
    pairs = [QAPair("q", "a", "d", "r", "teacher", seed=0, slot=slot) for slot in (0, 1)]
    rubrics = [Rubric("b", "d", "generator", seed=seed, slot=0) for seed in (0, 1)]
    assert len({record.id for record in pairs + rubrics}) == 4


@given(st.lists(DOCUMENTS, max_size=5), st.lists(ITEMS, max_size=5))
def test_records_survive_writing_and_reading(tmp_path_factory, documents, items):
    folder = tmp_path_factory.mktemp("records")
    assert write_records(folder / "documents.jsonl", documents) == len(documents)
    write_records(folder / "items.jsonl", items)
    assert read_records(folder / "documents.jsonl", Document) == documents
    assert read_records(folder / "items.jsonl", ExamItem) == items


def test_a_file_holds_the_id_first_and_text_as_it_is(tmp_path):
    write_records(tmp_path / "d.jsonl", [Document("naïve", "t")])
    line = (tmp_path / "d.jsonl").read_text(encoding="utf-8")
    assert line.startswith('{"id": "' + Document("naïve").id) and "naïve" in line


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    def records():
        yield Document("new")
        raise KeyboardInterrupt

    path = tmp_path / "d.jsonl"
    write_records(path, [Document("old")])
    with pytest.raises(KeyboardInterrupt):
        write_records(path, records())
    assert read_records(path, Document) == [Document("old")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[" * 100_000, "line 2: not JSON"),
        ("9" * 5000, "line 2: not JSON"),
        ("3", "line 2: not a ExamItem but '3'"),
        ('{"question": "q"}', r"line 2: .*keys \['answer_index', 'options', 'split'\]"),
        ('{"question":"q","options":["a"],"answer_index":0,"split":"test","x":1}', r"line 2: .*keys \['x'\]"),
        ('{"question":"q","options":"ab","answer_index":0,"split":"test"}', "line 2: options is 'ab'"),
    ],
)
def test_what_is_no_record_is_named_by_file_line_and_fault(tmp_path, line, message):
    path = tmp_path / "items.jsonl"
    write_records(path, [ExamItem("q", ("a", "b"), 0, "test")])
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=f"items.jsonl, {message}"):
        read_records(path, ExamItem)


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "d.jsonl").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="d.jsonl, line 1: not UTF-8 text"):
        read_records(tmp_path / "d.jsonl", Document)


@given(st.binary(max_size=200) | st.recursive(st.none() | TEXT, st.lists).map(lambda v: json.dumps(v).encode()))
def test_reading_any_bytes_raises_nothing_but_value_errors(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("records") / "r.jsonl"
    path.write_bytes(content)
    try:
        records = read_records(path, Document)
    except ValueError:
        return
    assert records == []  # neither random bytes nor lists are documents

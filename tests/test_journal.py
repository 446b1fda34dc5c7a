import pytest
from hypothesis import given
from hypothesis import strategies as st

from rubric_influence import journal
from rubric_influence.journal import Journal, scratch_folder

# No lone surrogates: what a tokenizer decodes holds none.
texts = st.text(st.characters(exclude_categories=["Cs"]))


def test_entries_are_there_when_the_journal_is_opened_again(tmp_path):
    first = Journal(tmp_path / "new folder" / "answers.jsonl")
    first.add("a", ["one", "two\nlines \u2028 é"])
    first.add("b", None)
    again = Journal(first.path)
    assert "a" in again and "b" in again and "c" not in again
    assert again["a"] == ["one", "two\nlines \u2028 é"] and again["b"] is None


@given(entries=st.dictionaries(texts, st.lists(texts), min_size=1, max_size=4), data=st.data())
def test_a_crash_at_any_byte_costs_the_unfinished_entry_alone(entries, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("journal") / "answers.jsonl"
    whole, ends = Journal(path), [0]
    for key, value in entries.items():
        whole.add(key, value)
        ends.append(path.stat().st_size)
    cut = data.draw(st.integers(0, ends[-1]))
    path.write_bytes(path.read_bytes()[:cut])
    finished = sum(end <= cut for end in ends[1:])
    opened = Journal(path)
    assert opened.values == dict(list(entries.items())[:finished])
    for key in list(entries)[finished:]:
        opened.add(key, entries[key])
    assert Journal(path).values == entries


@pytest.mark.parametrize("line", [b"not json", b'{"key": "b"}', b"[1]", b"7", b'{"key": [], "value": 1}', b"\xff"])
def test_a_damaged_line_is_refused_with_its_number_and_what_to_do(tmp_path, line):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b'{"key": "a", "value": 1}\n' + line + b"\n")
    with pytest.raises(ValueError, match="answers.jsonl, line 2 is damaged: .*; delete that line, or the whole file"):
        Journal(path)


def test_other_inputs_mean_another_scratch_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "SCRATCH", tmp_path / "scratch")
    folder = scratch_folder("initial", "model", 1)
    assert folder.is_dir() and folder.parent == tmp_path / "scratch" / "initial"
    assert scratch_folder("initial", "model", 1) == folder
    others = [scratch_folder("initial", "model", 2), scratch_folder("final", "model", 1), scratch_folder("initial")]
    assert len({folder, *others}) == 4

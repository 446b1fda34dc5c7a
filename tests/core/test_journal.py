import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.core import scratch
from rubric_influence.core.journal import Journal
from rubric_influence.core.scratch import scratch_folder

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
def test_a_damaged_line_is_left_out_with_a_warning_and_the_others_are_kept(tmp_path, line):
    path = tmp_path / "answers.jsonl"
    Journal(path).add("a", 1)
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.warns(UserWarning, match="answers.jsonl, line 2 is damaged and left out"):
        opened = Journal(path)
    assert opened.values == {"a": 1}
    opened.add("b", 2)
    with pytest.warns(UserWarning):
        assert Journal(path).values == {"a": 1, "b": 2}


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_flipped_bit_passes_for_an_entry(place, bit, tmp_path_factory):
    path = tmp_path_factory.mktemp("journal") / "answers.jsonl"
    written = Journal(path)
    written.add("a", ["what is it ?", "5 mg"])
    written.add("b", 7)
    whole = bytearray(path.read_bytes())
    whole[place % len(whole)] ^= 1 << bit
    path.write_bytes(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = Journal(path).values
    assert found.items() <= {"a": ["what is it ?", "5 mg"], "b": 7}.items() and len(found) < 2


def test_an_entry_of_lone_surrogates_is_kept(tmp_path):
    Journal(tmp_path / "j").add("a", "\ud800 é")
    assert Journal(tmp_path / "j")["a"] == "\ud800 é"


def test_other_inputs_mean_another_scratch_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "SCRATCH", tmp_path / "scratch")
    folder = scratch_folder("initial", "model", 1)
    assert folder.is_dir() and folder.parent == tmp_path / "scratch" / "initial"
    assert scratch_folder("initial", "model", 1) == folder
    others = [scratch_folder("initial", "model", 2), scratch_folder("final", "model", 1), scratch_folder("initial")]
    assert len({folder, *others}) == 4

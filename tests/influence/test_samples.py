"""Samples from JSON Lines as editors and spreadsheets leave them, and from shards and released sets."""

from collections import Counter

import pyarrow as pa
import pytest
from pyarrow import parquet

from rubric_influence.influence.samples import Sample, list_shards, read_samples, read_shard
from rubric_influence.synthesis.release import Layout, make_rows, write_release
from rubric_influence.synthesis.trace import PairTrace


def test_a_byte_order_mark_and_blank_lines_are_accepted(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": 1, "question": "what ?", "answer": "a drug"}\r\n\n \n')
    assert read_samples(path) == [Sample("1", "what ?", "a drug")]


@pytest.mark.parametrize("form", ["pairs", "alpaca"])
def test_a_released_set_can_be_scored_in_the_form_pairs(draw_pairs, lab_config, tmp_path, form):
    pairs = draw_pairs(4)
    rows = make_rows(
        (PairTrace(p, None, None, {"generator": "g", "teacher_model": "t"}, {}, {}) for p in pairs), Counter()
    )
    out = write_release(tmp_path / "out", [rows], Counter(kept=4), "mit", lab_config(), Layout(form))
    (shard,) = list_shards(out / "data")
    if form == "pairs":
        assert read_shard(shard) == [Sample(pair.id, pair.question, pair.answer) for pair in pairs]
    else:
        with pytest.raises(ValueError, match="no column question; .*a release in the form pairs"):
            read_shard(shard)


def test_a_damaged_shard_is_named(tmp_path):
    parquet.write_table(pa.table({"id": ["a"]}), tmp_path / "00000.parquet")
    (tmp_path / "00001.parquet").write_bytes(b"PAR1")
    for path, problem in zip(
        list_shards(tmp_path), ("is no shard of pairs: no column question", "is no shard of pairs"), strict=True
    ):
        with pytest.raises(ValueError, match=f"{path.name} {problem}"):
            read_shard(path)

import json
import sys

import pytest

from benchmarks.scale import __main__ as scale


def test_every_document_is_another(tmp_path):
    scale.write_documents(tmp_path / "documents.jsonl", 300)  # more than one world
    texts = [json.loads(line)["text"] for line in (tmp_path / "documents.jsonl").read_text().splitlines()]
    assert len(set(texts)) == 300


def test_a_command_that_fails_is_told_with_its_output():
    with pytest.raises(RuntimeError, match="failed: no such thing"):
        scale.run_measured([sys.executable, "-c", "import sys; sys.exit('no such thing')"])


def test_a_commands_peak_is_its_own():
    found = scale.run_measured([sys.executable, "-c", "b = bytearray(300 * 2**20)"])
    assert 300 < found["peak_mib"] < 400


@pytest.mark.slow
def test_both_parts_are_measured_and_every_item_is_accounted_for(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scale", "--json", str(tmp_path / "found.json"), "--sizes", "20"])
    scale.main()
    found = json.loads((tmp_path / "found.json").read_text())
    (synthesis,), (scoring,) = found["synthesis"], found["scoring"]
    assert (synthesis["documents"], scoring["pairs"]) == (20, 20)
    assert synthesis["peak_mib"] > 100 and scoring["peak_mib"] > 100 and found["growth"] == {}
    assert synthesis["bytes_per_record"] > 0 and scoring["bytes_per_score"] > 0

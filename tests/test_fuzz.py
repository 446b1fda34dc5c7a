import pytest

from benchmarks.fuzz import TARGETS, fuzz


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_input_crashes_no_parser_and_no_loader(name):
    found = fuzz(name, 100)
    assert found["finding"] == "" and found["inputs"] >= 1


def test_a_crash_is_found(monkeypatch):
    monkeypatch.setitem(TARGETS, "broken", (TARGETS["parse_pair"][0], lambda text: 1 / ("{" not in text)))
    assert "ZeroDivisionError" in fuzz("broken", 500)["finding"]

import json

from rubric_influence.core.files import write_json


def test_figures_are_written_in_the_order_given_and_in_the_same_bytes(tmp_path):
    path = tmp_path / "metrics" / "new" / "figures.json"
    figures = {"seed-1": {"mean": 0.25, "pairs": 3}, "name": "café"}
    write_json(path, figures)
    first = path.read_bytes()
    assert json.loads(first) == figures
    assert first.decode("utf-8").splitlines()[:3] == ["{", '  "seed-1": {', '    "mean": 0.25,']
    assert "café" in first.decode("utf-8") and first.endswith(b"}\n")
    write_json(path, figures)
    assert path.read_bytes() == first


def test_older_figures_are_replaced(tmp_path):
    write_json(tmp_path / "figures.json", {"a": 1, "b": 2})
    write_json(tmp_path / "figures.json", {"c": 3})
    assert json.loads((tmp_path / "figures.json").read_text(encoding="utf-8")) == {"c": 3}

"""Small JSON files of figures that DVC shows and compares."""

import json
from pathlib import Path


def write_metrics(path: str | Path, values: dict) -> None:
    """Write figures as indented JSON, keys in the order given, the same bytes for the same values."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

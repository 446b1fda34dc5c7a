"""Finished work on disk, so that an interrupted stage resumes where it stopped.

DVC deletes a stage's outputs before it runs, so what a stage can resume from lives in a git-ignored folder,
`scratch/<stage>/<hash of everything that shapes the result>`: other inputs, another folder.
"""

import json
from pathlib import Path

from rubric_influence.records import content_id

SCRATCH = Path("scratch")


def scratch_folder(stage: str, *inputs: object) -> Path:
    """The folder, made if need be, that this stage resumes from when it runs again with the same inputs."""
    folder = SCRATCH / stage / content_id(*inputs)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Journal:
    """An append-only file of key -> JSON value. A line that a crash cut short is dropped when it is opened again."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.values: dict[str, object] = {}
        if self.path.exists():
            whole = self.path.read_bytes()
            kept = whole[: whole.rfind(b"\n") + 1]
            if len(kept) < len(whole):
                self.path.write_bytes(kept)
            for number, line in enumerate(kept.split(b"\n")[:-1], start=1):
                try:
                    entry = json.loads(line.decode("utf-8"))
                    self.values[entry["key"]] = entry["value"]
                except (ValueError, KeyError, TypeError):  # ValueError: neither UTF-8 nor JSON
                    raise ValueError(
                        f"{self.path}, line {number} is damaged: {line[:80]!r}; delete that line, or the whole file"
                    ) from None

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def __getitem__(self, key: str) -> object:
        return self.values[key]

    def add(self, key: str, value: object) -> None:
        """Append one entry; it is on disk when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "value": value}, ensure_ascii=False) + "\n")
            file.flush()
        self.values[key] = value

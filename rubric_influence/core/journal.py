"""Finished work as an append-only file: what is in it is not done, or paid for, again."""

import json
import os
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

SYNC_SECONDS = 1.0


class Journal:
    """A dictionary of JSON values in an append-only file; each line is one entry with its checksum.

    When `add` returns, the entry is with the operating system, so a killed process loses none. Once a second, entries
    are forced to the disk, so a power cut costs at most the entries of one second. When the file is opened again, a
    last line that a crash cut short is dropped, and so is, with a warning, a damaged line: that work is done anew.

    While entries are awaited, `hold` occupies a part of the disk, which `add` gives back when the disk is full. So
    there is room for the work that is under way. The error is kept in `full`: the owner then begins nothing more.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.full: OSError | None = None
        self.spare = self.path.with_suffix(self.path.suffix + ".spare")
        self.values: dict[str, Any] = {}
        self.synced = time.monotonic()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        *lines, cut = self.path.read_bytes().split(b"\n") if self.path.exists() else [b""]
        if cut:
            os.truncate(self.path, self.path.stat().st_size - len(cut))
        for number, line in enumerate(lines, start=1):
            try:
                self.values.update([read_entry(line)])
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                message = f"{self.path}, line {number} is damaged and left out; its work is done anew"
                warnings.warn(message, stacklevel=2)

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def add(self, key: str, value: object) -> None:
        """Append one entry. Raises OSError where there is no room for it, with the entries before it unharmed."""
        line = write_entry(key, value)
        try:
            self.append(line)
        except OSError as error:
            self.full = describe_full_disk(self.path, error)
            self.let_go()
            try:
                self.append(line)
            except OSError:
                raise self.full from error
        self.values[key] = value

    def append(self, line: bytes) -> None:
        """Add one line to the file. Raises OSError, with the file as it was, where there is no room for it."""
        with self.path.open("ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                while line:
                    line = line[file.write(line) :]
                if time.monotonic() - self.synced > SYNC_SECONDS:
                    os.fsync(file.fileno())
                    self.synced = time.monotonic()
            except OSError:
                file.truncate(size)  # half a line would spoil the next one
                raise

    def hold(self, size: int) -> None:
        """Take `size` bytes of the disk until `let_go`. Raises OSError where they are not there."""
        try:
            with self.spare.open("wb", buffering=0) as file:
                for _ in range(0, size, 4096):
                    file.write(b"\0" * 4096)  # a sparse file would hold nothing
        except OSError as error:
            self.let_go()
            raise describe_full_disk(self.path, error) from error

    def let_go(self) -> None:
        self.spare.unlink(missing_ok=True)


def write_entry(key: str, value: object) -> bytes:
    """The entry's line. Lone surrogates, which a hosted model may write and UTF-8 cannot hold, are escaped."""
    entry = {"key": key, "value": value}
    entry["sum"] = checksum(entry)
    try:
        return json.dumps(entry, ensure_ascii=False).encode("utf-8") + b"\n"
    except UnicodeEncodeError:
        return json.dumps(entry).encode("ascii") + b"\n"


def read_entry(line: bytes) -> tuple[str, Any]:
    """Key and value. Raises ValueError, KeyError, TypeError, AttributeError or RecursionError for what is no entry."""
    entry = json.loads(line.decode("utf-8"))
    found = entry.pop("sum", None)  # lines of earlier versions have none
    if entry.keys() != {"key", "value"} or not isinstance(entry["key"], str) or found not in (None, checksum(entry)):
        raise ValueError("no entry, or one that does not have its checksum")
    return entry["key"], entry["value"]


def checksum(entry: dict[str, object]) -> str:
    return f"{zlib.crc32(json.dumps(entry).encode('ascii')):08x}"


def describe_full_disk(path: Path, error: OSError) -> OSError:
    cause = os.strerror(error.errno) if error.errno else error
    kept = "what was written before is kept: free some space and run the same command again"
    return OSError(error.errno, f"no room to write to {path} ({cause}); {kept}")

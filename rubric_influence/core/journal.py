"""Finished work as an append-only file: what is in it is not done, or paid for, again."""

import json
import os
import time
import warnings
import zlib
from pathlib import Path

SYNC_SECONDS = 1.0


class Journal:
    """An append-only file of key -> JSON value, a line an entry with a checksum.

    An entry is with the operating system when `add` returns, so that a killed process loses none; it is forced to the
    disk once a second, so that a power cut costs a second's entries at most. A line that a crash cut short is dropped
    when the file is opened again. So is, with a warning, one that was damaged: its work is done anew.

    `hold` takes a part of the disk while entries are awaited: where the disk fills up, what is under way still finds
    room, and `full`, the error, tells the owner to begin nothing more.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.full: OSError | None = None  # the error, once the disk was full
        self.spare = self.path.with_suffix(self.path.suffix + ".spare")
        self.values: dict[str, object] = {}
        self.synced = time.monotonic()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            whole = self.path.read_bytes()
            end = whole.rfind(b"\n") + 1
            if end < len(whole):
                os.truncate(self.path, end)
            for number, line in enumerate(whole[:end].split(b"\n")[:-1], start=1):
                try:
                    key, value = read_entry(line)
                    self.values[key] = value
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    message = f"{self.path}, line {number} is damaged and left out; its work is done anew"
                    warnings.warn(message, stacklevel=2)

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def __getitem__(self, key: str) -> object:
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
    """The entry's line. Lone surrogates, which a hosted model may write and UTF-8 cannot, are escaped."""
    entry = {"key": key, "value": value}
    text = json.dumps(entry | {"sum": checksum(entry)}, ensure_ascii=False)
    try:
        return (text + "\n").encode("utf-8")
    except UnicodeEncodeError:
        return (json.dumps(entry | {"sum": checksum(entry)}) + "\n").encode("ascii")


def read_entry(line: bytes) -> tuple[str, object]:
    """Key and value. Raises ValueError, KeyError or TypeError for a line that `write_entry` did not write.

    Lines of earlier versions have no checksum.
    """
    entry = json.loads(line.decode("utf-8"))
    found = entry.pop("sum", None)
    if entry.keys() != {"key", "value"} or not isinstance(entry["key"], str):
        raise ValueError("not an entry")
    if found is not None and found != checksum(entry):
        raise ValueError("the checksum does not match")
    return entry["key"], entry["value"]


def checksum(entry: dict) -> str:
    return f"{zlib.crc32(json.dumps(entry).encode('ascii')):08x}"


def describe_full_disk(path: Path, error: OSError) -> OSError:
    return OSError(
        error.errno,
        f"no room to write to {path} ({os.strerror(error.errno) if error.errno else error}); what was written before "
        "is kept: free some space and run the same command again",
    )

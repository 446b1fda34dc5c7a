"""What a GGUF file says of itself: its metadata and the shapes of its tensors, read without the tensors.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The reader of the package `gguf` takes 17 seconds
for a vocabulary of 262 thousand tokens, this one half a second.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES

VERSIONS = (2, 3)
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # by value type
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class Header:
    metadata: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]  # of the tensors

    @property
    def architecture(self) -> str:
        return self.metadata["general.architecture"]

    @property
    def weights(self) -> int:
        """How many numbers the tensors hold."""
        return sum(map(math.prod, self.shapes.values()))


def read_header(path: Path) -> Header:
    """The header of a GGUF file. Raises ValueError where it is none, is damaged or ends before its last tensor."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path} is no GGUF file: it does not begin with GGUF")
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with content:
        try:
            return Cursor(content).read_header(path)
        except (struct.error, LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            reason = error if type(error) is ValueError else "damaged"
            raise ValueError(f"{path} cannot be read as GGUF ({reason}); get it anew") from error


class Cursor:
    """A place in a GGUF file; what is read moves it on."""

    def __init__(self, content: mmap.mmap):
        self.content, self.place = content, 4

    def read_header(self, path: Path) -> Header:
        version, tensors, entries = self.read_numbers("IQQ")
        if version not in VERSIONS:
            raise ValueError(f"its version is {version}, expected 2 or 3")
        metadata = {}
        for _ in range(entries):
            key = self.read_string()
            metadata[key] = self.read_value(self.read_numbers("I")[0])
        if not isinstance(metadata.get("general.architecture"), str):
            raise ValueError("it names no general.architecture")
        shapes, end = {}, 0
        for _ in range(tensors):
            name = self.read_string()
            (dimensions,) = self.read_numbers("I")
            shapes[name] = self.read_numbers(f"{dimensions}Q")[::-1]
            kind, offset = self.read_numbers("IQ")
            if kind not in GGML_QUANT_SIZES:
                raise ValueError(f"{name} is of type {kind}, which the package gguf does not know")
            block, size = GGML_QUANT_SIZES[kind]  # an IntEnum, looked up by its number
            end = max(end, offset + math.prod(shapes[name]) // block * size)
        alignment = metadata.get("general.alignment", 32)
        expected = -(-self.place // alignment) * alignment + end
        if len(self.content) < expected:
            raise ValueError(f"it has {len(self.content):,} bytes, its tensors need {expected:,}")
        return Header(metadata, shapes)

    def read_numbers(self, form: str) -> tuple[Any, ...]:
        numbers = struct.unpack_from(f"<{form}", self.content, self.place)
        self.place += struct.calcsize(f"<{form}")
        return numbers

    def read_string(self) -> str:
        (length,) = self.read_numbers("Q")
        start, self.place = self.place, self.place + length
        if self.place > len(self.content):
            raise ValueError("it is cut short")
        return self.content[start : self.place].decode("utf-8")

    def read_value(self, kind: int) -> Any:
        if kind == STRING:
            return self.read_string()
        if kind != ARRAY:
            return self.read_numbers(NUMBERS[kind])[0]
        kind, count = self.read_numbers("IQ")
        if kind in NUMBERS:
            return list(self.read_numbers(f"{count}{NUMBERS[kind]}"))
        if count > len(self.content):  # of strings, each of at least a byte
            raise ValueError("it is cut short")
        return [self.read_value(kind) for _ in range(count)]

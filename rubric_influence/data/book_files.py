"""The text files of an OpenStax book's repository, from a folder or from an archive that is never unpacked."""

import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

BOOKS = "META-INF/books.xml"
PATTERNS = (BOOKS, "collections/*.collection.xml", "modules/*/index.cnxml")
WANTED = re.compile(r"(|.*/)(META-INF/books\.xml|collections/[^/]+\.collection\.xml|modules/[^/]+/index\.cnxml)")
LARGEST = 32 * 2**20  # bytes of one file; the largest known module has 1 MB
ROOM = 2**30  # bytes of all wanted files
UNPACKED = 2**34  # bytes that a tar archive may unpack to, pictures included
BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError)


def read_files(path: Path) -> dict[str, bytes]:
    """Path within the repository, such as modules/m46383/index.cnxml -> content.

    `path` is a folder, or a .zip or .tar.gz, whose repository may lie in a folder of its own. Raises ValueError for
    what cannot be read, has no META-INF/books.xml or is larger than any book.
    """
    try:
        found = list(read_folder(path) if path.is_dir() else read_archive(path))
    except BROKEN as error:
        raise ValueError(f"{path} is no readable folder, .zip or .tar.gz ({type(error).__name__}: {error})") from None
    roots = [root for root, name, _ in found if name == BOOKS]
    if not roots:
        raise ValueError(
            f"no {BOOKS} in {path}; give the repository of an OpenStax book (github.com/openstax/osbooks-...) as a "
            "folder, .zip or .tar.gz, or a folder with documents.jsonl"
        )
    root = min(roots, key=lambda root: (len(root), root))
    return {name: content for place, name, content in found if place == root}


def read_folder(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """The root (""), the name and the content of each wanted file."""
    room = ROOM
    for file in sorted(file for pattern in PATTERNS for file in path.glob(pattern)):
        name = file.relative_to(path).as_posix()
        if not file.resolve().is_relative_to(path.resolve()):
            raise ValueError(f"{file} is a link to outside of the repository; replace it by the file")
        with file.open("rb") as stream:
            content = read_bounded(stream, name, room)
        room -= len(content)
        yield "", name, content


def read_archive(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """The same for a .zip or a .tar, compressed or not."""
    room = ROOM
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if wanted := WANTED.fullmatch(entry.filename):
                    with archive.open(entry) as stream:
                        content = read_bounded(stream, entry.filename, room)
                    room -= len(content)
                    yield wanted[1], wanted[2], content
        return
    unpacked = 0
    with tarfile.open(path) as archive:
        for member in archive:
            if (unpacked := unpacked + member.size) > UNPACKED:
                raise ValueError(f"{path} unpacks to over {UNPACKED // 2**30} GiB, which no book does")
            wanted = WANTED.fullmatch(member.name.removeprefix("./"))
            if wanted and member.isfile() and (file := archive.extractfile(member)):
                content = read_bounded(file, member.name, room)
                room -= len(content)
                yield wanted[1], wanted[2], content


def read_bounded(stream: IO[bytes], name: str, room: int) -> bytes:
    """The stream's content. Raises ValueError where it is larger than LARGEST or than the room that is left."""
    content = stream.read(min(LARGEST, room) + 1)
    if len(content) > min(LARGEST, room):
        raise ValueError(f"{name} is too large for a book: a file may have {LARGEST:,} bytes, all files {ROOM:,}")
    return content

"""A repository reads alike from a folder and from archives, and nothing outside of it or beyond a book's size does."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from book_samples import write_lakes

from rubric_influence.data import book_files
from rubric_influence.data.book_files import read_files


def pack_tar(folder: Path, out: Path, prefix: str = "osbooks-lakes-main/", mode: str = "w:gz") -> Path:
    with tarfile.open(out, mode) as archive:
        archive.add(folder, prefix.rstrip("/") or ".")
    return out


def pack_zip(folder: Path, out: Path, prefix: str = "osbooks-lakes-main/") -> Path:
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, prefix + file.relative_to(folder).as_posix())
    return out


def test_a_folder_and_its_archives_hold_the_same(tmp_path):
    folder = write_lakes(tmp_path / "book")
    (folder / "media").mkdir()
    (folder / "media" / "lake.jpg").write_bytes(b"picture")
    files = read_files(folder)
    assert len(files) == 21 and b"Preface" in files["modules/m0/index.cnxml"]
    for archive in (
        pack_tar(folder, tmp_path / "a.tar.gz"),
        pack_tar(folder, tmp_path / "b.tar", "", "w"),
        pack_zip(folder, tmp_path / "c.zip"),
        pack_zip(folder, tmp_path / "d.zip", ""),
    ):
        assert read_files(archive) == files, archive.name


def test_members_that_point_outside_are_not_followed(tmp_path):
    folder = write_lakes(tmp_path / "book", chapters=1, size=1)
    (tmp_path / "secret").write_text("secret")
    with tarfile.open(pack_tar(folder, tmp_path / "a.tar", "", "w"), "a") as archive:
        for name, kind in (("modules/m8/index.cnxml", tarfile.SYMTYPE), ("modules/m9/index.cnxml", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "../../../secret"
            archive.addfile(member)
        member = tarfile.TarInfo("../modules/m7/index.cnxml")
        member.size = 6
        archive.addfile(member, io.BytesIO(b"secret"))
    assert read_files(tmp_path / "a.tar") == read_files(folder)
    (folder / "modules/m8").mkdir()
    (folder / "modules/m8/index.cnxml").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="m8/index.cnxml is a link to outside of the repository"):
        read_files(folder)


@pytest.mark.parametrize("pack", [pack_tar, pack_zip, lambda folder, out: folder])
def test_a_file_larger_than_any_book_is_refused(tmp_path, monkeypatch, pack):
    folder = write_lakes(tmp_path / "book", chapters=1, size=1)
    source = pack(folder, tmp_path / "archive")
    monkeypatch.setattr(book_files, "LARGEST", 500)
    with pytest.raises(ValueError, match="m1/index.cnxml is too large for a book: a file may have 500 bytes"):
        read_files(source)
    monkeypatch.undo()
    monkeypatch.setattr(book_files, "ROOM", 1500)
    with pytest.raises(ValueError, match="all files 1,500"):
        read_files(source)


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path):
    member = tarfile.TarInfo("media/lake.jpg")
    member.size = 2**40
    (tmp_path / "a.tar").write_bytes(member.tobuf() + b"\0" * 1024)
    with pytest.raises(ValueError, match="unpacks to over 16 GiB"):
        read_files(tmp_path / "a.tar")


@pytest.mark.parametrize("keep", [0, 100, 1500])
def test_a_broken_archive_is_told(tmp_path, keep):
    for pack in (pack_tar, pack_zip):
        archive = pack(write_lakes(tmp_path / pack.__name__), tmp_path / f"{pack.__name__}.archive")
        archive.write_bytes(archive.read_bytes()[:keep])
        with pytest.raises(ValueError, match=r"archive is no readable folder, .zip or .tar.gz \(\w+: "):
            read_files(archive)


def test_a_folder_or_archive_without_a_book_is_told(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", pack_tar(tmp_path / "empty", tmp_path / "a.tar.gz")):
        with pytest.raises(ValueError, match=r"no META-INF/books.xml in .*; give the repository of an OpenStax book"):
            read_files(path)

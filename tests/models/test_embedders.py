"""A tiny model of sentence-transformers: its vectors, and what is refused before any of its code or pickles is read."""

import json
import shutil

import numpy as np
import pytest

from rubric_influence.models import embedders
from rubric_influence.models.embedders import MODULES, check_embedder, load_embedder

TEXTS = ["What is the question?", "The answer is 5 mg.", "What is the question?"]


@pytest.fixture
def folder(embedder, tmp_path):
    """A copy, to break."""
    return shutil.copytree(embedder, tmp_path / "tiny")


def test_texts_become_unit_vectors_that_any_load_gives_again(embedder):
    vectors = load_embedder(str(embedder))(TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (3, 128)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-6)
    assert vectors[0] @ vectors[2] == pytest.approx(1.0) and vectors[0] @ vectors[1] < 0.999
    assert load_embedder(str(embedder))(TEXTS).tobytes() == vectors.tobytes()


def test_what_is_no_embedder_is_refused_before_it_is_loaded(folder, subword_model):
    assert check_embedder(str(folder)) == folder and check_embedder("owner/name") is None
    with pytest.raises(ValueError, match="no model folder at /no/such.*check the path"):
        check_embedder("/no/such")
    with pytest.raises(ValueError, match="has no modules.json, so it is no model of sentence-transformers; give one"):
        check_embedder(str(subword_model))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"lacks weights in .safetensors; pytorch_model.bin is a pickle.*; write them"):
        check_embedder(str(folder))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors", b"cut", "the embedder in .* cannot be read"),
        (MODULES, b"{", "the embedder in .* cannot be read"),
        (MODULES, json.dumps([{"path": "", "type": "code.Module"}]).encode(), "cannot be read: .*code.Module"),
    ],
)
def test_broken_files_and_a_models_own_code_are_refused(folder, file, content, message):
    (folder / "code.py").write_text("raise SystemExit('the code of a model was run')\n")
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_embedder(str(folder))


def test_of_a_hub_model_neither_pickles_nor_code_are_downloaded(embedder, subword_model, monkeypatch):
    asked = []

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        if name == "owner/none":
            raise OSError("404")
        return str(embedder if name == "owner/name" else subword_model)

    monkeypatch.setattr(embedders, "snapshot_download", snapshot)
    assert load_embedder("owner/name")(TEXTS).shape == (3, 128)
    assert asked == [("owner/name", ["*.json", "*.txt", "*.model", "*.safetensors"])]
    with pytest.raises(ValueError, match="^the embedder owner/other has no modules.json"):
        load_embedder("owner/other")
    with pytest.raises(ValueError, match=r"owner/none is no local folder, and the hub gave no embedder .*\(404\)"):
        load_embedder("owner/none")

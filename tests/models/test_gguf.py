import json
from types import SimpleNamespace

import pytest
import torch
from gguf_samples import TEXTS, write_gguf
from transformers import AutoModelForCausalLM

from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.models import gguf
from rubric_influence.models.examples import encode
from rubric_influence.models.gguf import convert
from rubric_influence.models.loading import load_model, load_tokenizer


@pytest.fixture
def file(tmp_path):
    return write_gguf(tmp_path / "tiny.gguf")


def test_a_folder_gives_the_logits_of_its_file(file, tmp_path):
    assert convert(file, tmp_path / "out")
    spec = ModelSpec(path=str(tmp_path / "out"), dtype="float32")
    model, tokenizer = load_model(spec), load_tokenizer(spec)
    assert tokenizer.decode(tokenizer(TEXTS[0])["input_ids"]) == TEXTS[0]
    ids = torch.tensor([encode(tokenizer, "What does the heart do?", "It pumps blood.").input_ids])
    assert ids[0, 0] == 0 and ids[0, -1] == 1  # the template's <s> and </s>
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).eval()
    assert torch.equal(model(ids).logits, expected(ids).logits)
    assert model.generation_config.eos_token_id == [1] and tokenizer.model_max_length == 64


def test_what_is_there_is_not_made_again_and_something_else_is_not_overwritten(file, tmp_path):
    assert convert(file, tmp_path / "out") and not convert(file, tmp_path / "out")
    with pytest.raises(ValueError, match="was made of .*float32.*not of .*bfloat16"):
        convert(file, tmp_path / "out", "bfloat16")
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="was made of something else"):
        convert(file, tmp_path / "mine")


def test_the_end_token_can_be_replaced_by_a_token(file, tmp_path):
    convert(file, tmp_path / "out", end="<s>", pad="</s>")
    tokenizer = load_tokenizer(ModelSpec(path=str(tmp_path / "out")))
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>")
    with pytest.raises(ValueError, match="'<end>' is no token of the file's vocabulary; its end token is '</s>'"):
        convert(file, tmp_path / "other", end="<end>")


@pytest.mark.parametrize(
    "settings, problem",
    [
        ({"architecture": "jurassic"}, "of the architecture 'jurassic', which transformers does not read from GGUF"),
        ({"architecture": "qwen2_moe"}, "of the architecture 'qwen2_moe', which transformers does not read from GGUF"),
        ({"split": "unheard-of"}, "its text is split as 'unheard-of'; known are gpt-2, smollm"),
        ({"expert_shared_count": 2}, "settings that transformers does not read.*expert_shared_count"),
        ({"left_out": "blk.1.ffn_up"}, "would be left out or stay random"),
    ],
)
def test_what_cannot_be_converted_faithfully_is_refused(tmp_path, settings, problem):
    file = write_gguf(tmp_path / "odd.gguf", **settings)
    with pytest.raises(ValueError, match=problem):
        convert(file, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("kept", [0, 3, 20, 500, -100])
def test_a_file_that_is_cut_or_none_is_refused(file, tmp_path, kept):
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:kept] if kept else b"no model")
    with pytest.raises(ValueError, match=r"is no GGUF file|cannot be read as GGUF \(.*\); get it anew"):
        convert(tmp_path / "cut.gguf", tmp_path / "out")
    with pytest.raises(ValueError, match="no GGUF file at"):
        convert(tmp_path / "nothing.gguf", tmp_path / "out")


def test_too_little_disk_or_memory_is_told_before_anything_is_written(file, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "SPARE", 1 << 62)
    with pytest.raises(ValueError, match="GB of disk, .* GB are free"):
        convert(file, tmp_path / "out")
    monkeypatch.setattr(gguf, "SPARE", 0)
    monkeypatch.setattr(gguf.psutil, "virtual_memory", lambda: SimpleNamespace(available=1))
    with pytest.raises(ValueError, match="GB of memory, .* GB are free"):
        convert(file, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("role", ["rubric_generator", "teacher", "target"])
@pytest.mark.parametrize("name", ["tiny.gguf", "models/tiny.GGUF"])
def test_a_profile_that_names_a_gguf_file_is_told_how_to_make_a_folder(lab_config, role, name):
    command = rf"models\.{role}.*rubric-influence model convert {name} {name[:-5]}\)"
    with pytest.raises(ValueError, match=f"(?s){command}"):
        lab_config({"models": {role: {"path": name}}})


def test_an_endpoint_may_call_its_model_by_the_name_of_a_gguf_file():
    assert ModelSpec(path="tiny.gguf", engine="openai", endpoint={"base_url": "http://127.0.0.1:8102/v1"})


def test_the_folder_says_what_it_was_made_of(file, tmp_path):
    convert(file, tmp_path / "out", "bfloat16")
    made_of = json.loads((tmp_path / "out/source.json").read_text())
    assert made_of["gguf"] == "tiny.gguf" and made_of["dtype"] == "bfloat16"

import shutil

import pytest
import torch

from rubric_influence import models
from rubric_influence.config import ModelSpec
from rubric_influence.lab.models import build_model, build_tokenizer
from rubric_influence.lab.world import load_field
from rubric_influence.models import load_model, load_tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a tiny model and its tokenizer, and the model's weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = build_tokenizer(load_field("data/lab/fields/medicine.yaml"))
    torch.manual_seed(0)
    model = build_model(tokenizer, hidden_size=16, layers=2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model.state_dict()


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of that folder, to break."""
    return shutil.copytree(saved[0], tmp_path / "tiny")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_model_comes_back_with_its_weights_in_the_wanted_dtype(saved, dtype):
    folder, weights = saved
    model = load_model(ModelSpec(path=str(folder), dtype=dtype, attention="eager"), device="cpu")
    assert not model.training
    assert model.config._attn_implementation == "eager"
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, weights[name].to(getattr(torch, dtype)), rtol=0, atol=0)


def test_the_default_device_is_cuda_where_there_is_one(saved):
    model = load_model(ModelSpec(path=str(saved[0])))
    assert model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_the_tokenizer_pads_on_the_left(folder):
    batch = load_tokenizer(ModelSpec(path=str(folder)))(["the", "the dose"], padding=True)
    assert batch["attention_mask"] == [[0, 1], [1, 1]]


def test_a_tokenizer_without_a_padding_token_pads_with_its_end(folder):
    tokenizer = load_tokenizer(ModelSpec(path=str(folder)))
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    assert load_tokenizer(ModelSpec(path=str(folder))).pad_token == "<|end|>"


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
@pytest.mark.parametrize("path", ["./missing", "/missing/model", "a/b/c"])
def test_a_missing_folder_is_named(load, path):
    with pytest.raises(ValueError, match=f"no model folder at {path}.*relative to"):
        load(ModelSpec(path=path))


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_name_that_the_hub_does_not_give_is_explained(load, monkeypatch):
    monkeypatch.setattr(models.hub, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="nobody/nothing at revision v1 is no local folder.*HF_HUB_OFFLINE is set"):
        load(ModelSpec(path="nobody/nothing", revision="v1"))


def test_a_folder_without_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="has no tokenizer .*save_pretrained"):
        load_tokenizer(ModelSpec(path=str(folder)))


def test_a_tokenizer_without_chat_template_is_refused(folder):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        load_tokenizer(ModelSpec(path=str(folder)))


def test_pickled_weights_are_refused(folder, saved):
    (folder / "model.safetensors").unlink()
    torch.save(saved[1], folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no \.safetensors weights; \['pytorch_model.bin'\] are pickles"):
        load_model(ModelSpec(path=str(folder)))


def test_a_folder_without_a_config_is_refused(folder):
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="model_type. key in its config.json"):
        load_model(ModelSpec(path=str(folder)))


def test_weights_that_lack_a_part_of_the_model_are_refused(folder):
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(
        config.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3').replace(
            '"full_attention"\n  ]', '"full_attention",\n    "full_attention"\n  ]'
        )
    )
    with pytest.raises(ValueError, match=r"lack \['model.layers.2"):
        load_model(ModelSpec(path=str(folder)))


def test_attention_that_is_not_installed_is_named(saved):
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match="flash_attention_2.*try sdpa"):
            load_model(ModelSpec(path=str(saved[0]), attention="flash_attention_2"))
    else:
        pytest.skip("flash_attn is installed here")

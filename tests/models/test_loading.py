import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.lab.networks import build_model, build_tokenizer
from rubric_influence.lab.world import load_field
from rubric_influence.models import loading as models
from rubric_influence.models.chat import PLAIN_TEMPLATE
from rubric_influence.models.loading import load_model, load_tokenizer


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


def test_a_tokenizer_without_chat_template_gets_the_plain_one(folder):
    (folder / "chat_template.jinja").unlink()
    assert load_tokenizer(ModelSpec(path=str(folder))).chat_template.endswith(PLAIN_TEMPLATE)


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


def test_an_adapter_is_merged_as_w_plus_alpha_over_r_b_a_or_kept_beside(saved, write_adapter, tmp_path):
    folder, weights = saved
    adapter = write_adapter(folder, tmp_path / "adapter", targets=["q_proj"])
    spec = ModelSpec(path=str(folder), dtype="float32", attention="eager", adapter=str(adapter))
    factors = load_file(adapter / "adapter_model.safetensors")
    a, b = (factors[f"base_model.model.model.layers.1.self_attn.q_proj.lora_{side}.weight"] for side in "AB")
    merged, beside = load_model(spec, "cpu"), load_model(spec, "cpu", merge=False)
    name = "model.layers.1.self_attn.q_proj.weight"
    torch.testing.assert_close(merged.state_dict()[name], weights[name] + 8 * b @ a)
    assert merged.state_dict().keys() == weights.keys()
    assert torch.equal(beside.model.layers[1].self_attn.q_proj.base_layer.weight, weights[name])
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        torch.testing.assert_close(merged(tokens).logits, beside(tokens).logits)


def test_what_is_no_adapter_of_this_model_is_refused(saved, write_adapter, tmp_path):
    folder = saved[0]
    spec = ModelSpec(path=str(folder), dtype="float32", attention="eager", adapter=str(tmp_path / "adapter"))
    with pytest.raises(ValueError, match=r"no LoRA adapter: it has no adapter_config.json and no adapter_model"):
        load_model(spec, "cpu")
    adapter = write_adapter(folder, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    factors = load_file(file)
    lacking = dict(list(factors.items())[1:])
    save_file(lacking, file)
    with pytest.raises(ValueError, match="does not fit .*: only one has"):
        load_model(spec, "cpu")
    save_file({name: torch.zeros(3, 3) for name in factors}, file)
    with pytest.raises(ValueError, match="the adapter in .* does not fit"):
        load_model(spec, "cpu")

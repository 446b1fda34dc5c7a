import pytest
from conftest import build_lora_model
from peft import LoraConfig, get_peft_model

from rubric_influence.influence.layers import Unbatchable, scored_layers, scored_parameters
from rubric_influence.lab.networks import build_model


def test_factors_are_the_models_trainable_parameters(warmed):
    model, _, _ = warmed
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {name: id(f.weight) for name, f in scored_layers(model).items()} == {n: id(p) for n, p in trainable.items()}


@pytest.mark.parametrize(
    ("options", "part", "linear"),
    [
        (dict(use_dora=True), "self_attn.q_proj.lora_magnitude_vector.default.weight", False),
        (dict(lora_bias=True), "self_attn.q_proj.lora_B.default.bias", True),
        (dict(modules_to_save=["lm_head"]), "lm_head.modules_to_save.default.weight", True),
        (dict(modules_to_save=["embed_tokens"]), "embed_tokens.modules_to_save.default.weight", False),
        (dict(trainable_token_indices=[3]), "embed_tokens.token_adapter.trainable_tokens_delta.default", False),
    ],
)
def test_all_of_an_adapter_is_scored_whether_or_not_it_is_trainable(tokenizer, options, part, linear):
    base = build_lora_model(tokenizer, "llama").unload()
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], **options))
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any(name.endswith(part) for name in trainable)
    assert list(scored_parameters(model)) == trainable
    assert list(scored_parameters(model.requires_grad_(False))) == trainable
    if linear:
        assert list(scored_layers(model)) == trainable
    else:
        with pytest.raises(Unbatchable, match=f"{part}.* are trained and not of a linear layer"):
            scored_layers(model)


def test_frozen_model_without_lora_is_refused(tokenizer):
    model = build_lora_model(tokenizer, "llama").unload().requires_grad_(False)
    with pytest.raises(ValueError, match="LlamaForCausalLM has no LoRA layer and nothing in it is trainable; load"):
        scored_layers(model)


def test_two_active_adapters_are_refused(tokenizer):
    model = build_lora_model(tokenizer, "llama")
    model.add_adapter("other", LoraConfig(target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match=r"are \['default', 'other'\]; activate one"):
        scored_layers(model)


def test_without_lora_the_trainable_linear_layers_are_scored(tokenizer):
    model = build_model(tokenizer, "llama", hidden_size=32, layers=2).requires_grad_(False)
    for layer in model.model.layers:
        layer.mlp.requires_grad_(True)
    found = scored_parameters(model)
    assert list(found) == [
        f"model.layers.{i}.mlp.{part}_proj.weight" for i in (0, 1) for part in ("gate", "up", "down")
    ]
    assert all(parameter.requires_grad for parameter in found.values())


def test_norms_and_tied_weights_are_scored_once_and_are_of_no_linear_layer(tokenizer):
    model = build_model(tokenizer, "llama", hidden_size=32, layers=1).requires_grad_(False)
    model.model.norm.requires_grad_(True)
    assert list(scored_parameters(model)) == ["model.norm.weight"]
    with pytest.raises(Unbatchable, match="model.norm.weight are trained and not of a linear layer"):
        scored_layers(model)
    model.model.norm.requires_grad_(False)
    model.lm_head.requires_grad_(True)  # tied to the embeddings
    assert list(scored_parameters(model)) == ["model.embed_tokens.weight"]
    with pytest.raises(Unbatchable, match="or tied to another layer's"):
        scored_layers(model)

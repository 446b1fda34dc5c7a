import pytest
from conftest import build_lora_model
from peft import LoraConfig, get_peft_model

from rubric_influence.influence.layers import scored_layers, scored_parameters
from rubric_influence.lab.networks import build_model


def test_factors_are_the_models_trainable_parameters(warmed):
    model, _, _ = warmed
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {name: id(f.weight) for name, f in scored_layers(model).items()} == {n: id(p) for n, p in trainable.items()}


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (dict(use_dora=True), "lora_magnitude_vector.default"),
        (dict(lora_bias=True), "lora_B.default"),
        (dict(modules_to_save=["lm_head"]), "lm_head.modules_to_save.default.weight"),
    ],
)
def test_adapter_with_more_than_lora_factors_is_refused(tokenizer, options, part):
    base = build_lora_model(tokenizer, "llama").unload()
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], **options))
    with pytest.raises(ValueError, match=f"{part}.* adapted or trainable too; fine-tune with plain LoRA"):
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


def test_trainable_norms_and_tied_embeddings_are_refused_by_name(tokenizer):
    model = build_model(tokenizer, "llama", hidden_size=32, layers=1).requires_grad_(False)
    model.model.norm.requires_grad_(True)
    with pytest.raises(ValueError, match="model.norm.weight are trainable too and are not of one.* freeze them"):
        scored_layers(model)
    model.model.norm.requires_grad_(False)
    model.lm_head.requires_grad_(True)  # tied to the embeddings
    with pytest.raises(ValueError, match="model.embed_tokens.weight, lm_head.weight .*are tied to another layer"):
        scored_layers(model)

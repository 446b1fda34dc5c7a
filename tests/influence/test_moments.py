import dataclasses

import pytest
import torch
from accelerate import Accelerator
from conftest import LEARNING_RATE, build_lora_model, draw_examples, warm_up
from peft import PeftModel
from safetensors.torch import save_file
from torch import nn

from rubric_influence.influence.layers import scored_layers
from rubric_influence.influence.moments import (
    AdamMoments,
    capture_moments,
    load_moments,
    match_moments,
    normalise_name,
    save_moments,
)


def small_moments(**changes):
    values = dict(exp_avg={"w": torch.ones(2)}, exp_avg_sq={"w": torch.ones(2)}, step=3, betas=(0.9, 0.99), eps=1e-8)
    return AdamMoments(**values | dict(learning_rate=1e-3) | changes)


def equal(one, other):
    assert one.exp_avg.keys() == other.exp_avg.keys()
    scalars = [(m.step, m.betas, m.eps, m.learning_rate) for m in (one, other)]
    return scalars[0] == scalars[1] and all(
        torch.equal(one.exp_avg[n], other.exp_avg[n]) and torch.equal(one.exp_avg_sq[n], other.exp_avg_sq[n])
        for n in one.exp_avg
    )


def test_moments_are_those_of_hand_computed_steps():
    # Two steps with gradients 1 then 3, betas (0.5, 0.75):
    # m = 0.5*(0.5*1) + 0.5*3 = 1.75;  v = 0.75*(0.25*1) + 0.25*9 = 2.4375
    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.5, 0.75), eps=1e-3)
    for gradient in (1.0, 3.0):
        model.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
    moments = capture_moments(model, optimizer, learning_rate=0.05)
    assert moments.exp_avg["weight"].item() == 1.75
    assert moments.exp_avg_sq["weight"].item() == 2.4375
    assert (moments.step, moments.betas, moments.eps, moments.learning_rate) == (2, (0.5, 0.75), 1e-3, 0.05)


def test_moments_go_to_their_parameter_and_not_by_order(warmed):
    model, optimizer, moments = warmed  # the optimizer holds all lora_B before all lora_A
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(moments.exp_avg[name], optimizer.state[parameter]["exp_avg"])
            assert torch.equal(moments.exp_avg_sq[name], optimizer.state[parameter]["exp_avg_sq"])
    assert moments.step == 6


def test_captured_moments_do_not_change_with_later_steps(tokenizer):
    model = build_lora_model(tokenizer, "qwen3")
    examples = draw_examples(tokenizer, 16, seed=1)
    optimizer = warm_up(model, examples, steps=1)
    moments = capture_moments(model, optimizer, LEARNING_RATE)
    before = {name: tensor.clone() for name, tensor in moments.exp_avg.items()}
    optimizer.step()  # no gradients, but decay groups: state is untouched
    model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    optimizer.step()
    assert all(torch.equal(before[name], moments.exp_avg[name]) for name in before)
    assert capture_moments(model, optimizer, LEARNING_RATE).step == 2


def test_accelerate_wrapped_optimizer_gives_the_same_moments(tokenizer):
    examples = draw_examples(tokenizer, 16, seed=1)
    captured = []
    for wrap in (False, True):
        model = build_lora_model(tokenizer, "llama")
        torch.manual_seed(0)
        optimizer = warm_up(model, examples, steps=2)
        if wrap:
            model, optimizer = Accelerator(cpu=True).prepare(model, optimizer)
        captured.append(capture_moments(model, optimizer, LEARNING_RATE))
    assert equal(*captured)


def test_saved_moments_are_read_back_as_they_were(warmed, tmp_path):
    _, _, moments = warmed
    save_moments(tmp_path / "made" / "moments.safetensors", moments)
    assert equal(load_moments(tmp_path / "made" / "moments.safetensors"), moments)


def test_saved_moments_fit_the_adapter_that_peft_saved_and_loaded(warmed, tokenizer, tmp_path):
    model, _, moments = warmed
    save_moments(tmp_path / "moments.safetensors", moments)
    model.save_pretrained(tmp_path)
    base = build_lora_model(tokenizer, model.get_base_model().config.model_type).unload()
    loaded = PeftModel.from_pretrained(base, tmp_path, adapter_name="warmup", is_trainable=False)
    matched = match_moments(load_moments(tmp_path / "moments.safetensors"), loaded)
    assert list(matched.exp_avg) == list(scored_layers(loaded))
    for name, tensor in matched.exp_avg.items():
        assert torch.equal(tensor, moments.exp_avg[name.replace(".warmup.", ".default.")])


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "module.base_model.model.model.layers.0.self_attn.q_proj.lora_A.warmup.weight",
        "_orig_mod.model.layers.0.self_attn.q_proj.lora_A.default.weight",
    ],
)
def test_names_that_differ_by_wrapper_or_adapter_alone_are_one(name):
    assert normalise_name(name) == "model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("q_proj.lora_B.default.bias", "q_proj.lora_B.bias"),
        ("q_proj.lora_magnitude_vector.default.weight", "q_proj.lora_magnitude_vector.weight"),
        ("embed_tokens.lora_embedding_A.default", "embed_tokens.lora_embedding_A"),
        ("lm_head.modules_to_save.default.weight", "lm_head.modules_to_save.weight"),
        ("head.modules_to_save.default.dense.weight", "head.modules_to_save.dense.weight"),
        ("token_adapter.trainable_tokens_delta.default", "token_adapter.trainable_tokens_delta"),
        ("q_proj.base_layer.bias", "q_proj.base_layer.bias"),
        ("experts.base_layer.lora_A.default.weight", "experts.base_layer.lora_A.weight"),
    ],
)
def test_every_name_of_peft_loses_its_adapters_name(name, expected):
    assert normalise_name("base_model.model." + name) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(exp_avg={}, exp_avg_sq={}), "there are no moments"),
        (dict(step=0), "moments are of step 0; capture them after at least one"),
        (dict(learning_rate=0.0), "learning_rate is 0.0; give the epoch's mean"),
        (dict(betas=(0.9, 1.0)), r"betas are \(0.9, 1.0\) and eps 1e-08"),
        (dict(exp_avg={"u": torch.ones(2)}), "two moments differ in names or shapes: u, w"),
        (dict(exp_avg={"w": torch.tensor([1.0, float("nan")])}), "non-finite or negative moments of w; the warm-up"),
        (dict(exp_avg_sq={"w": torch.tensor([1.0, -1.0])}), "non-finite or negative moments of w"),
    ],
)
def test_impossible_moments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small_moments(**changes)


def rename(moments, change):
    """The moments with both dictionaries changed by one function."""
    return dataclasses.replace(moments, exp_avg=change(moments.exp_avg), exp_avg_sq=change(moments.exp_avg_sq))


def test_moments_of_another_rank_are_refused_with_both_shapes(warmed, tokenizer):
    model, _, moments = warmed
    wider = build_lora_model(tokenizer, model.get_base_model().config.model_type, r=8)
    with pytest.raises(ValueError, match=r"q_proj.lora_A.default.weight \[4, 32\] instead of \[8, 32\].* and 25 more"):
        match_moments(moments, wider)


def test_missing_and_left_over_moments_are_refused_by_name(warmed):
    model, _, moments = warmed
    first = next(iter(moments.exp_avg))
    with pytest.raises(ValueError, match=f"no moments for {first}. Load the adapter"):
        match_moments(rename(moments, lambda held: {n: t for n, t in held.items() if n != first}), model)
    with pytest.raises(ValueError, match="moments of extra, which the model does not have"):
        match_moments(rename(moments, lambda held: held | {"extra": torch.ones(1)}), model)
    twin = first.replace(".default.", ".other.")
    with pytest.raises(ValueError, match="two moments go by one name"):
        match_moments(rename(moments, lambda held: held | {twin: held[first]}), model)


def test_optimizer_without_adam_state_is_refused(tokenizer):
    model = build_lora_model(tokenizer, "qwen3")
    trainable = [p for p in model.parameters() if p.requires_grad]
    with pytest.raises(
        ValueError, match=r"keeps no exp_avg and exp_avg_sq of .*lora_A.* \(it keeps \[\]\); use torch's"
    ):
        capture_moments(model, torch.optim.AdamW(trainable), LEARNING_RATE)
    with pytest.raises(ValueError, match="amsgrad, maximize or Adam's coupled weight decay; use plain AdamW"):
        capture_moments(model, torch.optim.AdamW(trainable, amsgrad=True), LEARNING_RATE)
    with pytest.raises(ValueError, match="use plain AdamW"):
        capture_moments(model, torch.optim.Adam(trainable, weight_decay=0.1), LEARNING_RATE)


def test_optimizer_of_another_model_is_refused(warmed, tokenizer):
    _, optimizer, _ = warmed
    with pytest.raises(ValueError, match="holds 28 parameters that the model does not have, and none of base_model"):
        capture_moments(build_lora_model(tokenizer, "qwen3"), optimizer, LEARNING_RATE)


def test_parameters_of_different_steps_are_refused():
    model = nn.ModuleDict({"a": nn.Linear(1, 1, bias=False), "b": nn.Linear(1, 1, bias=False)})
    optimizer = torch.optim.AdamW(model.parameters())
    for names in ("ab", "a"):
        optimizer.zero_grad()
        for name in names:
            model[name].weight.grad = torch.ones(1, 1)
        optimizer.step()
    with pytest.raises(ValueError, match=r"differ in \(step, .*\): \[\(1, .*\), \(2, .*no token of a batch"):
        capture_moments(model, optimizer, LEARNING_RATE)


def test_parameters_of_different_learning_rates_are_refused():
    model = nn.Linear(1, 1)
    groups = [{"params": [model.weight], "lr": 1e-3}, {"params": [model.bias], "lr": 2e-3}]  # as LoRA+ has them
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=1)
    model(torch.ones(1, 1)).backward()
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0, 0]
    with pytest.raises(ValueError, match=r"learning rate\): \[\(1, .*, 0.001\), \(1, .*, 0.002\)\]; train all alike"):
        capture_moments(model, optimizer, LEARNING_RATE)


def test_file_that_holds_no_moments_is_refused(tmp_path):
    with pytest.raises(ValueError, match="absent.safetensors holds no Adam moments"):
        load_moments(tmp_path / "absent.safetensors")
    save_file({"w": torch.ones(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="weights.safetensors holds no Adam moments .* wrote with save_moments"):
        load_moments(tmp_path / "weights.safetensors")
    (tmp_path / "text.safetensors").write_text("text")
    with pytest.raises(ValueError, match="text.safetensors holds no Adam moments"):
        load_moments(tmp_path / "text.safetensors")

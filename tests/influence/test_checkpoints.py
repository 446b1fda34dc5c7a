import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from conftest import LEARNING_RATE, build_lora_model, draw_examples
from datasets import Dataset
from peft import PeftModel
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from transformers import Adafactor, Trainer, TrainerCallback, TrainingArguments
from trl import SFTTrainer

from rubric_influence.influence.checkpoints import load_trainer_moments
from rubric_influence.influence.moments import AdamMoments, capture_moments, load_moments, match_moments
from rubric_influence.lab.networks import build_model
from rubric_influence.models.examples import collate
from rubric_influence.synthesis.prompts import ask_answer
from rubric_influence.training.fine_tuning import KeepCheckpoints, build_arguments, build_lora

REPOSITORY = Path(__file__).resolve().parents[2]
# Runs in each of two processes: a Trainer, its checkpoint, and what was captured live.
DISTRIBUTED = """
import sys, torch
from transformers import Adafactor, Trainer, TrainingArguments
from rubric_influence.influence.moments import capture_moments, save_moments
from rubric_influence.lab.networks import build_model, build_tokenizer
from rubric_influence.lab.world import load_field

field, folder = sys.argv[1:]
torch.manual_seed(0)
model = build_model(build_tokenizer(load_field(field)), "qwen3", hidden_size=32, layers=2)
rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(5, 100, (8, 6))]
arguments = TrainingArguments(
    folder, use_cpu=True, ddp_backend="gloo", num_train_epochs=2, per_device_train_batch_size=2, weight_decay=0.1,
    logging_steps=1, save_strategy="epoch", report_to="none", disable_tqdm=True,
)
trainer = Trainer(model, arguments, train_dataset=rows)
trainer.train()
assert type(trainer.model_wrapped).__name__ == "DistributedDataParallel"
if trainer.is_world_process_zero():
    save_moments(folder + "/live.safetensors", capture_moments(trainer.model, trainer.optimizer, 1.0))
"""


class Blocks(nn.Module):
    """Parameters of one shape of which some decay (weights of linear layers, scales) and some do not."""

    def __init__(self, width=4):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, width)
        self.scales = nn.ParameterList([torch.ones(width)])

    def forward(self, x):
        return self.last(self.norm(self.first(x))) * self.scales[0]


def equal(one: AdamMoments, other: AdamMoments) -> bool:
    """Bit for bit, by name; the learning rate is not of the optimizer."""
    assert one.exp_avg.keys() == other.exp_avg.keys()
    assert (one.step, one.betas, one.eps) == (other.step, other.betas, other.eps)
    return all(
        torch.equal(one.exp_avg[n], other.exp_avg[n]) and torch.equal(one.exp_avg_sq[n], other.exp_avg_sq[n])
        for n in one.exp_avg
    )


def by_decay(model):
    """The Trainer's groups, by hand: weights of linear layers and scales, then biases and norms."""
    return [
        {"params": [model.first.weight, model.last.weight, *model.scales], "weight_decay": 0.1},
        {"params": [model.first.bias, model.norm.weight, model.norm.bias, model.last.bias], "weight_decay": 0.0},
    ]


def step_blocks(build=torch.optim.AdamW, group=nn.Module.parameters, steps=2, **options):
    """(model, optimizer) after steps on random inputs."""
    torch.manual_seed(0)
    model = Blocks()
    optimizer = build(group(model), **{"lr": 1e-2} | options)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(3, 4)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def step_lora(tokenizer, model, optimizer):
    """Two steps on the lab's examples."""
    for seed in range(2):
        model(**collate(draw_examples(tokenizer, 4, seed), pad_token_id=0)).loss.backward()
        optimizer.step()


def save(folder, state):
    """A folder as accelerate writes it, of the optimizer alone."""
    torch.save(state, folder / "optimizer.bin")
    return folder


# What the Trainer writes


@pytest.fixture(scope="module")
def sft_run(tokenizer, lab_config, draw_pairs, tmp_path_factory):
    """(the Trainer's checkpoint, the moments captured live at its end) of a LoRA fine-tuning as sft.py does it."""
    folder = tmp_path_factory.mktemp("sft")
    settings = lab_config({"warmup": {"epochs": 2, "batch_size": 4, "schedule": "linear"}, "lora": {"r": 4}})
    rows = [
        {
            "prompt": ask_answer(settings.prompts, pair.question),
            "completion": [{"role": "assistant", "content": pair.answer}],
        }
        for pair in draw_pairs(10)
    ]
    torch.manual_seed(0)
    trainer = SFTTrainer(
        build_model(tokenizer, "qwen3", hidden_size=32, layers=2),
        build_arguments(settings.warmup, 0, str(folder / "trainer")),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=build_lora(settings.lora),
        callbacks=[KeepCheckpoints(folder / "kept", 1)],
    )
    trainer.train()
    return folder / "trainer/checkpoint-6", load_moments(folder / "kept/checkpoint-2/moments.safetensors")


def load_adapter(tokenizer, checkpoint, **options):
    return PeftModel.from_pretrained(build_model(tokenizer, "qwen3", hidden_size=32, layers=2), checkpoint, **options)


def test_a_trl_checkpoint_of_lora_holds_the_moments_captured_live(sft_run, tokenizer):
    checkpoint, live = sft_run
    moments = load_trainer_moments(checkpoint, load_adapter(tokenizer, checkpoint, is_trainable=True))
    assert equal(moments, live)
    assert moments.learning_rate == pytest.approx(live.learning_rate, rel=1e-12)  # every step is logged here
    frozen = load_adapter(tokenizer, checkpoint, is_trainable=False)  # what is scored
    assert equal(match_moments(moments, frozen), match_moments(live, frozen))


def test_a_frozen_adapter_is_refused_with_the_way_to_load_it(sft_run, tokenizer):
    with pytest.raises(ValueError, match=r"nothing in PeftModelForCausalLM is trainable.*is_trainable=True"):
        load_trainer_moments(sft_run[0], load_adapter(tokenizer, sft_run[0], is_trainable=False))


def test_an_adapter_on_other_layers_of_the_same_shapes_is_refused(tokenizer, tmp_path):
    # q_proj and o_proj are both 32 x 32 here: numbers and shapes fit.
    trained = build_lora_model(tokenizer, "llama", targets=["q_proj"])
    optimizer = torch.optim.AdamW(trained.parameters())
    step_lora(tokenizer, trained, optimizer)
    trained.save_pretrained(tmp_path)
    save(tmp_path, optimizer.state_dict())
    load_trainer_moments(tmp_path, trained, LEARNING_RATE)
    other = build_lora_model(tokenizer, "llama", targets=["o_proj"])
    with pytest.raises(ValueError, match=r"adapter lacks .*o_proj.lora_A.weight.* and 1 more, which the model's has"):
        load_trainer_moments(tmp_path, other, LEARNING_RATE)


def test_an_adapter_of_another_rank_is_refused_with_both_shapes(sft_run, tokenizer):
    wider = build_lora_model(tokenizer, "qwen3", r=8)
    with pytest.raises(ValueError, match=r"q_proj.lora_A.default.weight \[4, 32\] instead of \[8, 32\].* and 25 more"):
        load_trainer_moments(sft_run[0], wider)


class CaptureAtEnd(TrainerCallback):
    def on_train_end(self, args, state, control, **kwargs):
        self.moments = capture_moments(kwargs["model"], kwargs["optimizer"], LEARNING_RATE)


def build_full(tokenizer, family):
    torch.manual_seed(0)
    model = build_model(tokenizer, family, hidden_size=32, layers=2)
    for layer in model.model.layers:  # biases, as Qwen2 has them
        layer.self_attn.q_proj.bias = nn.Parameter(torch.zeros(32))
    return model


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def full_run(request, tokenizer, tmp_path_factory):
    """(family, checkpoint, live moments) of a full fine-tuning by transformers' Trainer, with weight decay."""
    folder = tmp_path_factory.mktemp("full")
    examples = draw_examples(tokenizer, 16, seed=1)
    capture = CaptureAtEnd()
    arguments = TrainingArguments(
        str(folder),
        **dict(use_cpu=True, num_train_epochs=2, per_device_train_batch_size=8, weight_decay=0.1, adam_beta2=0.98),
        **dict(learning_rate=LEARNING_RATE, lr_scheduler_type="linear", logging_steps=1, save_strategy="epoch"),
        **dict(report_to="none", disable_tqdm=True, remove_unused_columns=False),
    )
    trainer = Trainer(
        build_full(tokenizer, request.param),
        arguments,
        data_collator=lambda batch: collate(batch, pad_token_id=0),
        train_dataset=examples,
        callbacks=[capture],
    )
    trainer.train()
    return request.param, folder / "checkpoint-4", capture.moments


def test_a_full_checkpoint_with_decay_groups_holds_the_moments_captured_live(full_run, tokenizer):
    family, checkpoint, live = full_run
    moments = load_trainer_moments(checkpoint, build_full(tokenizer, family))
    assert equal(moments, live)
    assert moments.betas == (0.9, 0.98)
    # Linear over four steps: 4/4, 3/4, then 2/4 and 1/4 in the last epoch.
    assert moments.learning_rate == pytest.approx(LEARNING_RATE * 3 / 8)


def test_the_models_own_order_would_have_been_the_wrong_one_unnoticed_by_shape(full_run, tokenizer):
    family, checkpoint, live = full_run
    saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    decayed, rest = [group["params"] for group in saved["param_groups"]]
    names = [name for name, _ in build_full(tokenizer, family).named_parameters()]
    assert len(decayed) + len(rest) == len(names)
    naive = {name: saved["state"][number]["exp_avg"] for number, name in enumerate(names)}
    same_shape = [name for name in names if naive[name].shape == live.exp_avg[name].shape]
    wrong = [name for name in same_shape if not torch.equal(naive[name], live.exp_avg[name])]
    assert wrong, "no parameter would have got another's moments of its own shape: the trap is not here"
    right = load_trainer_moments(checkpoint, build_full(tokenizer, family))
    assert all(torch.equal(right.exp_avg[name], live.exp_avg[name]) for name in wrong)


def test_a_model_with_other_trainable_parameters_is_refused_by_the_sizes_of_the_groups(full_run, tokenizer):
    family, checkpoint, live = full_run
    model = build_full(tokenizer, family)
    model.model.norm.weight.requires_grad_(False)
    n = len(live.exp_avg)
    with pytest.raises(ValueError, match=rf"groups of \[\d+, \d+\] parameters, but .* has {n - 1} trainable of {n}, "):
        load_trainer_moments(checkpoint, model)


@pytest.mark.distributed
def test_a_checkpoint_of_two_processes_holds_the_moments_captured_live(tokenizer, tmp_path):
    (tmp_path / "train.py").write_text(DISTRIBUTED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run(
        [*launch, str(tmp_path / "train.py"), str(REPOSITORY / "data/lab/fields/medicine.yaml"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    model = build_model(tokenizer, "qwen3", hidden_size=32, layers=2)
    moments = load_trainer_moments(tmp_path / "checkpoint-4", model)  # 8 rows, 2 processes, batches of 2, 2 epochs
    assert equal(moments, load_moments(tmp_path / "live.safetensors"))
    assert moments.step == 4


# What accelerate writes


def parameters_by_factor(model):
    """Names with the parameters, in groups that no rule would rebuild: all lora_B before all lora_A."""
    return [{"params": [pair for pair in model.named_parameters() if part in pair[0]]} for part in ("lora_B", "lora_A")]


@pytest.mark.parametrize(
    "group",
    [
        lambda model: [p for p in model.parameters() if p.requires_grad],
        nn.Module.parameters,  # the frozen base as well, as peft's examples do
        nn.Module.named_parameters,
        parameters_by_factor,
    ],
    ids=["trainable", "all", "named", "named groups"],
)
def test_an_accelerate_folder_of_lora_holds_the_moments_captured_live(tokenizer, tmp_path, group):
    model = build_lora_model(tokenizer, "llama")
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(group(model), lr=LEARNING_RATE))
    step_lora(tokenizer, model, optimizer)
    accelerator.save_state(str(tmp_path))
    moments = load_trainer_moments(tmp_path, build_lora_model(tokenizer, "llama"), learning_rate=0.5)
    assert equal(moments, capture_moments(model, optimizer, LEARNING_RATE))
    assert (moments.step, moments.learning_rate) == (2, 0.5)


def test_the_trainers_own_groups_are_those_made_by_hand_and_are_read(tmp_path):
    model, optimizer = step_blocks(group=by_decay)
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, weight_decay=0.1, report_to="none")
    made = Trainer(model, arguments).create_optimizer().param_groups
    assert [[id(p) for p in group["params"]] for group in made] == [
        [id(p) for p in group["params"]] for group in by_decay(model)
    ]
    save(tmp_path, optimizer.state_dict())
    assert equal(load_trainer_moments(tmp_path, Blocks(), 1e-3), capture_moments(model, optimizer, 1e-3))


def test_moments_are_by_the_models_own_names_whatever_wrapped_the_one_that_was_saved(tmp_path):
    model, optimizer = step_blocks(group=lambda model: nn.ModuleDict({"module": model}).named_parameters())
    assert optimizer.param_groups[0]["param_names"][0] == "module.first.weight"
    save(tmp_path, optimizer.state_dict())
    live = capture_moments(model, optimizer, 1e-3)
    assert equal(load_trainer_moments(tmp_path, Blocks(), 1e-3), live)
    wrapped = load_trainer_moments(tmp_path, nn.ModuleDict({"module": Blocks()}), 1e-3)
    assert torch.equal(wrapped.exp_avg["module.norm.bias"], live.exp_avg["norm.bias"])


def test_moments_kept_in_bfloat16_are_read_as_float32(tmp_path):
    model = Blocks().bfloat16()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3, 4, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    moments = load_trainer_moments(save(tmp_path, optimizer.state_dict()), model, 1e-3)
    assert moments.exp_avg["first.weight"].dtype == torch.float32
    assert equal(moments, capture_moments(model, optimizer, 1e-3))


# What FSDP writes


def test_fsdps_full_state_is_read_by_its_names(tmp_path):
    model, optimizer = step_blocks(group=by_decay)
    state = get_optimizer_state_dict(model, optimizer)  # as accelerate does for FULL_STATE_DICT
    assert "norm.bias" in state["state"]
    save(tmp_path, state)
    assert equal(load_trainer_moments(tmp_path, Blocks(), 1e-3), capture_moments(model, optimizer, 1e-3))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_fsdps_shards_are_refused_until_they_are_consolidated(tmp_path):
    model, optimizer = step_blocks(group=by_decay)
    state = {"optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.save(state, checkpoint_id=tmp_path / "optimizer_0", no_dist=True)
    with pytest.raises(ValueError, match=r"FSDP's shards .*format_utils dcp_to_torch .*optimizer_0 .*optimizer.bin"):
        load_trainer_moments(tmp_path, Blocks(), 1e-3)
    dcp_to_torch_save(tmp_path / "optimizer_0", tmp_path / "optimizer.bin")
    assert equal(load_trainer_moments(tmp_path, Blocks(), 1e-3), capture_moments(model, optimizer, 1e-3))


# Refusals


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("model.safetensors", r"no optimizer.pt or optimizer.bin in .*save_only_model=False"),
        (
            "global_step4/zero_pp_rank_0_mp_rank_00_optim_states.pt",
            "DeepSpeed's shards .*safe_get_full_optimizer_state",
        ),
        ("pytorch_model/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "DeepSpeed's shards"),
        ("optimizer_0_rank0.bin", "each FSDP process's own part .* FULL_STATE_DICT instead of LOCAL_STATE_DICT"),
    ],
)
def test_a_folder_without_a_whole_optimizer_is_refused(file, message, tmp_path):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    with pytest.raises(ValueError, match=message):
        load_trainer_moments(tmp_path, Blocks(), 1e-3)


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (torch.optim.SGD, {}, "not of torch's Adam or AdamW.* keeps nothing; train with optim='adamw_torch'"),
        (torch.optim.SGD, {"momentum": 0.9}, r"it keeps momentum_buffer \(torch.float32\)"),
        (torch.optim.RAdam, {}, "not of torch's Adam or AdamW"),
        (torch.optim.NAdam, {}, r"it keeps .*mu_product \("),
        (Adafactor, {"relative_step": False}, r"it keeps .*exp_avg_sq_row \("),
        (torch.optim.AdamW, {"amsgrad": True}, "an Adam with amsgrad or maximize; train with plain AdamW"),
        (torch.optim.AdamW, {"maximize": True}, "an Adam with amsgrad or maximize"),
        (torch.optim.Adam, {"weight_decay": 0.1}, "an Adam with coupled weight decay"),
    ],
)
def test_another_optimizer_than_plain_adam_is_refused(build, options, message, tmp_path):
    model, optimizer = step_blocks(build, **options)
    with pytest.raises(ValueError, match=message):
        load_trainer_moments(save(tmp_path, optimizer.state_dict()), model, 1e-3)


def test_eight_bit_states_are_refused(tmp_path):
    model, optimizer = step_blocks()
    state = optimizer.state_dict()
    for entry in state["state"].values():
        entry["exp_avg"] = entry["exp_avg"].to(torch.int8)
    with pytest.raises(ValueError, match=r"in floating point: it keeps exp_avg \(torch.int8\)"):
        load_trainer_moments(save(tmp_path, state), model, 1e-3)
    state["state"] = {0: {"state1": torch.zeros(16, dtype=torch.uint8), "absmax1": torch.ones(1)}}  # bitsandbytes
    with pytest.raises(ValueError, match=r"it keeps absmax1 \(torch.float32\), state1 \(torch.uint8\)"):
        load_trainer_moments(save(tmp_path, state), model, 1e-3)


def test_a_parameter_without_state_is_refused_by_name(tmp_path):
    model, optimizer = step_blocks()
    state = optimizer.state_dict()
    del state["state"][3]  # as of one that no gradient reached
    with pytest.raises(ValueError, match="has no state of norm.bias. Load .* all had a gradient"):
        load_trainer_moments(save(tmp_path, state), model, 1e-3)
    untouched = torch.optim.AdamW(model.parameters()).state_dict()
    with pytest.raises(ValueError, match="has no state of first.weight, first.bias, norm.weight and 4 more"):
        load_trainer_moments(save(tmp_path, untouched), model, 1e-3)


def test_a_state_of_what_the_model_does_not_train_is_refused_by_name(tmp_path):
    model, optimizer = step_blocks()
    model.norm.requires_grad_(False)
    with pytest.raises(ValueError, match="has a state of norm.weight, norm.bias, not trainable in the model"):
        load_trainer_moments(save(tmp_path, optimizer.state_dict()), model, 1e-3)
    named = step_blocks(group=lambda m: [("extra", nn.Parameter(torch.ones(1))), *m.named_parameters()])[1].state_dict()
    named["state"][0] = named["state"][1]
    with pytest.raises(ValueError, match="has a state of extra, not trainable"):
        load_trainer_moments(save(tmp_path, named), Blocks(), 1e-3)


def test_one_name_of_two_parameters_is_refused(tmp_path):
    _, optimizer = step_blocks(group=lambda model: [*model.named_parameters(), *Blocks().named_parameters()])
    with pytest.raises(ValueError, match="names first.weight twice"):
        load_trainer_moments(save(tmp_path, optimizer.state_dict()), Blocks(), 1e-3)


def test_groups_by_another_rule_than_the_trainers_are_refused(tmp_path):
    _, reversed_groups = step_blocks(group=lambda model: by_decay(model)[::-1])
    with pytest.raises(
        ValueError, match=r"groups of \[4, 3\] .* 7 trainable of 7, which the Trainer groups as \[3, 4\]"
    ):
        load_trainer_moments(save(tmp_path, reversed_groups.state_dict()), Blocks(), 1e-3)
    _, both_decay = step_blocks(group=lambda model: [group | {"weight_decay": 0.1} for group in by_decay(model)])
    with pytest.raises(ValueError, match="has weight decay 0.1, and the Trainer's has none; build"):
        load_trainer_moments(save(tmp_path, both_decay.state_dict()), Blocks(), 1e-3)


def test_another_models_shapes_are_refused(tmp_path):
    _, optimizer = step_blocks()
    save(tmp_path, optimizer.state_dict())
    with pytest.raises(ValueError, match=r"shapes first.weight \[4, 4\] instead of \[5, 5\], .* and 4 more"):
        load_trainer_moments(tmp_path, Blocks(width=5), 1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["state"][6].update(step=torch.tensor(9.0)), r"differ in \(step, betas, .*\): \[\(2, .*\(9, "),
        (lambda s: s["param_groups"][1].update(betas=(0.8, 0.999)), r"differ in .*\(0.8, 0.999\).*\(0.9, 0.999\)"),
        (lambda s: s["param_groups"][1].update(eps=1e-6), r"differ in .* 1e-08, .*1e-06, "),
        (lambda s: s["param_groups"][1].update(lr=0.5), r"differ in .* 0.01\), .* 0.5\)"),
        (lambda s: [e.update(step=torch.tensor(0.0)) for e in s["state"].values()], "the moments are of step 0"),
        (lambda s: s["state"][6]["exp_avg"].fill_(float("nan")), "non-finite or negative moments of last.bias"),
    ],
    ids=["steps", "betas", "eps", "learning rate", "step 0", "nan"],
)
def test_a_state_that_no_single_adam_left_is_refused(change, message, tmp_path):
    model, optimizer = step_blocks(group=by_decay)
    state = optimizer.state_dict()
    change(state)
    with pytest.raises(ValueError, match=message):
        load_trainer_moments(save(tmp_path, state), model, 1e-3)


@pytest.mark.faults
@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b"text", lambda b: b[: len(b) // 2], lambda b: b[7:]])
def test_a_damaged_file_is_refused(damage, tmp_path):
    model, optimizer = step_blocks()
    file = save(tmp_path, optimizer.state_dict()) / "optimizer.bin"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"optimizer.bin cannot be read as an optimizer's state \(.*it is damaged, or"):
        load_trainer_moments(tmp_path, model, 1e-3)


def test_a_file_that_is_not_an_optimizers_or_runs_code_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be read as an optimizer's state .KeyError"):
        load_trainer_moments(save(tmp_path, Blocks().state_dict()), Blocks(), 1e-3)
    with pytest.raises(ValueError, match="cannot be read as an optimizer's state .UnpicklingError"):
        load_trainer_moments(save(tmp_path, {"state": {}, "param_groups": [Blocks()]}), Blocks(), 1e-3)


@pytest.mark.faults
def test_a_damaged_adapter_beside_the_optimizer_is_refused(sft_run, tokenizer, tmp_path):
    model = load_adapter(tokenizer, sft_run[0], is_trainable=True)
    shutil.copytree(sft_run[0], tmp_path / "copy")
    (tmp_path / "copy/adapter_model.safetensors").write_bytes(b"text")
    with pytest.raises(ValueError, match="adapter_model.safetensors cannot be read"):
        load_trainer_moments(tmp_path / "copy", model)


# The learning rate


def log(*entries, epoch=2.5):
    history = [dict(zip(("epoch", "learning_rate"), entry, strict=True)) for entry in entries]
    return {"epoch": epoch, "log_history": [{"epoch": epoch, "eval_loss": 1.0}, *history]}


@pytest.mark.parametrize(
    ("state", "rate"),
    [
        (log((1.0, 8.0), (2.0, 4.0), (2.25, 3.0), (2.5, 1.0)), 2.0),  # an unfinished third epoch
        (log((1.0, 8.0), (1.5, 4.0), (2.0, 2.0), epoch=2.0), 3.0),  # a whole second
        (log((1 / 3, 5.0), (2 / 3, 3.0), (1.0000000001, 1.0), epoch=1.0000000001), 3.0),  # not a second epoch
        (log((1.0000000001, 8.0), (1.5, 4.0), (2.0, 2.0), epoch=2.0), 3.0),
    ],
)
def test_the_learning_rate_is_the_mean_of_those_logged_in_the_last_epoch(state, rate, tmp_path):
    model, optimizer = step_blocks()
    save(tmp_path, optimizer.state_dict())
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    assert load_trainer_moments(tmp_path, model).learning_rate == rate
    assert load_trainer_moments(tmp_path, model, learning_rate=7.0).learning_rate == 7.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no trainer_state.json in .* to take the learning rate from; give learning_rate"),
        ("{", r"trainer_state.json is not what a Trainer writes \(JSONDecodeError.*; give learning_rate"),
        ("[]", r"is not what a Trainer writes \(TypeError"),
        ('{"epoch": null, "log_history": []}', r"is not what a Trainer writes \(TypeError"),
        (json.dumps(log((1.0, 8.0))), "logged no learning rate after epoch 2; give .* smaller logging_steps"),
    ],
)
def test_without_a_logged_learning_rate_one_is_asked_for(text, message, tmp_path):
    model, optimizer = step_blocks()
    save(tmp_path, optimizer.state_dict())
    if text is not None:
        (tmp_path / "trainer_state.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_trainer_moments(tmp_path, model)

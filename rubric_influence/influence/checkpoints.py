"""A checkpoint folder's model and Adam moments: with our moments.safetensors, or as a Trainer or accelerate wrote it.

A saved optimizer numbers its parameters through its groups, and two groups (with weight decay and without) are not in
the model's order. So names are rebuilt, and whatever does not fit the model is refused: moments of the wrong
parameters give scores that look like any other.
"""

import json
import math
import re
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn

from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.influence.layers import listed
from rubric_influence.influence.moments import BOTH, AdamMoments, build_moments, load_moments
from rubric_influence.models.loading import load_model

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
MOMENTS_FILE = "moments.safetensors"  # of save_moments; it goes before an optimizer's
OPTIMIZER_FILES = ("optimizer.pt", "optimizer.bin")  # the Trainer's, accelerate's
SHARDS = {  # what may be there in place of one optimizer's file, and what to do then
    "*/*_optim_states.pt": "DeepSpeed's shards of the optimizer, which are not read; train with DDP or FSDP, or gather "
    "exp_avg and exp_avg_sq in the run itself with deepspeed.utils.safe_get_full_optimizer_state",
    "optimizer_0": "FSDP's shards of the optimizer; consolidate them: python -m "
    "torch.distributed.checkpoint.format_utils dcp_to_torch {0}/optimizer_0 {0}/optimizer.bin",
    "optimizer_0_rank*.bin": "each FSDP process's own part of the optimizer; save with the plugin's state dict type "
    "FULL_STATE_DICT instead of LOCAL_STATE_DICT",
}
STATE = {"step", *BOTH}  # what torch's Adam keeps of a parameter
SETTINGS = {"lr", "betas", "eps", "amsgrad"}  # what every group of it has
Group = dict[str, Any]


def list_checkpoint_files(checkpoint: Path) -> list[Path]:
    """The files of a checkpoint that shape scores: its adapter's and, last, the moments. Raises ValueError without."""
    if missing := [name for name in ADAPTER_FILES if not (checkpoint / name).is_file()]:
        raise ValueError(f"no {missing[0]} in {checkpoint}; give a folder with a LoRA adapter as peft saves it")
    own = checkpoint / MOMENTS_FILE
    return [*(checkpoint / name for name in ADAPTER_FILES), own if own.is_file() else find_optimizer(checkpoint)]


def load_checkpoint(
    spec: ModelSpec, checkpoint: Path, device: str | torch.device | None = None, learning_rate: float | None = None
) -> tuple[PeftModel, AdamMoments]:
    """The model in eval mode with the checkpoint's adapter, whose parameters require gradients, and its moments.

    `learning_rate` goes to `load_trainer_moments`; a moments.safetensors holds its own.
    Raises ValueError if a file is missing, damaged or not this model's.
    """
    *_, file = list_checkpoint_files(checkpoint)
    base = load_model(spec, device)
    try:
        model = PeftModel.from_pretrained(base, checkpoint, is_trainable=True, torch_device="cpu").eval()
    except Exception as error:  # a damaged or foreign adapter raises almost anything
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the adapter in {checkpoint} cannot be put on {spec.path}: {reason}") from error
    own = file.name == MOMENTS_FILE
    return model, load_moments(file) if own else load_trainer_moments(checkpoint, model, learning_rate)


def load_trainer_moments(checkpoint: str | Path, model: nn.Module, learning_rate: float | None = None) -> AdamMoments:
    """The moments in a checkpoint's optimizer.pt or optimizer.bin, by the names of the model's trainable parameters.

    They are what `capture_moments` would have captured when the checkpoint was written. The same parameters of `model`
    must be trainable as in training (load a PEFT adapter with is_trainable=True); its weights do not matter. By default
    `learning_rate` is the mean of the rates that trainer_state.json logged in the last, perhaps unfinished, epoch.

    Names are the file's own, if it holds any: of an optimizer built from model.named_parameters(), or saved by FSDP
    with FULL_STATE_DICT or consolidated by dcp_to_torch. Else they are rebuilt from the sizes of the non-empty groups.
    One group, as large as what is trainable or as all that the model has, is in the order of named_parameters(). Two
    are the Trainer's: what the installed transformers decays, in that order, then the rest without decay. This is an
    assumption, checked by sizes, weight decay, shapes and, of a PEFT adapter, the names in its file. It fails unnoticed
    if another rule has put parameters of equal shape in another order: give your own optimizers named_parameters().

    Raises ValueError if there is no such file (or shards of FSDP or DeepSpeed), it is not that of torch's plain Adam or
    AdamW, it does not fit the model, no learning rate is known, or AdamMoments refuses the moments.
    """
    folder = Path(checkpoint)
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise ValueError(
            f"nothing in {type(model).__name__} is trainable, so the optimizer's parameters cannot be told; load it as "
            "it was trained, a PEFT adapter with PeftModel.from_pretrained(..., is_trainable=True)"
        )
    path = find_optimizer(folder)
    state, groups = read_adam(path)
    refuse_other_adapter(folder, model)
    held: dict[str, dict] = {}
    for group, names in zip(groups, name_groups(path, groups, model), strict=True):
        for key, name in zip(group["params"], names, strict=True):
            if name in held:
                raise ValueError(f"{path} names {name} twice; save each model's optimizer by itself")
            held[name] = group | state[key] if state.get(key) else {}
    check_fit(path, held, trainable)
    rate = average_logged_rates(folder) if learning_rate is None else learning_rate
    return build_moments({name: held[name] for name in trainable}, rate, f"parameters in {path}")


def find_optimizer(folder: Path) -> Path:
    """The optimizer's file in a checkpoint. Raises ValueError, saying what is there instead, if there is none."""
    if found := [folder / name for name in OPTIMIZER_FILES if (folder / name).is_file()]:
        return found[0]
    for pattern, shards in SHARDS.items():
        if next(folder.glob(pattern), None):
            raise ValueError(f"{folder} holds {shards.format(folder)}")
    raise ValueError(
        f"no {' or '.join(OPTIMIZER_FILES)} in {folder}; give a checkpoint-* folder of a Trainer (with "
        f"save_only_model=False), a folder of Accelerator.save_state, or one with {MOMENTS_FILE}, which save_moments "
        "writes of what capture_moments takes from an optimizer: scores need Adam's moments at the checkpoint"
    )


def read_adam(path: Path) -> tuple[dict[int | str, dict], list[Group]]:
    """An Adam's state by parameter and its non-empty groups. Raises ValueError if it is anything else's."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        saved = saved.get("optimizer", saved)  # dcp_to_torch leaves what FSDP saved under this key
        state, groups = saved["state"], [group for group in saved["param_groups"] if group["params"]]
    except Exception as error:  # damaged bytes raise almost anything
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{path} cannot be read as an optimizer's state ({type(error).__name__}: {reason}); it is damaged, or that "
            "of an optimizer with states of its own types (8-bit, GaLore): train with optim='adamw_torch'"
        ) from error
    if any(group.get("amsgrad") or group.get("maximize") for group in groups):
        raise ValueError(f"{path} is of an Adam with amsgrad or maximize; train with plain AdamW")
    if any(group.get("weight_decay") and group.get("decoupled_weight_decay") is False for group in groups):
        raise ValueError(f"{path} is of an Adam with coupled weight decay; train with plain AdamW")
    kept = [entry for entry in state.values() if entry]
    moments = [entry.get(key) for entry in kept for key in BOTH]
    alike = all(group.keys() >= SETTINGS for group in groups) and all(entry.keys() == STATE for entry in kept)
    if not (alike and all(type(m) is torch.Tensor and m.is_floating_point() for m in moments)):
        found = sorted({f"{key} ({getattr(value, 'dtype', 'no tensor')})" for e in kept for key, value in e.items()})
        raise ValueError(
            f"{path} is not of torch's Adam or AdamW, which keeps {sorted(STATE)} in floating point: it keeps "
            f"{', '.join(found) or 'nothing'}; train with optim='adamw_torch'"
        )
    return state, groups


def name_groups(path: Path, groups: list[Group], model: nn.Module) -> list[list[str]]:
    """Every group's parameter names, in its order; see `load_trainer_moments`. Raises ValueError if they fit none."""
    every = [name for name, _ in model.named_parameters()]
    own = {strip_wrappers(name): name for name in every}
    named = [group.get("param_names") or group["params"] for group in groups]
    if all(isinstance(name, str) for names in named for name in names):
        return [[own.get(strip_wrappers(name), name) for name in names] for names in named]
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    from transformers import Trainer  # here, as it imports datasets, which nothing else in this package needs

    # The Trainer's own rule, whatever the installed version's is: the method makes no use of a trainer.
    decayed = set(Trainer.get_decay_parameter_names(cast(Trainer, None), model))
    parts = [[n for n in trainable if n in decayed], [n for n in trainable if n not in decayed]]
    by_decay = [names for names in parts if names]
    sizes = [len(group["params"]) for group in groups]
    for layout in ([trainable], [every], by_decay):
        if [len(names) for names in layout] == sizes:
            break
    else:
        raise ValueError(
            f"{path} has groups of {sizes} parameters, but {type(model).__name__} has {len(trainable)} trainable of "
            f"{len(every)}, which the Trainer groups as {[len(names) for names in by_decay]}; load the model as it was "
            "trained (same adapter, same parameters trainable), or build the optimizer from model.named_parameters(), "
            "so that it saves their names"
        )
    if len(groups) == 2 and groups[1]["weight_decay"] != 0:
        raise ValueError(
            f"the second group in {path} has weight decay {groups[1]['weight_decay']}, and the Trainer's has none; "
            "build the optimizer from model.named_parameters(), so that it saves their names"
        )
    return layout


def strip_wrappers(name: str) -> str:
    return re.sub(r"^((module|_orig_mod)\.)+", "", name)  # what DDP and torch.compile put before it


def refuse_other_adapter(folder: Path, model: nn.Module) -> None:
    """Refuse a PEFT model whose adapter has parameters that the one in the checkpoint has not.

    Adapters on q_proj and v_proj and on q_proj and o_proj may have the same number of factors of the same shapes.
    """
    file = folder / "adapter_model.safetensors"
    if not (isinstance(model, PeftModel) and file.is_file()):
        return
    try:
        with safe_open(file, framework="pt") as tensors:
            saved = set(tensors.keys())
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be read ({error}); it is damaged, use another checkpoint") from None
    adapter = get_peft_model_state_dict(model, adapter_name=model.active_adapter, save_embedding_layers=False)
    if missing := [name for name in adapter if name not in saved]:
        raise ValueError(
            f"the checkpoint's adapter lacks {listed(missing)}, which the model's has; load the adapter from {folder}"
        )


def check_fit(path: Path, held: dict[str, dict], trainable: dict[str, nn.Parameter]) -> None:
    """Refuse states by name that are not those of exactly the trainable parameters, in shape too."""
    problems = []
    if missing := [name for name in trainable if not held.get(name)]:
        problems.append(f"it has no state of {listed(missing)}")
    if others := [name for name, entry in held.items() if entry and name not in trainable]:
        problems.append(f"it has a state of {listed(others)}, not trainable in the model")
    shapes = {name: list(held[name]["exp_avg"].shape) for name in trainable if held.get(name)}
    wanted = {name: list(parameter.shape) for name, parameter in trainable.items()}
    if wrong := [name for name, shape in shapes.items() if shape != wanted[name]]:
        problems.append("shapes " + listed(wrong, lambda name: f"{name} {shapes[name]} instead of {wanted[name]}"))
    if problems:
        raise ValueError(
            f"{path} is not this model's: {'; '.join(problems)}. Load the model as it was trained (same adapter and "
            "rank, same parameters trainable), and a checkpoint from after a step in which all had a gradient"
        )


def average_logged_rates(folder: Path) -> float:
    """The mean learning rate in the last epoch of trainer_state.json's log. Raises ValueError if none was logged.

    Every logged step weighs the same, so with few lines an epoch it is an estimate (logging_steps=1 makes it exact).
    """
    path = folder / "trainer_state.json"
    if not path.is_file():
        raise ValueError(f"no trainer_state.json in {folder} to take the learning rate from; give learning_rate")
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        start = math.ceil(state["epoch"] - 1e-6) - 1  # epochs are counted in fractions of one: 3.0 ends the third
        logged = [entry for entry in state["log_history"] if "learning_rate" in entry]
        rates = [entry["learning_rate"] for entry in logged if entry["epoch"] > start + 1e-6]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what a Trainer writes ({error!r}); give learning_rate") from None
    if not rates:
        raise ValueError(
            f"{path} logged no learning rate after epoch {start}; give learning_rate, the mean of the checkpoint's "
            "last epoch, or train with a smaller logging_steps"
        )
    return sum(rates) / len(rates)

"""The Adam state that the warm-up leaves on the parameters that it trained: captured, saved, and matched to a model.

The commonest bugs of influence code are moments on the wrong parameters: an optimizer numbers parameters in the order
of its decay groups, and PEFT renames them when it saves. So moments go by parameter identity out of the optimizer and
by name AND shape into a model, and everything that does not fit is refused.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from rubric_influence.influence.layers import listed, scored_parameters

BOTH = ("exp_avg", "exp_avg_sq")  # the moments, as torch calls them


@dataclass(frozen=True)
class AdamMoments:
    """Adam's state after `step` steps: first and second moment by parameter name, fp32 and not bias-corrected.

    They average the gradients that the optimizer saw, that is after accumulation and clipping. `learning_rate` is the
    epoch's mean, which weighs this checkpoint among others (eta in arXiv 2604.00536).
    Raises ValueError for moments that are empty, non-finite, negative (the second), of unequal shapes or of step 0.
    """

    exp_avg: dict[str, torch.Tensor]
    exp_avg_sq: dict[str, torch.Tensor]
    step: int
    betas: tuple[float, float]
    eps: float
    learning_rate: float

    def __post_init__(self) -> None:
        if not self.exp_avg:
            raise ValueError("there are no moments; capture them from an optimizer that has made steps")
        if self.step < 1:
            raise ValueError(f"the moments are of step {self.step}; capture them after at least one optimizer step")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate is {self.learning_rate}; give the epoch's mean, which is above 0")
        if not (all(0 <= beta < 1 for beta in self.betas) and self.eps > 0):
            raise ValueError(f"betas are {self.betas} and eps {self.eps}; expected betas in [0, 1) and eps above 0")
        shapes = [{name: tuple(t.shape) for name, t in m.items()} for m in (self.exp_avg, self.exp_avg_sq)]
        if shapes[0] != shapes[1]:
            differ = [n for n in sorted(shapes[0].keys() | shapes[1].keys()) if shapes[0].get(n) != shapes[1].get(n)]
            raise ValueError(f"the two moments differ in names or shapes: {listed(differ)}; capture them again")
        bad = [name for name in self.exp_avg if not torch.isfinite(self.exp_avg[name]).all()]
        bad += [name for name, v in self.exp_avg_sq.items() if not (torch.isfinite(v) & (v >= 0)).all()]
        if bad:
            raise ValueError(
                f"non-finite or negative moments of {listed(bad)}; the warm-up diverged: lower its learning rate or "
                "use float32 or bfloat16, and run it again"
            )


def capture_moments(model: nn.Module, optimizer: torch.optim.Optimizer, learning_rate: float) -> AdamMoments:
    """The state of a live torch Adam or AdamW (possibly wrapped by accelerate), by the model's parameter names.

    `learning_rate` is the mean of the epoch, which the optimizer does not know (a schedule ends it near 0).

    Raises ValueError where the state is missing or is not plain Adam's, or differs between parameters in step, betas,
    eps or learning rate.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    held: dict[str, dict[str, Any]] = {}
    strangers = 0
    for group in optimizer.param_groups:
        coupled_decay = group.get("weight_decay") and group.get("decoupled_weight_decay") is False
        if group.get("amsgrad") or group.get("maximize") or coupled_decay:
            raise ValueError("the optimizer uses amsgrad, maximize or Adam's coupled weight decay; use plain AdamW")
        for parameter in group["params"]:
            if not parameter.requires_grad:
                continue
            if (name := names.pop(id(parameter), None)) is None:
                strangers += 1
                continue
            state = optimizer.state.get(parameter, {})
            if not {"step", *BOTH} <= state.keys():
                raise ValueError(
                    f"the optimizer keeps no exp_avg and exp_avg_sq of {name} (it keeps {sorted(state)}); use torch's "
                    "AdamW (optim='adamw_torch') and capture after steps in which every parameter had a gradient"
                )
            held[name] = group | state
    missing = [name for name, p in model.named_parameters() if p.requires_grad and id(p) in names]
    if strangers or missing:
        raise ValueError(
            f"the optimizer holds {strangers} parameters that the model does not have, and none of {listed(missing)}; "
            "pass the very model that it was built for"
        )
    return build_moments(held, learning_rate, "the optimizer's parameters")


def build_moments(held: Mapping[str, Mapping[str, Any]], learning_rate: float, whose: str) -> AdamMoments:
    """Copies of the moments in every parameter's state, which holds its group's settings as well.

    Raises ValueError where parameters differ in step, betas, eps or learning rate.
    """
    settings = {
        (
            int(h["step"]),
            (float(h["betas"][0]), float(h["betas"][1])),
            float(h["eps"]),
            float(h.get("initial_lr", h["lr"])),  # before any schedule
        )
        for h in held.values()
    }
    if len(settings) > 1:
        raise ValueError(
            f"{whose} differ in (step, betas, eps, learning rate): {sorted(settings)}; train all alike (Adam passes "
            "over a parameter without a gradient, such as an expert that gets no token of a batch: use larger batches)"
        )
    step, betas, eps, _ = settings.pop() if settings else (0, (0.0, 0.0), 1.0, 0.0)  # refused as empty
    first, second = ({n: h[key].detach().to("cpu", torch.float32, copy=True) for n, h in held.items()} for key in BOTH)
    return AdamMoments(first, second, step, betas, eps, learning_rate)


def save_moments(path: str | Path, moments: AdamMoments) -> None:
    """Write one safetensors file. `load_target` finds it as moments.safetensors in a checkpoint's folder."""
    tensors = {f"{key}/{name}": t.contiguous() for key in BOTH for name, t in getattr(moments, key).items()}
    scalars = {key: getattr(moments, key) for key in ("step", "betas", "eps", "learning_rate")}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # One key: safetensors writes several in any order, and the same state would not be the same bytes.
    save_file(tensors, path, metadata={"adam": json.dumps(scalars)})


def load_moments(path: str | Path) -> AdamMoments:
    """Read what `save_moments` wrote. Raises ValueError if there is no such file or it is another kind of file."""
    parts: dict[str, dict[str, torch.Tensor]] = {key: {} for key in BOTH}
    try:
        with safe_open(path, framework="pt") as file:
            scalars = json.loads((file.metadata() or {})["adam"])
            for key in file.keys():  # noqa: SIM118 - not a dict
                part, _, name = key.partition("/")
                parts[part][name] = file.get_tensor(key)
        return AdamMoments(parts["exp_avg"], parts["exp_avg_sq"], **scalars | {"betas": tuple(scalars["betas"])})
    except (FileNotFoundError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} holds no Adam moments ({error!r}); give the file that the warm-up wrote with save_moments"
        ) from None


def normalise_name(name: str) -> str:
    """A parameter's name without what wrappers (DDP, compile, PEFT) and the adapter's name add to it."""
    name = re.sub(r"^((module|_orig_mod|base_model\.model)\.)+", "", name)
    return re.sub(r"\.(lora_\w+|modules_to_save|trainable_tokens_delta)\.(?!(weight|bias)$)[^.]+", r".\1", name)


def match_moments(moments: AdamMoments, model: nn.Module) -> AdamMoments:
    """The same moments under the model's own names, in the order of `scored_parameters(model)`.

    Moments of parameters that are frozen now, and so not scored, are left out.
    Raises ValueError that names moments which are missing, left over or of another shape.
    """
    found = {normalise_name(name): name for name in moments.exp_avg}
    wanted = {name: tuple(parameter.shape) for name, parameter in scored_parameters(model).items()}
    keys = {name: normalise_name(name) for name in wanted}
    problems = []
    if len(found) < len(moments.exp_avg):
        problems.append("two moments go by one name once the adapter's name is left out")
    if missing := [name for name, key in keys.items() if key not in found]:
        problems.append(f"no moments for {listed(missing)}")
    known = {*keys.values(), *(normalise_name(name) for name, p in model.named_parameters() if not p.requires_grad)}
    if left := [name for key, name in found.items() if key not in known]:
        problems.append(f"moments of {listed(left)}, which the model does not have")
    shapes = {name: tuple(moments.exp_avg[found[key]].shape) for name, key in keys.items() if key in found}
    if wrong := [name for name, shape in shapes.items() if shape != wanted[name]]:
        problems.append("shapes " + listed(wrong, lambda n: f"{n} {list(shapes[n])} instead of {list(wanted[n])}"))
    if problems:
        raise ValueError(
            f"the moments are not this model's: {'; '.join(problems)}. Load the adapter that the warm-up saved beside "
            "them: same base model, LoRA rank and target modules"
        )
    held = moments.exp_avg, moments.exp_avg_sq
    first, second = ({name: part[found[key]] for name, key in keys.items()} for part in held)
    return replace(moments, exp_avg=first, exp_avg_sq=second)

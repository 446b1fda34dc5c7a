"""Which parameters influence is computed over: the active LoRA adapter's and whatever else is trained.

Everything flat in this package (gradients, directions, moments) is laid out in the order of `scored_parameters(model)`.
"""

from collections import Counter
from collections.abc import Callable, Mapping

import torch
from peft import PeftType
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.variants import DoraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

SHOWN = 3  # names in an error message


class Unbatchable(ValueError):
    """The model gives no sample's gradient from a batch of several; the message says why."""


def scored_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameter name -> parameter, in the order of model.named_parameters(), a tied one once.

    Scored are the parameters that require a gradient and, whether or not they do, all of the active adapter's: LoRA
    factors and biases, DoRA's magnitudes, modules_to_save, trainable tokens. To leave others out, freeze them.

    Raises ValueError where the score would not be that of the optimizer's step: see `refuse_inexact`; and if nothing is
    trainable.
    """
    refuse_inexact(model)
    own = {id(parameter) for parameter in adapter_parameters(model)}
    found = {name: p for name, p in model.named_parameters() if p.requires_grad or id(p) in own}
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no LoRA layer and nothing in it is trainable; load the warm-up's adapter with "
            "peft, or let the parameters to be scored require gradients"
        )
    places = Counter(p.data_ptr() for p in found.values() if not p.is_meta)
    if shared := [name for name, p in found.items() if places[p.data_ptr()] > 1]:
        raise ValueError(
            f"{listed(shared)} are parameters of their own in one memory, which the optimizer moves once for each; "
            "train without PEFT's ensure_weight_tying"
        )
    return found


def adapter_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All parameters of the active adapter, none where the model has no adapter.

    Raises ValueError if a layer has several active adapters, or its adapter is merged or disabled.
    """
    found: list[nn.Parameter] = []
    for name, layer in model.named_modules():
        if not isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper):
            continue
        if len(active := list(layer.active_adapters)) > 1:
            raise ValueError(f"active adapters of {name} are {active}; activate one: model.set_adapter(name)")
        if layer.disable_adapters or layer.merged_adapters:
            raise ValueError(f"the adapter of {name} takes no part in the loss; unmerge and enable the adapter first")
        for part in layer.adapter_layer_names:
            held = getattr(layer, part, {})  # by adapter: modules or parameters
            for own in (held[adapter] for adapter in active if adapter in held):
                found += [own] if isinstance(own, nn.Parameter) else own.parameters()
    return found


def refuse_inexact(model: nn.Module) -> None:
    """Raise ValueError, naming the fix, for training whose step is not Adam's on the samples' losses alone.

    That is: another kind of adapter than LoRA, or a variant of LoRA other than DoRA, of which some add to the loss
    (AdaLoRA, KaSA), some draw at random or change gradients; an adapter with biases that was loaded frozen, so that
    its biases cannot be told from the base model's; a router's loss, which is of a whole batch.
    """
    for config in getattr(model, "peft_config", {}).values():
        if config.peft_type != PeftType.LORA:
            raise ValueError(f"the adapter is of the kind {config.peft_type.value}; fine-tune with LoRA or DoRA")
        if config.bias != "none" and not any(p.requires_grad for p in model.parameters()):
            raise ValueError(f"the adapter trains biases ({config.bias}) and is frozen; load it with is_trainable=True")
    for name, layer in model.named_modules():
        for variant in layer.lora_variant.values() if isinstance(layer, LoraLayer) else ():
            if not isinstance(variant, DoraLinearVariant):
                raise ValueError(f"{name} is a {type(variant).__name__}, no plain LoRA; fine-tune with LoRA or DoRA")
    config = getattr(model, "config", None)
    if getattr(config, "output_router_logits", False) and getattr(config, "router_aux_loss_coef", 0):
        raise ValueError(
            "the model's config adds a loss of the router over the whole batch, which is no sample's; train and score "
            "with output_router_logits=False"
        )


def uses_dora(model: nn.Module) -> bool:
    """Whether a LoRA layer is a DoRA one, the only variant that `refuse_inexact` lets pass."""
    return any(isinstance(layer, LoraLayer) and layer.lora_variant for layer in model.modules())


def scored_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Scored parameter's name -> the linear layer that owns it: its weight [out, in] or bias [out].

    Raises Unbatchable if a scored parameter is not of a linear layer of its own, ValueError as `scored_parameters`.
    """
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    layers: dict[str, nn.Linear] = {}
    others = []
    for name, parameter in scored_parameters(model).items():
        layer = model.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, nn.Linear) and owners[id(parameter)] == 1:
            layers[name] = layer
        else:
            others.append(name)
    if others:
        raise Unbatchable(f"{listed(others)} are trained and not of a linear layer, or tied to another layer's")
    return layers


def count_parameters(model: nn.Module) -> int:
    """d, the length of a flat gradient."""
    return sum(parameter.numel() for parameter in scored_parameters(model).values())


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def flatten(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """One vector [d], fp32, in the mapping's order: that of `scored_parameters` for matched moments and parameters."""
    return torch.cat([tensor.detach().flatten().float() for tensor in tensors.values()])


def listed(names: list[str], show: Callable[[str], str] = str) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(show(name) for name in names[:SHOWN]) or "nothing") + more

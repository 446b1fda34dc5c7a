"""Which parameters influence is computed over: the active LoRA adapter's factors, or else the trainable linear layers.

Everything flat in this package (gradients, directions, moments) is laid out in the order of `scored_layers(model)`.
"""

from collections import Counter
from collections.abc import Callable, Mapping

import torch
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import nn

SHOWN = 3  # names in an error message


def scored_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Parameter name -> the linear layer that owns it, in the order of model.named_modules().

    With LoRA layers, the scored parameters are the active adapter's factors, whether or not they require a gradient:
    lora_A [r, in] and lora_B [out, r]. Without, they are the weights [out, in] and biases [out] of linear layers that
    require a gradient. To leave some of these out of the score, freeze them.

    Raises ValueError where the score would leave out a part of the step: more than one adapter is active; a parameter
    that is in the adapter, or trainable, is not of a plain linear layer (experts, DoRA, LoRA biases, modules_to_save,
    embeddings, norms, convolutions) or is tied to another layer's; nothing is trainable.
    """
    if adapted := {path: module for path, module in model.named_modules() if isinstance(module, LoraLayer)}:
        return lora_factors(model, adapted)
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    layers: dict[str, nn.Linear] = {}
    others = []
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            if parameter.requires_grad:
                if isinstance(module, nn.Linear) and owners[id(parameter)] == 1:
                    layers[name] = module
                else:
                    others.append(name)
    if others:
        raise ValueError(
            f"influence is computed over linear layers, but {listed(others)} are trainable too and are not of one, or "
            "are tied to another layer; to leave them out of the score, freeze them: parameter.requires_grad_(False)"
        )
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no LoRA layer and nothing in it is trainable; load the warm-up's adapter with "
            "peft, or let the linear layers to be scored require gradients"
        )
    return layers


def lora_factors(model: nn.Module, adapted: Mapping[str, LoraLayer]) -> dict[str, nn.Linear]:
    """`scored_layers` of a model with LoRA: its active adapter's factors by the name of their weight."""
    factors: dict[str, nn.Linear] = {}
    others: list[str] = []
    if experts := [name for name, layer in adapted.items() if isinstance(layer, ParamWrapper)]:
        raise ValueError(
            f"influence is computed over LoRA factors of linear layers, but {listed(experts)} are adapted too, which "
            "hold a mixture of experts; adapt the attention alone: [q_proj, k_proj, v_proj, o_proj]"
        )
    for name, layer in adapted.items():
        if len(layer.active_adapters) != 1:
            raise ValueError(
                f"active adapters of {name} are {list(layer.active_adapters)}; activate one: model.set_adapter(name)"
            )
        adapter = layer.active_adapters[0]
        for part in layer.adapter_layer_names:
            if adapter not in (held := getattr(layer, part, {})):
                continue
            factor = held[adapter]
            if type(factor) is nn.Linear and "bias" not in dict(factor.named_parameters()):
                factors[f"{name}.{part}.{adapter}.weight"] = factor
            else:
                others.append(f"{name}.{part}.{adapter}")
    known = {id(factor.weight) for factor in factors.values()}
    others += [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in known]
    if others:
        raise ValueError(
            f"influence is computed over LoRA factors of linear layers, but {listed(others)} are adapted or trainable "
            "too; fine-tune with plain LoRA (no DoRA, bias or modules_to_save) on linear layers"
        )
    return factors


def scored_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameter name -> parameter, of `scored_layers(model)`."""
    return {name: layer.get_parameter(name.rpartition(".")[2]) for name, layer in scored_layers(model).items()}


def count_parameters(model: nn.Module) -> int:
    """d, the length of a flat gradient."""
    return sum(parameter.numel() for parameter in scored_parameters(model).values())


def device_of(model: nn.Module) -> torch.device:
    return next(iter(scored_parameters(model).values())).device


def flatten(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """One vector [d], fp32, in the mapping's order: that of `scored_layers`, for matched moments and parameters."""
    return torch.cat([tensor.detach().flatten().float() for tensor in tensors.values()])


def listed(names: list[str], show: Callable[[str], str] = str) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(show(name) for name in names[:SHOWN]) or "nothing") + more

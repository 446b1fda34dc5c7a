"""Causal language models and tokenizers in Hugging Face format, from a local folder or the hub.

Safe by default: weights are read from safetensors only and no code that comes with a model is run.
"""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants as hub
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.models.chat import choose_template

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    """The model's tokenizer. It pads on the left, as generation needs, with its end token if it has no padding token.

    Every prompt goes through its chat template (`chat.choose_template`). Raises ValueError where there is no tokenizer.
    """
    folder = check_source(spec)
    if folder and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        files = ", ".join(TOKENIZER_FILES)
        raise ValueError(f"{spec.path} has no tokenizer (none of {files}); write it with tokenizer.save_pretrained")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            spec.path, revision=spec.revision, trust_remote_code=False, padding_side="left"
        )
    except OSError as error:
        raise ValueError(unreadable(spec, "tokenizer", error)) from error
    tokenizer.chat_template = choose_template(tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(spec: ModelSpec, device: str | torch.device | None = None, merge: bool = True) -> PreTrainedModel:
    """The model in evaluation mode, in the dtype and attention of `spec`, on `device` (default: cuda, else cpu).

    An adapter is merged into the weights, in their dtype, so that training and scoring start from one model; without
    `merge` it stays beside them, as it was trained. Raises ValueError where there are no safetensors weights, where
    they lack a part of the model (which would be left random), where the attention implementation is not installed,
    or where the adapter was not made for this model.
    """
    disable_progress_bar()  # a line for every weight; stages show their own progress
    folder = check_source(spec)
    if folder and not any(folder.glob("*.safetensors")):
        found = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth"))
        hint = f"; {found} are pickles, which can run code: convert them" if found else ""
        raise ValueError(f"{spec.path} has no .safetensors weights{hint}; write them with model.save_pretrained")
    shape: Any = dict(revision=spec.revision, dtype=getattr(torch, spec.dtype), attn_implementation=spec.attention)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(  # a pair, since output_loading_info is set
            spec.path, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **shape
        )
    except OSError as error:
        raise ValueError(unreadable(spec, "safetensors weights", error)) from error
    except ImportError as error:
        raise ValueError(f"attention {spec.attention!r} cannot be used for {spec.path}: {error}; try sdpa") from error
    model, info = loaded
    if info["missing_keys"]:
        raise ValueError(f"the weights of {spec.path} lack {sorted(info['missing_keys'])[:5]}; is it a causal LM?")
    if spec.adapter:
        adapted = attach_adapter(model, spec.adapter, spec.path)
        model = adapted.merge_and_unload() if merge else adapted.get_base_model()
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def load_settings(spec: ModelSpec) -> PreTrainedConfig:
    """The model's config, without its weights."""
    return AutoConfig.from_pretrained(check_source(spec) or spec.path, revision=spec.revision, trust_remote_code=False)


def attach_adapter(model: PreTrainedModel, adapter: str, name: str) -> PeftModel:
    """The model with a LoRA adapter. Raises ValueError unless each weight of the adapter has its place in the model."""
    folder = check_adapter(adapter)
    try:
        adapted = PeftModel.from_pretrained(model, folder)
    except (ValueError, RuntimeError) as error:  # no such modules, other shapes
        cause = str(error).strip().splitlines()[0]
        raise ValueError(f"the adapter in {folder} does not fit {name}: {cause}") from error
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        unmatched = set(file.keys()) ^ set(get_peft_model_state_dict(adapted))
    if unmatched:  # peft leaves these at their start, with a warning
        raise ValueError(f"the adapter in {folder} does not fit {name}: only one has {sorted(unmatched)[:3]}")
    return adapted


def check_adapter(path: str) -> Path:
    """The folder of a LoRA adapter. Raises ValueError unless it has settings and safetensors weights (no pickles)."""
    folder = Path(path)
    needed = ("adapter_config.json", "adapter_model.safetensors")
    if missing := " and no ".join(name for name in needed if not (folder / name).is_file()):
        raise ValueError(f"{path} is no LoRA adapter: it has no {missing}; write it with model.save_pretrained")
    return folder


def check_source(spec: ModelSpec) -> Path | None:
    """The local folder of a model, or None for a name on the hub. Raises ValueError for a path without a folder."""
    folder = Path(spec.path)
    if folder.is_dir():
        return folder
    if folder.is_absolute() or spec.path.startswith((".", "~")) or spec.path.count("/") > 1:
        raise ValueError(f"no model folder at {spec.path}; check the path (it is relative to {Path.cwd()})")
    return None


def unreadable(spec: ModelSpec, what: str, error: Exception) -> str:
    """The message for a model that transformers cannot load; `what` is the part that cannot be read."""
    cause = str(error).strip().splitlines()[0]
    if Path(spec.path).is_dir():
        return f"the {what} in {spec.path} cannot be read: {cause}"
    revision = f" at revision {spec.revision}" if spec.revision else ""
    offline = " HF_HUB_OFFLINE is set, so only cached models are found." if hub.HF_HUB_OFFLINE else ""
    return (
        f"{spec.path}{revision} is no local folder, and the hub gave no {what} of that name: check the spelling, the "
        f"network and, for a gated model, HF_TOKEN.{offline} ({cause})"
    )

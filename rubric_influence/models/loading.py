"""Causal language models and tokenizers in Hugging Face format, from a local folder or the hub.

Safe by default: weights are read from safetensors only and no code that comes with a model is run.
"""

from pathlib import Path

import torch
from huggingface_hub import constants as hub
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from rubric_influence.core.config import ModelSpec

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    """The model's tokenizer, which pads on the left, as generation needs (training sets its own side).

    A tokenizer without a padding token pads with its end token. Raises ValueError where there is no tokenizer, or one
    without the chat template that every prompt goes through.
    """
    folder = check_source(spec)
    if folder and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(
            f"{spec.path} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}); save it there with "
            "tokenizer.save_pretrained"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            spec.path, revision=spec.revision, trust_remote_code=False, padding_side="left"
        )
    except OSError as error:
        raise ValueError(unreadable(spec, "tokenizer", error)) from error
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer of {spec.path} has no chat template; use the model's instruction-tuned version, or set "
            "tokenizer.chat_template and save it again"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(spec: ModelSpec, device: str | torch.device | None = None, merge: bool = True) -> PreTrainedModel:
    """The model in evaluation mode, in the dtype and attention of `spec`, on `device` (default: cuda, else cpu).

    An adapter is merged into the weights, in their dtype, so that training and scoring start from one model; without
    `merge` it stays beside them, as it was trained. Raises ValueError where there are no safetensors weights, where
    they lack a part of the model (which would be left random), where the attention implementation is not installed,
    or where the adapter is none of this model's.
    """
    disable_progress_bar()  # of every weight that is loaded; stages show their own
    folder = check_source(spec)
    if folder and not any(folder.glob("*.safetensors")):
        found = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth"))
        hint = f"; {found} are pickles, which can run code: convert them" if found else ""
        raise ValueError(f"{spec.path} has no .safetensors weights{hint}; write them with model.save_pretrained")
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            spec.path,
            revision=spec.revision,
            dtype=getattr(torch, spec.dtype),
            attn_implementation=spec.attention,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except OSError as error:
        raise ValueError(unreadable(spec, "safetensors weights", error)) from error
    except ImportError as error:
        raise ValueError(f"attention {spec.attention!r} cannot be used for {spec.path}: {error}; try sdpa") from error
    if info["missing_keys"]:
        raise ValueError(f"the weights of {spec.path} lack {sorted(info['missing_keys'])[:5]}; is it a causal LM?")
    if spec.adapter:
        adapted = attach_adapter(model, spec)
        model = adapted.merge_and_unload() if merge else adapted.get_base_model()
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def attach_adapter(model: PreTrainedModel, spec: ModelSpec) -> PeftModel:
    """The model with the adapter of `spec`, all of it. Raises ValueError where adapter and model do not match."""
    folder = check_adapter(spec.adapter)
    try:
        adapted = PeftModel.from_pretrained(model, folder)
    except (ValueError, RuntimeError) as error:  # no such modules, other shapes
        cause = str(error).strip().splitlines()[0]
        raise ValueError(f"the adapter in {folder} does not fit {spec.path}: {cause}") from error
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        unmatched = set(file.keys()) ^ set(get_peft_model_state_dict(adapted))
    if unmatched:  # peft leaves these at their start, with a warning
        raise ValueError(f"the adapter in {folder} does not fit {spec.path}: only one has {sorted(unmatched)[:3]}")
    return adapted


def check_adapter(path: str) -> Path:
    """The folder of a LoRA adapter. Raises ValueError where it is no such folder, or holds pickles alone."""
    folder = Path(path)
    missing = [n for n in ("adapter_config.json", "adapter_model.safetensors") if not (folder / n).is_file()]
    if missing:
        raise ValueError(
            f"{path} is no LoRA adapter: it has no {' and no '.join(missing)}; write it with model.save_pretrained"
        )
    return folder


def check_source(spec: ModelSpec) -> Path | None:
    """The local folder of a model, or None for what can only be a hub name. Raises ValueError for neither."""
    folder = Path(spec.path)
    if folder.is_dir():
        return folder
    if folder.is_absolute() or spec.path.startswith((".", "~")) or spec.path.count("/") > 1:
        raise ValueError(f"no model folder at {spec.path}; check the path (it is relative to {Path.cwd()})")
    return None


def unreadable(spec: ModelSpec, what: str, error: Exception) -> str:
    cause = str(error).strip().splitlines()[0]
    if Path(spec.path).is_dir():
        return f"the {what} in {spec.path} cannot be read: {cause}"
    revision = f" at revision {spec.revision}" if spec.revision else ""
    offline = " HF_HUB_OFFLINE is set, so only cached models are found." if hub.HF_HUB_OFFLINE else ""
    return (
        f"{spec.path}{revision} is no local folder, and the hub gave no {what} of that name: check the spelling, the "
        f"network and, for a gated model, HF_TOKEN.{offline} ({cause})"
    )

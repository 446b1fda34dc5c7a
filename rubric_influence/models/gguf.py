"""GGUF files (llama.cpp's format) turned into Hugging Face folders that every part of the product loads.

transformers reads the weights; quantised ones come out as the numbers that they stand for. What it would leave out or
guess in silence is refused: a tensor without a place in the model, a setting that it does not read, a tokenizer of a
kind that was not compared with llama.cpp's.
"""

import hashlib
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.utils.logging import disable_progress_bar

from rubric_influence.core.files import parse_json, read_text, write_json
from rubric_influence.core.scratch import discard
from rubric_influence.models.gguf_header import Header, read_header
from rubric_influence.models.gguf_tokenizers import build_tokenizer, check_tokenizer

SOURCE = "source.json"  # in a converted folder: what it was made of
BYTES = {"float32": 4, "bfloat16": 2}  # of a weight
LIBRARIES = 1 << 30  # bytes of memory that they take, tokenizer included
SPARE = 64 << 20  # bytes of disk for tokenizer and settings
NOT_LANGUAGE_MODELS = ("general", "tokenizer", "t5", "umt5")  # what transformers' table has beside causal LMs
# Settings without a name in transformers that the shapes of the tensors repeat.
SHOWN_BY_SHAPES = ("attention.key_length", "attention.value_length", "vocab_size")


def convert(
    path: str | Path, out: str | Path, dtype: str = "float32", end: str | None = None, pad: str | None = None
) -> bool:
    """Write a GGUF file's model, tokenizer and chat template to the folder `out`; False if they are there already.

    `end` and `pad` replace the file's end and padding token. The folder appears under its name once it is whole.
    Raises ValueError, before it writes anything, for a file that cannot be converted faithfully, where `out` holds
    something else, and where disk or memory do not suffice.
    """
    path, out = Path(path), Path(out)
    if not path.is_file():
        raise ValueError(f"no GGUF file at {path}; check the path (it is relative to {Path.cwd()})")
    header = read_header(path)
    check_header(header, path)
    tokenizer = build_tokenizer(header.metadata, end, pad)
    source = {
        "gguf": path.name,
        "sha256": hash_file(path),
        "dtype": dtype,
        "end": tokenizer.eos_token,
        "pad": tokenizer.pad_token,
    }
    if is_made_of(out, source):
        return False
    check_disk(out, header.weights * BYTES[dtype] + SPARE)
    check_memory(header.weights, max(map(math.prod, header.shapes.values()), default=0), dtype, path.name)
    ends = [tokenizer.eos_token_id, *([] if end else [header.metadata.get("tokenizer.ggml.eot_token_id")])]
    model = load_dense(path, header, dtype)
    context = model.config.max_position_embeddings
    tokenizer.model_max_length = context
    settings: dict[str, Any] = dict(bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id)
    settings["eos_token_id"] = sorted({place for place in ends if place is not None}) or None
    for name, value in settings.items():
        setattr(model.config, name, value)
    model.generation_config = GenerationConfig(**settings)
    with new_folder(out) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / SOURCE, source)
    return True


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_header(header: Header, path: Path) -> None:
    """Raise ValueError unless the file is a causal language model that can be read without loss."""
    known = {name.replace("_", ""): name for name in set(GGUF_CONFIG_MAPPING) - set(NOT_LANGUAGE_MODELS)}
    architecture = header.architecture
    if architecture not in known:
        raise ValueError(
            f"{path} is of the architecture {architecture!r}, which transformers does not read from GGUF (it reads "
            f"{', '.join(sorted(known))}); take the model's safetensors instead"
        )
    try:
        check_tokenizer(header.metadata)
    except ValueError as error:
        raise ValueError(f"the tokenizer of {path} cannot be built: {error}; take the model's own folder") from None
    read: Any = GGUF_CONFIG_MAPPING[known[architecture]]
    unread = [
        key
        for key in header.metadata
        if key.startswith(f"{architecture}.")
        and (name := key.removeprefix(f"{architecture}.")) not in read
        and name not in SHOWN_BY_SHAPES
    ]
    if unread:
        raise ValueError(
            f"{path} has settings that transformers does not read, so that it would build another model: "
            f"{', '.join(unread)}; take the model's safetensors instead"
        )


def load_dense(path: Path, header: Header, dtype: str) -> PreTrainedModel:
    """The model with the numbers that the quantised weights stand for. Raises ValueError where some have no place."""
    disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(  # a pair, since output_loading_info is set
            path.parent,
            gguf_file=path.name,
            dtype=getattr(torch, dtype),
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (ValueError, RuntimeError, KeyError, OSError) as error:  # RuntimeError: tensors of other shapes
        raise ValueError(f"transformers cannot read {path}: {error}; take the model's safetensors instead") from error
    quantised, info = loaded
    placed = sum(weight.numel() for weight in quantised.parameters())
    if info["missing_keys"] or info["mismatched_keys"] or placed != header.weights:
        raise ValueError(
            f"{path} holds {header.weights:,} weights, the model that transformers makes of it {placed:,}: some would "
            "be left out or stay random; take the model's safetensors instead"
        )
    # transformers marks the model as quantised, although it is not, and refuses to save it.
    config = quantised.config
    del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.load_state_dict(quantised.state_dict(), assign=True)
    model.tie_weights()
    return model


def is_made_of(out: Path, source: dict[str, Any]) -> bool:
    """Whether the folder `out` was made of `source`. Raises ValueError where there is something else."""
    if not out.exists():
        return False
    found = parse_json(read_text(out / SOURCE)) if (out / SOURCE).is_file() else "something else"
    if found != source:
        raise ValueError(f"{out} is there and was made of {found}, not of {source}; remove it or name another folder")
    return True


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder to write to, which is renamed to `out` once it is whole and removed if it does not become so."""
    folder = out.with_name(f"{out.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
        folder.rename(out)
    except BaseException:
        discard(folder)
        raise


def check_disk(out: Path, needed: int) -> None:
    """Raise ValueError unless the disk that is to hold `out` has `needed` bytes free."""
    there = next(folder for folder in [out.absolute(), *out.absolute().parents] if folder.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise ValueError(
            f"{out} needs {needed / 1e9:.2f} GB of disk, {free / 1e9:.2f} GB are free; free some, name a folder on "
            "another disk, or store the weights as bfloat16"
        )


def check_memory(weights: int, largest: int, dtype: str, what: str) -> None:
    """Raise ValueError unless a model of so many weights, `largest` of them in one tensor, can be converted."""
    needed = weights * BYTES[dtype] + 12 * largest + LIBRARIES  # a tensor is dequantised in several steps
    free = psutil.virtual_memory().available
    if free < needed:
        raise ValueError(
            f"to convert {what} takes about {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free; end other "
            "programs, store the weights as bfloat16, or convert it on a larger machine"
        )

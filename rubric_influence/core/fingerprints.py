"""Hashes that tell one model, or one set of weights, from another."""

import hashlib
import os
from pathlib import Path

from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.core.records import content_id


def hash_weights(folder: str | Path) -> str:
    """A hash of each safetensors file's name, size, first and last MiB: other weights have another one."""
    parts: list[object] = []
    for file in sorted(Path(folder).glob("*.safetensors")):
        with file.open("rb") as stream:
            head = stream.read(1 << 20)
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - (1 << 20)))
            parts += [file.name, size, hashlib.sha256(head + stream.read()).hexdigest()]
    return content_id(*parts)


def hash_adapter(folder: str | Path) -> str:
    """A hash of a LoRA adapter's weights and of its settings, since alpha scales the weights."""
    return content_id(hash_weights(folder), Path(folder, "adapter_config.json").read_text(encoding="utf-8"))


def fingerprint(spec: ModelSpec) -> str:
    """A hash of what the profile says of a model, and of its weights where they are local.

    Of the settings of an endpoint, it covers only those that shape an answer: a new price or time limit keeps it.
    """
    parts = [spec.model_dump(exclude={"endpoint", "adapter"}), hash_weights(spec.path)]
    if spec.adapter:
        parts.append(hash_adapter(spec.adapter))
    if spec.endpoint:
        parts += [spec.endpoint.base_url, spec.endpoint.extra_body]
        if shaping := sorted(set(spec.endpoint.omit) - {"seed"}):
            parts.append(shaping)
    return content_id(*parts)

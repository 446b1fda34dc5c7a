"""Sentence embeddings by a model of the library sentence-transformers, from a local folder or the hub.

Safe as models.loading: weights are read from safetensors only, and no code that comes with a model is run.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers.utils.logging import disable_progress_bar

from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.models.loading import check_source, unreadable

Embed = Callable[[Sequence[str]], np.ndarray]  # texts -> unit vectors [n, h]
MODULES = "modules.json"  # the parts of a model and their order; without it the library would invent some
READ = ["*.json", "*.txt", "*.model", "*.safetensors"]  # of a repository; neither pickles nor code


def check_embedder(path: str) -> Path | None:
    """The local folder of an embedder, or None for a name on the hub. Raises ValueError for a folder that is none."""
    folder = check_source(ModelSpec(path=path))
    if folder:
        check_folder(folder, path)
    return folder


def check_folder(folder: Path, name: str) -> None:
    """Raise ValueError unless the folder holds a model of sentence-transformers with all weights in safetensors."""
    if not (folder / MODULES).is_file():
        raise ValueError(
            f"the embedder {name} has no {MODULES}, so it is no model of sentence-transformers; give one, such as "
            "sentence-transformers/all-MiniLM-L6-v2 or a folder that SentenceTransformer.save_pretrained wrote"
        )
    pickles = [
        path for path in sorted(folder.rglob("pytorch_model*.bin")) if not any(path.parent.glob("*.safetensors"))
    ]
    if pickles or not any(folder.rglob("*.safetensors")):
        hint = f"; {pickles[0].relative_to(folder)} is a pickle, which can run code" if pickles else ""
        raise ValueError(
            f"the embedder {name} lacks weights in .safetensors{hint}; write them with "
            "SentenceTransformer.save_pretrained"
        )


def download(name: str) -> Path:
    """The folder of a model of the hub. Raises ValueError where there is none, or no embedder."""
    try:
        folder = Path(snapshot_download(name, allow_patterns=READ))
    except (OSError, ValueError) as error:
        raise ValueError(unreadable(ModelSpec(path=name), "embedder", error)) from error
    check_folder(folder, name)
    return folder


def load_embedder(path: str) -> Embed:
    """A function from texts to their unit vectors, in fp32, on cuda where it is there, else the CPU.

    Raises ValueError where `path` is no embedder.
    """
    from sentence_transformers import SentenceTransformer  # some seconds, which few runs need

    disable_progress_bar()
    folder = check_embedder(path) or download(path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = {"use_safetensors": True, "dtype": torch.float32}
    try:
        model = SentenceTransformer(
            str(folder), device=device, trust_remote_code=False, local_files_only=True, model_kwargs=settings
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(unreadable(ModelSpec(path=path), "embedder", error)) from error

    def embed(texts: Sequence[str]) -> np.ndarray:
        return model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)

    return embed

"""The engine that a profile names. No other module knows all engines."""

import torch

from rubric_influence.core.journal import Journal
from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.engines.base import Engine, name_model
from rubric_influence.engines.endpoint import EndpointEngine
from rubric_influence.engines.ledger import Ledger
from rubric_influence.engines.transformers_engine import TransformersEngine
from rubric_influence.engines.vllm_engine import VLLMEngine
from rubric_influence.models.loading import load_model, load_tokenizer


def open_engine(
    spec: ModelSpec,
    batch_size: int,
    device: str | torch.device | None = None,
    journal: Journal | None = None,
    ledger: Ledger | None = None,
    what: str = "",
) -> Engine:
    """The engine that `spec` names, with its model loaded; vLLM chooses batches and device itself.

    An endpoint's engine keeps answers in `journal` and counts them in `ledger` as `what`; callers of others do that.
    """
    if spec.engine == "openai":
        return EndpointEngine(spec, journal, ledger, what)
    if spec.engine == "vllm":
        return VLLMEngine(spec)
    return TransformersEngine(load_model(spec, device, merge=False), load_tokenizer(spec), name_model(spec), batch_size)

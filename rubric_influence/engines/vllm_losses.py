"""Losses of given tokens under LoRA adapters, by vLLM inside this process: what influence needs of an engine.

vLLM gives the log-probability of every prompt token (`prompt_logprobs`). Such requests do not read the prefix cache,
and long prompts that are cut into chunks are put together again (vllm/v1/worker/gpu_model_runner.py, 5582).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.engines.vllm_engine import VLLMEngine, import_vllm, offer_rank, read_lora
from rubric_influence.models.examples import IGNORED, Example
from rubric_influence.models.loading import check_adapter

# vLLM looks the adapter of these up by request, not by token, and fails where a prompt's logits are asked for
# (LogitsProcessorWithLoRA). Wherever it may adapt all modules it adapts lm_head.
UNTOKENED = {"lm_head", "embed_tokens"}


@dataclass(frozen=True)
class AdapterShape:
    """What vLLM has to make room for: the highest rank of adapters, and the modules that they adapt, by last name."""

    rank: int
    modules: tuple[str, ...]


class VLLMLosses:
    """Mean losses of samples' labelled tokens under one LoRA adapter after another, all of one shape (`read_shape`).

    An adapter's folder must not change once it was used: vLLM reads it once. `options` go to vllm.LLM, as VLLMEngine's.
    Raises ValueError for a rank that vLLM does not serve, ImportError where vLLM is not installed.
    """

    def __init__(self, spec: ModelSpec, shape: AdapterShape, **options: Any):
        serving: dict[str, Any] = dict(enable_lora=True, max_loras=1)  # all samples of a call are under one adapter
        serving |= dict(max_lora_rank=offer_rank(shape.rank), lora_target_modules=list(shape.modules))
        self.engine = VLLMEngine(spec, enable_prefix_caching=False, **serving | options)
        self.numbers: dict[Path, int] = {}  # by adapter: vLLM takes adapters of one number for the same

    def __call__(self, adapter: Path, examples: Sequence[Example]) -> torch.Tensor:
        """Each example's mean loss over its labelled tokens, [n], fp64, in nats, of log-probabilities in float32.

        Raises ValueError for an example that leaves no room for the one token that vLLM always writes.
        """
        from vllm.lora.request import LoRARequest

        room = self.engine.room - 1
        if long := [place for place, example in enumerate(examples) if len(example.input_ids) > room]:
            length = len(examples[long[0]].input_ids)
            raise ValueError(
                f"example {long[0]} has {length} tokens, and vLLM scores up to {room} of {self.engine.name}; cut "
                "samples there, or leave longer ones out"
            )
        number = self.numbers.setdefault(adapter, len(self.numbers) + 1)
        prompts = [{"prompt_token_ids": example.input_ids} for example in examples]
        asked = dict(max_tokens=1, temperature=0.0, prompt_logprobs=0, flat_logprobs=True, detokenize=False)
        outputs = self.engine.llm.generate(
            prompts,
            self.engine.vllm.SamplingParams(**asked),
            use_tqdm=False,
            lora_request=LoRARequest(str(adapter), number, str(adapter.resolve())),
        )
        return torch.stack([read_loss(*pair) for pair in zip(examples, outputs, strict=True)])


def read_loss(example: Example, output: Any) -> torch.Tensor:
    """The mean over labelled tokens of -log p, fp64. Raises ValueError unless vLLM tells that of each of its tokens."""
    found = output.prompt_logprobs  # flat: one entry for each token but the first
    if found is None or found.token_ids != example.input_ids[1:]:
        count = 0 if found is None else len(found.token_ids)
        raise ValueError(f"vLLM gave log-probabilities of {count} tokens, not of {len(example.input_ids) - 1}")
    labelled = torch.tensor(example.labels[1:]) != IGNORED
    return -torch.tensor(found.logprobs, dtype=torch.float64)[labelled].mean()


def read_shape(model: str, folders: Sequence[str | Path]) -> AdapterShape:
    """The shape of LoRA adapters for a model. Raises ValueError for one that vLLM would not serve as it was trained."""
    ranks, modules = [], set()
    for folder in folders:
        config = read_lora(check_adapter(str(folder)))
        with safe_open(Path(folder) / "adapter_model.safetensors", framework="pt") as file:
            adapted = {name.split(".lora_")[0].rpartition(".")[2] for name in file.keys()}  # noqa: SIM118 - not a dict
        if found := sorted(adapted & UNTOKENED):
            raise ValueError(
                f"the adapter in {folder} has {', '.join(found)}, of which vLLM gives no losses; score without vllm"
            )
        ranks.append(config.r)
        modules |= adapted
    import_vllm(model)
    offer_rank(max(ranks))
    return AdapterShape(max(ranks), tuple(sorted(modules)))

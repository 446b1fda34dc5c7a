"""vLLM as a text engine: in this process, for servers with a GPU.

vLLM's build for CPUs is the same source, so tests without a GPU test this engine itself.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import torch
from peft import LoraConfig, PeftConfig

from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.engines.base import Completion, Sampling, name_model
from rubric_influence.models.chat import Conversation, check_room, encode_prompts, find_ends, read_row
from rubric_influence.models.loading import check_adapter, load_tokenizer

CPU_OPTIONS = {  # what vLLM's build for CPUs has to be told
    "enforce_eager": True,  # compiling takes longer than a test, and gains a sixth
    "kv_cache_memory_bytes": 1 << 30,  # vLLM would take 0.9 of all memory
    # A prompt that is cut into chunks rewinds its request's generator (vllm/v1/worker/gpu_model_runner.py, 3701), which
    # generators on CPUs cannot do: a batch of seeded requests would end vLLM.
    "enable_chunked_prefill": False,
}

# Settings of a LoRA adapter that vLLM refuses once it serves it or, the patterns, passes over in silence
# (vllm/lora/peft_helper.py), so that it would serve another model.
UNSERVED = (
    *("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "target_parameters", "lora_bias"),
    *("trainable_token_indices", "layer_replication", "alora_invocation_tokens"),
)


class VLLMEngine:
    """vLLM inside this process: its own batching, prefix cache and, over several GPUs, tensor parallelism.

    `options` go to vllm.LLM as they are, for instance max_model_len. Request i draws from (seed, i). Prompts and
    answers are tokenised here, as in TransformersEngine: vLLM's own text differs by a blank for some tokenizers. An
    adapter is served beside the weights. A constrained completion that max_tokens cuts stays open: it is unfinished and
    does not parse. vLLM chooses the attention, whatever `spec` says.
    Raises ImportError where vLLM is not installed, ValueError for an adapter that it cannot serve (`read_lora`).
    """

    independent = False

    def __init__(self, spec: ModelSpec, **options: Any):
        vllm = import_vllm(spec.path)
        from vllm.lora.request import LoRARequest
        from vllm.platforms import current_platform

        self.tokenizer = load_tokenizer(spec)  # vLLM would fail late, or fall back, where the chat template is missing
        self.name, self.vllm, self.adapter = name_model(spec), vllm, None
        if spec.adapter:
            folder = check_adapter(spec.adapter)
            self.adapter = LoRARequest("adapter", 1, str(folder.resolve()))
            room = offer_rank(read_lora(folder).r)
            options = dict(enable_lora=True, max_loras=1, max_lora_rank=room) | options
        if current_platform.is_cpu():
            options = CPU_OPTIONS | options
        with keep_threads():
            self.llm = vllm.LLM(
                model=spec.path,
                revision=spec.revision,
                tokenizer_revision=spec.revision,
                dtype=spec.dtype,
                tensor_parallel_size=spec.tensor_parallel,
                gpu_memory_utilization=spec.gpu_memory,
                load_format="safetensors",
                trust_remote_code=False,
                generation_config="vllm",
                # Else a model may fill its tokens with blanks between the keys; vLLM ignores this if set on a request.
                structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
                **options,
            )
        settings = self.llm.llm_engine.model_config
        self.room = settings.max_model_len
        self.ends = find_ends(self.tokenizer, settings.try_get_generation_config().get("eos_token_id"), self.name)

    def generate(self, conversations: Sequence[Conversation], sampling: Sampling) -> list[Completion]:
        from vllm.sampling_params import StructuredOutputsParams

        if not conversations:
            return []
        prompts = encode_prompts(self.tokenizer, conversations)
        check_room(prompts, sampling.max_tokens, self.room, self.name)
        # A seed for each request, below 2^63, as vLLM wants them.
        seeds = np.random.SeedSequence(sampling.seed).generate_state(len(prompts), np.uint64) >> np.uint64(1)
        shared: dict[str, Any] = dict(temperature=sampling.temperature, top_p=sampling.top_p, detokenize=False)
        shared |= dict(max_tokens=sampling.max_tokens, stop_token_ids=self.ends)
        schema = sampling.schema.model_json_schema() if sampling.schema else None
        parameters = [
            self.vllm.SamplingParams(
                seed=int(seed), structured_outputs=StructuredOutputsParams(json=schema) if schema else None, **shared
            )
            for seed in seeds
        ]
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self.llm.generate(asked, parameters, use_tqdm=False, lora_request=self.adapter)
        rows = [read_row(self.tokenizer, list(output.outputs[0].token_ids), self.ends) for output in outputs]
        read = zip(prompts, rows, strict=True)
        return [Completion(text, len(prompt), count, ended) for prompt, (text, count, ended) in read]


def import_vllm(path: str) -> ModuleType:
    """vllm, for the model in `path`. Raises ImportError, saying what to do, where it is not installed."""
    try:
        import vllm
    except ImportError as error:
        raise ImportError(
            f"the engine of {path} is vllm, which is not installed ({error}): pip install .[vllm] on a machine with a "
            "GPU, or set engine: transformers"
        ) from error
    return vllm


def read_lora(folder: Path) -> LoraConfig:
    """The settings of the LoRA adapter in a folder. Raises ValueError for one that vLLM would not serve as trained."""
    settings = PeftConfig.from_pretrained(str(folder))
    if not isinstance(settings, LoraConfig):
        raise ValueError(f"the adapter in {folder} is no LoRA, and vLLM serves no other; merge it, or do without vllm")
    found = [name for name in UNSERVED if getattr(settings, name)] + ["bias"] * (settings.bias != "none")
    if found:
        raise ValueError(
            f"the adapter in {folder} has {', '.join(found)}, which vLLM does not serve; merge it, or do without vllm"
        )
    return settings


def offer_rank(rank: int) -> int:
    """The least rank of adapters that vLLM can be started for and that `rank` fits in. Raises ValueError if none."""
    from vllm.config.lora import MaxLoRARanks

    offered = get_args(MaxLoRARanks)
    if rank > max(offered):
        raise ValueError(f"the LoRA adapter is of rank {rank}, vLLM serves up to {max(offered)}; merge it")
    return min(size for size in offered if size >= rank)


@contextmanager
def keep_threads() -> Iterator[None]:
    """While vLLM starts, its workers on CPUs get as many threads as this process has, not bound to cores.

    By itself vLLM leaves one thread idle, binds the others to cores that other processes may use, and replaces
    torch.set_num_threads where it runs in this process (VLLM_ENABLE_V1_MULTIPROCESSING=0). Environment variables that
    are set already stay as they are.
    """
    ours = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    added, set_threads = [name for name in ours if name not in os.environ], torch.set_num_threads
    os.environ.update({name: ours[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
        torch.set_num_threads = set_threads

"""vLLM as a text engine: in this process, for servers with a GPU (generation.py states what every engine does)."""

import numpy as np
from pydantic import BaseModel

from rubric_influence.config import ModelSpec
from rubric_influence.generation import TEMPLATE_OPTIONS, Completion, Conversation, name_model
from rubric_influence.models import load_tokenizer


class VLLMEngine:
    """vLLM inside this process (GPU servers): its own batching, prefix cache and, over several GPUs, parallelism.

    `options` go to vllm.LLM as they are, for instance max_model_len or enforce_eager. Request i draws from
    (seed, i). A constrained completion that max_tokens cuts stays open: it is unfinished, and will not parse.
    Raises ImportError where vLLM is not installed; `attention` of the spec is vLLM's own affair.
    """

    independent = False

    def __init__(self, spec: ModelSpec, **options):
        try:
            import vllm
        except ImportError as error:
            raise ImportError(
                f"the engine of {spec.path} is vllm, which is not installed ({error}): pip install .[vllm] on a "
                "machine with a GPU, or set engine: transformers"
            ) from error
        load_tokenizer(spec)  # vLLM would fail late, or fall back, where the chat template is missing
        self.name = name_model(spec)
        self.vllm = vllm
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

    def generate(
        self,
        conversations: list[Conversation],
        *,
        seed: int,
        temperature: float,
        top_p: float,
        max_tokens: int,
        schema: type[BaseModel] | None = None,
    ) -> list[Completion]:
        from vllm.sampling_params import StructuredOutputsParams

        if not conversations:
            return []
        # One state a request; vLLM wants signed 64-bit seeds.
        seeds = np.random.SeedSequence(seed).generate_state(len(conversations), np.uint64) >> np.uint64(1)
        schema_json = schema.model_json_schema() if schema else None
        parameters = [
            self.vllm.SamplingParams(
                seed=int(request_seed),
                temperature=temperature,
                top_p=top_p,
                max_tokens=max_tokens,
                structured_outputs=StructuredOutputsParams(json=schema_json) if schema_json else None,
            )
            for request_seed in seeds
        ]
        outputs = self.llm.chat(conversations, parameters, use_tqdm=False, chat_template_kwargs=TEMPLATE_OPTIONS)
        return [
            Completion(
                output.outputs[0].text,
                len(output.prompt_token_ids),
                len(output.outputs[0].token_ids),
                output.outputs[0].finish_reason == "stop",
            )
            for output in outputs
        ]

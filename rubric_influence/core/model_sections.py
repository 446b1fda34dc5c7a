"""The section `models` of a profile: where models are, and what generates text from them."""

import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import JsonValue

from rubric_influence.core.section import Count, NonNegative, Positive, PositiveFraction, Section

Sampled = Literal["seed", "temperature", "top_p"]
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Endpoint(Section):
    """An OpenAI-compatible server (rubric_influence.engines.endpoint). Its key stays in the environment."""

    base_url: str  # https://..., or http:// on this machine
    api_key_env: str | None = None  # the environment variable that holds the key; null: the server wants none
    usd_per_million_prompt_tokens: NonNegative = 0.0  # price of what is sent, for the ledger
    usd_per_million_completion_tokens: NonNegative = 0.0  # price of what it answers, for the ledger
    concurrency: Count = 64  # requests out at once, at most; fewer while the server says that it has too many
    timeout: Positive = 120.0  # seconds that one request may take in all
    attempts: Count = 8  # tries of a request before it is given up as failed
    backoff: Positive = 0.5  # seconds before the second try, doubled at each further one
    extra_body: dict[str, JsonValue] = {}  # sent with every request, e.g. chat_template_kwargs for vLLM
    omit: list[Sampled] = []  # parameters that are not sent
    rename: dict[Sampled | Literal["max_tokens"], str] = {}  # as the server has it: max_tokens: max_completion_tokens
    stream: bool = False  # answers come as streams; found by itself where the server gives no others

    def model_post_init(self, context: object) -> None:
        # The first two messages do not repeat what was found: it may be the key.
        key = self.api_key_env
        if key is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", key):
            raise ValueError("api_key_env is the name of an environment variable, such as TEACHER_KEY, not the key")
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname or url.username or url.password or url.query:
            raise ValueError("base_url must be http(s)://host/path, without user, password or query")
        if url.scheme == "http" and key and url.hostname not in LOOPBACK:
            raise ValueError(f"base_url {self.base_url!r} would send the key of {key} unencrypted; use https")


class ModelSpec(Section):
    """A model in Hugging Face format, with tokenizer and chat template, or a model of an endpoint."""

    path: str  # a hub name or a local folder; with the engine openai, the endpoint's name of the model
    revision: str | None = None  # of the hub: a branch, tag or commit; null: the default branch
    adapter: str | None = None  # a local folder of a LoRA adapter (peft) on top; engines serve it unmerged
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the weights in memory
    attention: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"  # its implementation in transformers
    engine: Literal["transformers", "vllm", "openai"] = "transformers"  # what generates text from it
    endpoint: Endpoint | None = None  # for the engine openai
    tensor_parallel: Count = 1  # GPUs that vLLM spreads the model over
    gpu_memory: PositiveFraction = 0.9  # the part of a GPU's memory that vLLM takes; others may need the rest

    def model_post_init(self, context: object) -> None:
        if (self.engine == "openai") != (self.endpoint is not None):
            found = "no endpoint" if self.endpoint is None else "an endpoint"
            raise ValueError(f"engine is {self.engine!r}, with {found}; the engine openai needs one, others have none")
        if self.engine == "openai" and self.adapter:
            raise ValueError(
                f"adapter is {self.adapter!r}, which an endpoint cannot read; name it to the server "
                "(vllm serve --lora-modules NAME=FOLDER) and set path to that name"
            )
        if self.engine != "openai" and self.path.lower().endswith(".gguf"):
            raise ValueError(
                f"path {self.path} is a GGUF file; make a folder of it (rubric-influence model convert {self.path} "
                f"{self.path[:-5]}) and give that as path, or serve it and use the engine openai"
            )


class Models(Section):
    """The three roles. One model may play several."""

    rubric_generator: ModelSpec  # writes rubrics; RL trains it
    teacher: ModelSpec  # writes pairs; is never trained
    target: ModelSpec  # the model that the data are for: it scores pairs and is fine-tuned on them

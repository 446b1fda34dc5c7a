"""Every parameter of a run: the sections of a profile. `params.yaml` is the active profile, `conf/` holds others."""

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Section(BaseModel):
    """Strict: `1e-5` (which YAML reads as text), `"yes"` for a boolean or a misspelt key are errors, not guesses.

    A section's `model_post_init` raises ValueError for fields that contradict each other; pydantic names the section.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def check_micro_batch(micro_batch: int | None, batch: int, name: str) -> None:
    if micro_batch and batch % micro_batch:
        raise ValueError(f"micro_batch ({micro_batch}) must divide {name} ({batch})")


class LabCorpus(Section):
    """The embedded lab's world (rubric_influence.lab.world)."""

    kind: Literal["lab"]
    field: str  # the YAML file with the field's table
    documents: Count  # entities with a document; the dev and test questions are about them
    dev_documents: Count  # how many of these are in dev; the others are in test
    validation_entities: Count  # entities without a document that the validation questions are about
    guard_entities: Count  # entities without a document that the guard questions are about; nothing optimises for them
    seed: int

    def model_post_init(self, context: object) -> None:
        dev, documents = self.dev_documents, self.documents
        if dev >= documents:
            raise ValueError(f"dev_documents ({dev}) must be below documents ({documents}): the rest is the test")


class TextCorpus(Section):
    """Real documents (rubric_influence.data.documents) and a real exam (rubric_influence.data.exams)."""

    kind: Literal["text"]
    documents: str  # a folder of .txt, .md or .pdf files, a .jsonl file or PubMedQA's ori_pqal.json
    exam: str  # PubMedQA's ori_pqal.json, a MedQA-style .jsonl, an MMLU-style .csv or a folder of these
    exam_format: Literal["pubmedqa", "medqa", "mmlu"]
    max_documents: Count | None = None  # how many documents are kept, after shuffling by seed; null: all
    max_document_words: Count = 1500  # a longer document is cut into chunks of at most this many words
    validation: Fraction = 0.2
    guard: Fraction = 0.1
    dev: Fraction = 0.2  # the rest of the questions is the test
    max_exam_items: Count | None = None
    seed: int

    def model_post_init(self, context: object) -> None:
        if self.validation + self.guard + self.dev >= 1:
            parts = f"validation ({self.validation}) + guard ({self.guard}) + dev ({self.dev})"
            raise ValueError(f"{parts} must leave a part of the questions for the test: a sum below 1")


class Endpoint(Section):
    """An OpenAI-compatible server (rubric_influence.engines.endpoint). Its key stays in the environment."""

    base_url: str  # https://..., or http:// on this machine
    api_key_env: str | None = None  # the environment variable that holds the key; null: the server wants none
    usd_per_million_prompt_tokens: NonNegative = 0.0
    usd_per_million_completion_tokens: NonNegative = 0.0
    concurrency: Count = 64  # requests out at once, at most; fewer while the server says that it has too many
    timeout: Positive = 120.0  # seconds that one request may take in all
    attempts: Count = 8  # tries of a request before it is given up as failed
    backoff: Positive = 0.5  # seconds before the second try, doubled at each further one
    extra_body: dict[str, JsonValue] = {}  # sent with every request, e.g. chat_template_kwargs for vLLM

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
    revision: str | None = None
    adapter: str | None = None  # a local folder of a LoRA adapter (peft) on top; engines serve it unmerged
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    attention: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"
    engine: Literal["transformers", "vllm", "openai"] = "transformers"  # what generates text from it
    endpoint: Endpoint | None = None  # for the engine openai
    tensor_parallel: Count = 1
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


class Models(Section):
    rubric_generator: ModelSpec
    teacher: ModelSpec
    target: ModelSpec


class Prompts(Section):
    """What the models are asked. Slots: {document}, {rubric}, {question}."""

    rubric: str
    pair: str
    pair_without_rubric: str
    answer: str = "{question}"
    expert_rubrics: list[str] = Field(min_length=1)  # the arm expert_rubric uses them in turn
    privileged_rubrics: list[str] = []  # by someone who knows the exam, for the arm of that name; empty: no such arm

    def model_post_init(self, context: object) -> None:
        documents = [(name, "{document}") for name in ("rubric", "pair", "pair_without_rubric")]
        for name, slot in [*documents, ("pair", "{rubric}"), ("answer", "{question}")]:
            if slot not in getattr(self, name):
                raise ValueError(f"prompts.{name} has no {slot} slot; it is {getattr(self, name)!r}")


class Budget(Section):
    """How many pairs a document gets, one rubric each."""

    initial_pairs: Count  # in the initial set, which the warm-up trains on
    final_pairs: Count  # in every arm's final set


class Synthesis(Section):
    """How rubrics and pairs are sampled."""

    batch_size: Count
    temperature: Positive = 1.0
    top_p: PositiveFraction = 1.0
    max_rubric_tokens: Count
    max_pair_tokens: Count
    max_prompt_tokens: Count  # a longer prompt is refused at the corpus stage
    constrained: bool  # force the JSON schema while decoding
    attempts: Count = 3  # requests for one rubric or pair, the first included, until it is valid
    budget_usd: Positive | None = None  # for each stage and seed; the run stops before a request that might exceed it
    budget_tokens: Count | None = None  # the same limit for prompt and completion tokens together
    window: Count = 512  # documents at once where a corpus is synthesised into shards


Check = Literal["near_duplicate", "exam_words", "exam_meaning", "personal_data", "language", "length"]


class Quality(Section):
    """What every pair of a final set is checked for (synthesis.screening). A flag alone removes nothing."""

    remove: list[Check] = []  # pairs with one of these flags are left out of what is trained on and released
    near_duplicate: PositiveFraction = 0.8  # Jaccard similarity to an earlier pair, by 3 words
    exam_words: Annotated[int, Field(ge=4)] = 13  # consecutive words shared with a question of the exam
    exam_meaning: Fraction | None = 0.99  # similarity to an exam question, as a quantile among the exam's; null: off
    language: Annotated[str, Field(pattern="^[a-z]{2}$")] | None = None  # ISO 639-1; null: any
    shortest: Count = 3  # words of question and answer together
    longest: Count = 2000


class Lora(Section):
    r: Count
    alpha: Count
    targets: str | list[str] = "all-linear"


class FineTuning(Section):
    """One LoRA fine-tuning run of the target (rubric_influence.training.fine_tuning)."""

    epochs: Count
    batch_size: Count
    micro_batch: Count | None = None  # sequences on a device at once, accumulated to a batch; null: its whole share
    learning_rate: Positive
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    adam_betas: Annotated[tuple[Fraction, Fraction], Field(strict=False)] = (0.9, 0.999)
    adam_epsilon: Positive = 1.0e-8
    weight_decay: NonNegative = 0.0
    max_tokens: Count  # longer examples are cut

    def model_post_init(self, context: object) -> None:
        check_micro_batch(self.micro_batch, self.batch_size, "batch_size")


class Warmup(FineTuning):
    fraction: PositiveFraction = 1.0  # part of the initial set it trains on
    checkpoints: Count = 1  # how many of the last epochs' states influence sums over


class Influence(Section):
    """How a pair is scored on the warmed-up target (rubric_influence.influence.scorers)."""

    estimator: Literal["adam", "linear", "gradient", "forward"] = "adam"
    momentum: bool  # whether Gamma holds the first moment, a direction common to all samples
    normalise: bool = False  # true: cosines, as the paper; dot products predict better what training gains
    batch_tokens: Count  # padded tokens of a batch that is scored at once
    directions: Literal["mean", "topics", "clusters"]  # what the reward sums over: one validation gradient or several
    clusters: Count = 8

    def model_post_init(self, context: object) -> None:
        if self.estimator == "forward" and self.normalise:
            raise ValueError("the forward estimator gives dot products, no cosines; set normalise to false")


class Gate(Section):
    """Whether influence predicts what training gains, found out before RL spends on it (pipeline.stages.gate)."""

    sets: Annotated[int, Field(ge=8)] = 32  # random sets of pairs for every seed; each is trained on by itself
    set_size: Count = 16
    epochs: Count = 4
    batch_size: Count = 16
    learning_rate: Positive
    threshold: Annotated[float, Field(ge=-1, le=1)] = 0.0  # the rank correlation's 95 % interval must lie above it
    override: bool = False  # true: go on all the same where it does not


class RubricRL(Section):
    """GRPO on the rubric generator (rubric_influence.rl.grpo)."""

    steps: Count
    documents_per_step: Count
    group_size: Annotated[int, Field(ge=2)]
    micro_batch: Count | None = None  # as in FineTuning; a step's batch is documents_per_step * group_size rubrics
    learning_rate: Positive
    temperature: Positive = 1.0
    kl: NonNegative = 0.0
    scale_rewards: Literal["none", "group", "batch"] = "none"
    loss: Literal["dr_grpo", "grpo", "dapo"] = "dr_grpo"
    pairs_per_rubric: Count = 1
    invalid_penalty: NonNegative = 1.0  # in the unit of the reward; with set_influence the mean is near 1
    reward: Literal["set_influence", "influence", "published", "random", "shuffled"]
    save_every: Count = 10  # steps
    checkpoint: Literal["last", "dev"] = "last"  # which generator is kept: the last, or the best by dev questions
    lora: Lora | None = None  # null: full fine-tuning
    vllm: Literal["off", "colocate", "server"] = "off"

    def model_post_init(self, context: object) -> None:
        batch = self.documents_per_step * self.group_size
        check_micro_batch(self.micro_batch, batch, "documents_per_step * group_size")


class Evaluation(Section):
    batch_size: Count
    bootstrap: Count = 2000  # resamples


class Machine(Section):
    """How a stage's independent runs (seeds, arms) share the machine (rubric_influence.pipeline.jobs)."""

    workers: Count = 1  # processes; 1 on a GPU
    threads: Count | None = None  # CPU threads of each; set it for the same bytes on any number of cores


class Config(Section):
    seeds: list[int] = Field(min_length=1)
    corpus: Annotated[LabCorpus | TextCorpus, Field(discriminator="kind")]
    models: Models
    prompts: Prompts
    budget: Budget
    synthesis: Synthesis
    quality: Quality = Quality()
    lora: Lora
    warmup: Warmup
    influence: Influence
    gate: Gate
    rl: RubricRL
    finetuning: FineTuning
    evaluation: Evaluation
    machine: Machine = Machine()

    def model_post_init(self, context: object) -> None:
        if repeated := sorted({seed for seed in self.seeds if self.seeds.count(seed) > 1}):
            raise ValueError(f"seeds {self.seeds} name {repeated} twice, as if one run were two; give each once")

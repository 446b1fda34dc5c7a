"""Every parameter of a run: the sections of a profile. `params.yaml` is the active profile, `conf/` holds others."""

from typing import Annotated, Literal

from pydantic import Field

from rubric_influence.core.corpus_sections import BookCorpus, LabCorpus, TextCorpus
from rubric_influence.core.model_sections import Models, ModelSpec
from rubric_influence.core.section import Count, Fraction, NonNegative, Positive, PositiveFraction, Section


def check_micro_batch(micro_batch: int | None, batch: int, name: str) -> None:
    if micro_batch and batch % micro_batch:
        raise ValueError(f"micro_batch ({micro_batch}) must divide {name} ({batch})")


class Prompts(Section):
    """What the models are asked. Slots: {document}, {rubric}, {question}; {language}, the document's, if wanted."""

    rubric: str  # asks the rubric generator for a rubric
    pair: str  # asks the teacher for a pair as a rubric wants it
    pair_without_rubric: str  # asks the teacher for a pair of the arm no_rubric
    answer: str = "{question}"  # how the target is asked a question, in training as in the exam
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

    batch_size: Count  # prompts that an engine on this machine answers at once
    temperature: Positive = 1.0  # of rubrics and pairs; RL's rubrics have their own
    top_p: PositiveFraction = 1.0  # nucleus sampling: the likeliest tokens of this total probability
    max_rubric_tokens: Count  # a longer rubric is cut, also in RL
    max_pair_tokens: Count  # a longer pair is cut
    max_prompt_tokens: Count  # a longer prompt is refused at the corpus stage
    constrained: bool  # force the JSON schema while decoding
    attempts: Count = 3  # requests for one rubric or pair, the first included, until it is valid
    most_failures: PositiveFraction = 0.5  # a run of which more failed or cannot be used stops (synthesis.outcomes)
    budget_usd: Positive | None = None  # for each stage and seed; the run stops before a request that might exceed it
    budget_tokens: Count | None = None  # the same limit for prompt and completion tokens together
    window: Count = 512  # documents at once where a corpus is synthesised into shards


Check = Literal[
    "near_duplicate",
    "exam_words",
    "exam_meaning",
    "personal_data",
    "language",
    "length",
    "grounding",
    "grounding_meaning",
]


# Null, and then not in a dump: what hashes or shows a profile without these parameters stays as it was before them.
Unsaid = Field(None, exclude_if=lambda value: value is None)


class Quality(Section):
    """What every pair of a final set is checked for (synthesis.screening). A flag alone removes nothing."""

    remove: list[Check] = []  # pairs with one of these flags are left out of what is trained on and released
    near_duplicate: PositiveFraction = 0.8  # Jaccard similarity to an earlier pair, by 3 words
    exam_words: Annotated[int, Field(ge=4)] = 13  # consecutive words shared with a question of the exam
    exam_meaning: Fraction | None = 0.99  # similarity to an exam question, as a quantile among the exam's; null: off
    language: Annotated[str, Field(pattern="^([a-z]{2}|document)$")] | None = None  # ISO 639-1; null: any
    grounding: Fraction | None = None  # least part of an answer's words that its document must hold; null: off
    grounding_meaning: Fraction | None = Unsaid  # least cosine of a pair with a passage of its document; null: off
    embedder: str | None = Unsaid  # of sentence-transformers, a hub name or a folder; null: the target for exam_meaning
    shortest: Count = 3  # words of question and answer together
    longest: Count = 2000  # words of the two, at most

    def model_post_init(self, context: object) -> None:
        if self.grounding_meaning is not None and self.embedder is None:
            raise ValueError(
                f"grounding_meaning is {self.grounding_meaning}, a cosine of embedder's, which is null; set "
                "embedder to a model of sentence-transformers, or grounding_meaning to null"
            )


class Lora(Section):
    """A low-rank adapter (peft)."""

    r: Count  # rank
    alpha: Count  # the adapter's output is multiplied by alpha / r
    targets: str | list[str] = "all-linear"  # modules by name, or peft's all-linear: every linear layer but the head


class FineTuning(Section):
    """One LoRA fine-tuning run of the target (rubric_influence.training.fine_tuning)."""

    epochs: Count  # passes over the set
    batch_size: Count  # sequences of an optimizer step, over all devices
    micro_batch: Count | None = None  # sequences on a device at once, accumulated to a batch; null: its whole share
    learning_rate: Positive  # at its highest
    schedule: Literal["constant", "linear", "cosine"] = "linear"  # of the learning rate; the last two fall to 0
    adam_betas: Annotated[tuple[Fraction, Fraction], Field(strict=False)] = (0.9, 0.999)  # of Adam's two moments
    adam_epsilon: Positive = 1.0e-8  # added to the root of Adam's second moment
    weight_decay: NonNegative = 0.0  # of AdamW
    max_tokens: Count  # longer examples are cut

    def model_post_init(self, context: object) -> None:
        check_micro_batch(self.micro_batch, self.batch_size, "batch_size")


class Warmup(FineTuning):
    """The target's warm-up on a part of the initial set, whose checkpoints and moments influence is computed at."""

    fraction: PositiveFraction = 1.0  # part of the initial set it trains on
    checkpoints: Count = 1  # how many of the last epochs' states influence sums over


class WarmStart(FineTuning):
    """What the rubric generator learns before RL where it writes no varied rubrics by itself (training.warm_start)."""

    base: ModelSpec  # models.rubric_generator is made of it
    rubrics: list[str] = Field(min_length=2)  # written by hand: what RL chooses among at first
    rubrics_per_document: Count = 4  # dealt out in turn


class Influence(Section):
    """How a pair is scored on the warmed-up target (rubric_influence.influence.scorers)."""

    estimator: Literal["adam", "linear", "gradient", "forward"] = "adam"  # docs/influence.md compares them
    momentum: bool  # whether Gamma holds the first moment, a direction common to all samples
    normalise: bool = False  # true: cosines, as the paper; dot products predict better what training gains
    batch_tokens: Count  # padded tokens of a batch that is scored at once
    directions: Literal["mean", "topics", "clusters"]  # what the reward sums over: one validation gradient or several
    clusters: Count = 8  # of validation questions by their embeddings, for directions: clusters

    def model_post_init(self, context: object) -> None:
        if self.estimator == "forward" and self.normalise:
            raise ValueError("the forward estimator gives dot products, no cosines; set normalise to false")


class Gate(Section):
    """Whether influence predicts what training gains, found out before RL spends on it (pipeline.stages.gate)."""

    sets: Annotated[int, Field(ge=8)] = 32  # random sets of pairs for every seed; each is trained on by itself
    set_size: Count = 16  # pairs of a set
    epochs: Count = 4  # passes over a set
    batch_size: Count = 16  # pairs of an optimizer step
    learning_rate: Positive  # constant over the run
    threshold: Annotated[float, Field(ge=-1, le=1)] = 0.0  # the rank correlation's 95 % interval must lie above it
    override: bool = False  # true: go on all the same where it does not


class RubricRL(Section):
    """GRPO on the rubric generator (rubric_influence.rl.grpo)."""

    steps: Count  # optimizer steps
    documents_per_step: Count  # each gets group_size rubrics
    group_size: Annotated[int, Field(ge=2)]  # rubrics for one document, whose mean reward is the baseline
    micro_batch: Count | None = None  # as in finetuning; a step's batch is documents_per_step * group_size rubrics
    learning_rate: Positive  # constant over the run
    temperature: Positive = 1.0  # of rubrics that are sampled in RL
    kl: NonNegative = 0.0  # weight of the divergence from the untrained generator; 0: it is not computed
    scale_rewards: Literal["none", "group", "batch"] = "none"  # whose standard deviation divides a reward
    loss: Literal["dr_grpo", "grpo", "dapo"] = "dr_grpo"  # TRL's loss_type: how tokens are averaged
    pairs_per_rubric: Count = 1  # a rubric's reward is their mean
    invalid_penalty: NonNegative = 1.0  # in the unit of the reward; with set_influence the mean is near 1
    reward: Literal["set_influence", "influence", "published", "random", "shuffled"]  # docs/rubrics.md compares them
    save_every: Count = 10  # steps
    checkpoint: Literal["last", "dev"] = "last"  # which generator is kept: the last, or the best by dev questions
    lora: Lora | None = None  # null: full fine-tuning
    vllm: Literal["off", "colocate", "server"] = "off"  # what samples rubrics; off: transformers

    def model_post_init(self, context: object) -> None:
        batch = self.documents_per_step * self.group_size
        check_micro_batch(self.micro_batch, batch, "documents_per_step * group_size")


class Evaluation(Section):
    """How every arm is examined (rubric_influence.evaluation)."""

    batch_tokens: Count = 8192  # padded tokens of options that are scored at once
    answer_tokens: Count | None = None  # of a written answer to each open question; null: likelihoods alone
    tasks: list[str] = []  # of lm-evaluation-harness, by name, sat by every arm as well
    tasks_folder: str | None = None  # with YAML files of further tasks
    task_items: Count | None = None  # the first questions of each task; null: all
    task_batch_size: Count = 16  # requests of a task that are answered at once
    bootstrap: Count = 2000  # resamples


class Machine(Section):
    """How a stage's independent runs (seeds, arms) share the machine (rubric_influence.pipeline.jobs)."""

    workers: Count = 1  # processes; 1 on a GPU
    threads: Count | None = None  # CPU threads of each; set it for the same bytes on any number of cores


class Config(Section):
    """A profile: its seeds and sections."""

    seeds: list[int] = Field(min_length=1)  # one whole run each
    corpus: Annotated[LabCorpus | TextCorpus | BookCorpus, Field(discriminator="kind")]  # documents and exam
    models: Models  # the three roles
    prompts: Prompts  # what the models are asked
    budget: Budget  # pairs of a document
    synthesis: Synthesis  # how rubrics and pairs are sampled
    quality: Quality = Quality()  # what pairs are checked for
    lora: Lora  # the target's adapter
    warm_start: WarmStart | None = Unsaid  # of the rubric generator, before RL; null: none
    warmup: Warmup  # of the target, before pairs are scored
    influence: Influence  # how a pair is scored
    gate: Gate  # whether the score is true
    rl: RubricRL  # of the rubric generator
    finetuning: FineTuning  # of the target, on every arm's set
    evaluation: Evaluation  # the exam
    machine: Machine = Machine()  # processes and threads

    def model_post_init(self, context: object) -> None:
        if repeated := sorted({seed for seed in self.seeds if self.seeds.count(seed) > 1}):
            raise ValueError(f"seeds {self.seeds} name {repeated} twice, as if one run were two; give each once")

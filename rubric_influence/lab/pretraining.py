"""Pretraining of the lab's base model from scratch, on random worlds that are never used later.

Five tasks are mixed: document -> rubric (uniform over choices); document and rubric -> pair; document alone -> pair of
a random choice; document -> one of its facts; question -> answer, closed-book. The last is about entities that the
model has never read of: it teaches the form of an answer and the values that a topic can have, and no facts. To copy
from a document, the model needs a curriculum: documents of one to three facts first, then of up to eight.

The base of another field or family can copy already. With `start`, training goes on from its layers and from its
embeddings of the words that both fields use, and takes less than half as long.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.utils.data import IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainingArguments

from rubric_influence.core.files import write_json
from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.lab import world
from rubric_influence.lab.networks import build_model, build_tokenizer
from rubric_influence.models.examples import Example, collate, encode
from rubric_influence.models.loading import load_model, load_tokenizer
from rubric_influence.models.progress import show_progress

SHORT_DOCUMENT = 3  # the most facts in a document of the curriculum's first part
STEPS = {"scratch": (2000, 3500), "start": (300, 1700)}  # in the first and the second part of the curriculum
OWN_NORMS = ("q_norm.weight", "k_norm.weight")  # only Qwen3 has them; all other weights have Llama's names and shapes
TASK_WEIGHTS = {"rubric": 1, "pair": 5, "free pair": 1, "fact": 2, "closed book": 2}


def pair_prompt(document: str, rubric: str | None) -> str:
    return f"document : {document} {f'rubric : {rubric} ' if rubric else ''}pair :"


def render_rubric(rubric: str) -> str:
    return f'{{"rubric":" {rubric} "}}'


def render_pair(question: str, answer: str) -> str:
    return f'{{"question":" {question} ","answer":" {answer} "}}'


def draw_example(field: world.Field, rng: random.Random, most_facts: int) -> tuple[str, str]:
    """One (prompt, completion) of a random task about a random entity of a random world."""
    entity = world.draw_entity(field, rng.choice(field.entity_names), rng)
    stated = rng.sample(field.topics, rng.randint(1, most_facts))
    document = world.write_document(field, entity, rng, stated)
    choice = world.draw_choice(field, rng, stated)
    task = rng.choices(list(TASK_WEIGHTS), weights=list(TASK_WEIGHTS.values()))[0]
    if task == "rubric":
        # The topic may be one that the document does not state: the untrained generator must not choose by documents.
        rubric = world.write_rubric(field, world.draw_choice(field, rng), rng)
        return f"document : {document} rubric :", render_rubric(rubric)
    if task == "fact":
        return f"document : {document} facts : {choice.topic}", entity.facts[choice.topic]
    if task == "closed book":
        if rng.random() < 0.5:  # a question as the exam asks it
            topic = rng.choice(field.topics)
            return world.write_sentence(field, entity, topic, "technical", rng), entity.facts[topic]
        return world.write_pair(field, entity, world.draw_choice(field, rng), rng, field.topics)
    pair = render_pair(*world.write_pair(field, entity, choice, rng, stated))
    return pair_prompt(document, world.write_rubric(field, choice, rng) if task == "pair" else None), pair


class Examples(IterableDataset[Example]):
    """An endless stream of tokenized examples; the first `short` belong to the curriculum's first part."""

    def __init__(self, field: world.Field, tokenizer: PreTrainedTokenizerFast, seed: int, short: int):
        self.field, self.tokenizer, self.seed, self.short = field, tokenizer, seed, short

    def __iter__(self) -> Iterator[Example]:
        rng = random.Random(self.seed)
        for count in itertools.count():
            most_facts = SHORT_DOCUMENT if count < self.short else len(self.field.topics)
            yield encode(self.tokenizer, *draw_example(self.field, rng, most_facts))


def take_over(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, start: str) -> None:
    """Copy the weights of the base in the folder `start` into `model`: layers whole, embeddings word by word.

    Words that `start` does not know keep their random embeddings; norms that `start` does not have keep their ones.
    Raises ValueError for another architecture or size.
    """
    spec = ModelSpec(path=start, dtype="float32", attention="eager")
    known, words = load_model(spec, "cpu").state_dict(), load_tokenizer(spec).get_vocab()
    own = model.state_dict()
    for name in sorted(known.keys() | own.keys()):
        # The first dimension is left out: there are as many embeddings as words.
        alike = name in known and name in own and known[name].shape[1:] == own[name].shape[1:]
        if not (alike or name.endswith(OWN_NORMS)):
            raise ValueError(f"--start {start} is not of the new base's architecture and size: they differ in {name}")
    shared = [(row, words[word]) for word, row in tokenizer.get_vocab().items() if word in words]
    rows, known_rows = map(list, zip(*shared, strict=True))
    for name, tensor in own.items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensor[rows] = known[name][known_rows]
        elif name in known:
            tensor.copy_(known[name])


@dataclass(frozen=True)
class Schedule:
    """What differs between the lab's training runs, by the names of Hugging Face's TrainingArguments."""

    max_steps: int
    per_device_train_batch_size: int
    learning_rate: float  # the highest: it rises over warmup_steps, then falls as a cosine does
    warmup_steps: int
    logging_steps: int
    seed: int


def train_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    examples: Examples | list[Example],
    out: Path,
    schedule: Schedule,
) -> list[dict[str, float]]:
    """Train a model on the examples' labels and write it and its tokenizer to `out`. Returns the training log.

    It has the mean `loss` of every `logging_steps` steps. Its last entry has the mean of all steps, `train_loss`.
    """
    gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(out),
        adam_beta2=0.98,
        weight_decay=0.01,
        lr_scheduler_type="cosine",
        bf16=gpu,  # CPUs without bf16 units are twenty times slower at it
        use_cpu=not gpu,
        disable_tqdm=True,
        save_strategy="no",
        report_to="none",
        **asdict(schedule),
    )
    trainer = Trainer(
        model, arguments, train_dataset=examples, data_collator=lambda rows: collate(rows, tokenizer.pad_token_id)
    )
    show_progress(trainer, f"training {out.name}", "loss")
    trainer.train()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return trainer.state.log_history


@dataclass(frozen=True)
class Recipe:
    """How a base model is made."""

    field: str  # the path of the field's table
    family: str
    out: str
    start: str | None  # the folder of a base to go on from; None: from scratch
    short_steps: int  # in the curriculum's first part
    full_steps: int
    batch_size: int = 24
    seed: int = 0


def pretrain(recipe: Recipe) -> dict[str, str | int | float]:
    """Train a base model and write it to recipe.out.

    Returns (and writes to recipe.json) what it was made from, its size, and the mean loss of all steps in nats a token.
    """
    field, out = world.load_field(recipe.field), Path(recipe.out)
    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer(field)
    model = build_model(tokenizer, recipe.family)
    if recipe.start:
        take_over(model, tokenizer, recipe.start)
    examples = Examples(field, tokenizer, recipe.seed, short=recipe.short_steps * recipe.batch_size)
    steps = recipe.short_steps + recipe.full_steps
    schedule = Schedule(steps, recipe.batch_size, 2e-3, warmup_steps=100, logging_steps=100, seed=recipe.seed)
    log = train_model(model, tokenizer, examples, out, schedule)
    made: dict[str, str | int | float] = {"field": field.name, "family": recipe.family}
    if recipe.start:
        made["start"] = Path(recipe.start).name
    made |= {key: getattr(recipe, key) for key in ("short_steps", "full_steps", "batch_size", "seed")}
    made |= {"loss": log[-1]["train_loss"], "parameters": model.num_parameters()}
    write_json(out / "recipe.json", made)
    return made

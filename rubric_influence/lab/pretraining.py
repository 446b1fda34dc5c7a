"""Pretraining of the lab's base model from scratch, on random worlds that are never used later.

Five tasks, mixed: document -> rubric (uniform over choices); document and rubric -> pair; document alone -> pair of a
random choice; document -> one of its facts; question -> answer, closed-book, about a world the model has never
seen (which teaches the form of an answer and the values that a topic can have, and nothing else). Copying from a
document emerges only with a curriculum: documents of one to three facts first, of up to eight afterwards.

Another field's base, or another family's, copies already: with `start` training goes on from its layers, and
from its embeddings of the words that both use, and takes less than half as long.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainingArguments

from rubric_influence.core.config import ModelSpec
from rubric_influence.core.files import write_json
from rubric_influence.influence.examples import Example, collate, encode
from rubric_influence.lab import world
from rubric_influence.lab.networks import build_model, build_tokenizer
from rubric_influence.models.loading import load_model, load_tokenizer

SHORT_DOCUMENT = 3  # facts in a document of the curriculum's first part, at most
STEPS = {"scratch": (2000, 3500), "start": (300, 1700)}  # of the curriculum's two parts
OWN_NORMS = ("q_norm.weight", "k_norm.weight")  # Qwen3 has them, Llama does not: all else is named and shaped alike
TASK_WEIGHTS = {"rubric": 1, "pair": 5, "free pair": 1, "fact": 2, "closed book": 2}


def rubric_prompt(document: str) -> str:
    return f"document : {document} rubric :"


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
        # Of any topic, stated or not: the untrained generator's choice must not depend on the document.
        return rubric_prompt(document), render_rubric(world.write_rubric(field, world.draw_choice(field, rng), rng))
    if task == "fact":
        return f"document : {document} facts : {choice.topic}", entity.facts[choice.topic]
    if task == "closed book":
        if rng.random() < 0.5:  # as the exam asks, about a world that no document states
            topic = rng.choice(field.topics)
            return world.ask(field, entity, topic, "technical", rng), entity.facts[topic]
        return world.write_pair(field, entity, world.draw_choice(field, rng), rng, field.topics)
    pair = render_pair(*world.write_pair(field, entity, choice, rng, stated))
    rubric = world.write_rubric(field, choice, rng) if task == "pair" else None
    return pair_prompt(document, rubric), pair


class Examples(IterableDataset):
    """An endless stream of tokenized examples; `short` of them come from the curriculum's first part."""

    def __init__(self, field: world.Field, tokenizer: PreTrainedTokenizerFast, seed: int, short: int):
        self.field, self.tokenizer, self.seed, self.short = field, tokenizer, seed, short

    def __iter__(self) -> Iterator[Example]:
        rng = random.Random(self.seed)
        count = 0
        while True:
            most_facts = SHORT_DOCUMENT if count < self.short else len(self.field.topics)
            count += 1
            prompt, completion = draw_example(self.field, rng, most_facts)
            yield encode(self.tokenizer, prompt, completion)


def take_over(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, start: str) -> None:
    """Copy the weights of the base in the folder `start` into `model`: layers whole, embeddings word by word.

    Words that `start` does not know keep their random embeddings, and norms that only one family has their ones.
    Raises ValueError for another architecture or size.
    """
    spec = ModelSpec(path=start, dtype="float32", attention="eager")
    known, words = load_model(spec, "cpu").state_dict(), load_tokenizer(spec).get_vocab()
    own = model.state_dict()
    other = sorted(
        name
        for name in known.keys() | own.keys()
        if not name.endswith(OWN_NORMS)
        and not (name in known and name in own and known[name].shape[1:] == own[name].shape[1:])
    )
    if other:
        raise ValueError(f"--start {start} is not of the new base's architecture and size: they differ in {other[0]}")
    shared = [(new, words[word]) for word, new in tokenizer.get_vocab().items() if word in words]
    new_rows, known_rows = (torch.tensor(rows) for rows in zip(*shared, strict=True))
    for name, tensor in own.items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensor[new_rows] = known[name][known_rows]
        elif name in known:
            tensor.copy_(known[name])


@dataclass(frozen=True)
class Recipe:
    """How a base model is made: `start` is the folder of a base to go on from, None for from scratch."""

    field: str  # the field's table
    family: str
    out: str
    start: str | None
    short_steps: int
    full_steps: int
    batch_size: int = 24
    seed: int = 0


def pretrain(recipe: Recipe) -> dict:
    """Train a base model and write it to recipe.out.

    Returns (and writes to recipe.json) what it was made from, its size, and the mean loss of all steps.
    """
    field = world.load_field(recipe.field)
    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer(field)
    model = build_model(tokenizer, recipe.family)
    if recipe.start:
        take_over(model, tokenizer, recipe.start)
    arguments = TrainingArguments(
        output_dir=recipe.out,
        max_steps=recipe.short_steps + recipe.full_steps,
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=2e-3,
        adam_beta1=0.9,
        adam_beta2=0.98,
        weight_decay=0.01,
        warmup_steps=100,
        lr_scheduler_type="cosine",
        bf16=torch.cuda.is_available(),  # CPUs without bf16 units are twenty times slower at it
        use_cpu=not torch.cuda.is_available(),
        logging_steps=100,
        save_strategy="no",
        report_to="none",
        seed=recipe.seed,
    )
    dataset = Examples(field, tokenizer, recipe.seed, short=recipe.short_steps * recipe.batch_size)
    trainer = Trainer(
        model, arguments, train_dataset=dataset, data_collator=lambda rows: collate(rows, tokenizer.pad_token_id)
    )
    result = trainer.train()
    model.save_pretrained(recipe.out)
    tokenizer.save_pretrained(recipe.out)
    start = {"start": Path(recipe.start).name} if recipe.start else {}
    made = dict(field=field.name, family=recipe.family) | start
    made |= dict(short_steps=recipe.short_steps, full_steps=recipe.full_steps, batch_size=recipe.batch_size)
    made |= dict(seed=recipe.seed, loss=result.training_loss, parameters=model.num_parameters())
    write_json(Path(recipe.out) / "recipe.json", made)
    return made

"""Tiny LoRA models of both families after a few real AdamW steps, and examples from the lab's world."""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from rubric_influence.influence.directions import validation_gradients
from rubric_influence.influence.moments import AdamMoments, capture_moments, save_moments
from rubric_influence.lab import world
from rubric_influence.lab.networks import build_model, build_tokenizer
from rubric_influence.models.examples import collate, encode

FIELD = world.load_field(Path(__file__).parents[2] / "data/lab/fields/medicine.yaml")
LEARNING_RATE = 1e-3
WORDS = 3  # of a Bigram


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer(FIELD)


def draw_examples(tokenizer, count, seed):
    """Pairs of every form about random entities: 10 to 60 tokens."""
    rng = random.Random(seed)
    examples = []
    for _ in range(count):
        entity = world.draw_entity(FIELD, rng.choice(FIELD.entity_names), rng)
        pair = world.write_pair(FIELD, entity, world.draw_choice(FIELD, rng), rng, FIELD.topics)
        examples.append(encode(tokenizer, *pair))
    return examples


def build_lora_model(tokenizer, family, targets="all-linear", dropout=0.1, r=4):
    torch.manual_seed(0)
    base = build_model(tokenizer, family, hidden_size=32, layers=2)
    return get_peft_model(base, LoraConfig(r=r, lora_alpha=8, lora_dropout=dropout, target_modules=targets))


def warm_up(model, examples, steps=6, betas=(0.9, 0.999)):
    """An AdamW with weight decay on lora_B alone, so that its parameter order is not the model's."""
    factors = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in factors if "lora_B" in name], "weight_decay": 0.01},
        {"params": [p for name, p in factors if "lora_A" in name], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=betas)
    model.train()
    for step in range(steps):
        batch = collate(examples[8 * step : 8 * step + 8], pad_token_id=0)
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


@pytest.fixture(scope="session", params=["qwen3", "llama"])
def warmed(request, tokenizer):
    """(model, optimizer, moments) of a family. Tests must leave the model as they found it."""
    model = build_lora_model(tokenizer, request.param)
    optimizer = warm_up(model, draw_examples(tokenizer, 48, seed=1))
    return model, optimizer, capture_moments(model, optimizer, learning_rate=LEARNING_RATE)


@pytest.fixture(scope="module")
def one_thread():
    """Sums depend on how many threads share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw_rows(count, seed, prefix):
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        entity = world.draw_entity(FIELD, rng.choice(FIELD.entity_names), rng)
        choice = world.draw_choice(FIELD, rng)
        question, answer = world.write_pair(FIELD, entity, choice, rng, FIELD.topics)
        row = {"id": f"{prefix}-{number}", "question": question, "answer": answer}
        rows.append(row | {"topic": ("north", "south")[number % 2], "author": "passed over"})
    return rows


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="session")
def inputs(tokenizer, tmp_path_factory):
    """A folder with model, checkpoints a and b, validation.jsonl (6 items) and samples.jsonl (20); leave it so."""
    folder = tmp_path_factory.mktemp("inputs")
    tokenizer.save_pretrained(folder / "model")
    torch.manual_seed(0)
    build_model(tokenizer, "qwen3", hidden_size=32, layers=2).save_pretrained(folder / "model")
    model = build_lora_model(tokenizer, "qwen3")
    for name, rate in (("a", LEARNING_RATE), ("b", LEARNING_RATE / 3)):
        optimizer = warm_up(model, draw_examples(tokenizer, 48, seed=len(name) + ord(name)))
        model.save_pretrained(folder / name)
        save_moments(folder / name / "moments.safetensors", capture_moments(model, optimizer, rate))
    write_rows(folder / "validation.jsonl", draw_rows(6, 1, "v"))
    write_rows(folder / "samples.jsonl", draw_rows(20, 2, "s"))
    return folder


@pytest.fixture(scope="session")
def directions(warmed, tokenizer):
    """Two validation directions of the warmed-up model, [2, d]."""
    model, _, _ = warmed
    gradients = validation_gradients(model, draw_examples(tokenizer, 12, seed=9), ["a"] * 5 + ["b"] * 7, 300)
    return torch.stack(list(gradients.values()))


class Bigram(nn.Module):
    """The next word from this one: logits are a column of one matrix, in the dtype that it has."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WORDS, WORDS, bias=False)

    def forward(self, input_ids, attention_mask, use_cache, logits_to_keep=slice(None)):
        words = nn.functional.one_hot(input_ids, WORDS).to(self.linear.weight.dtype)
        return SimpleNamespace(logits=self.linear(words)[:, logits_to_keep])


def make_moments(m, v, betas=(0.5, 0.75), eps=0.5):
    name = "linear.weight"
    return AdamMoments({name: m}, {name: v}, step=1, betas=betas, eps=eps, learning_rate=1.0)


class Pair(nn.Module):
    """LoRA of rank 1 on one number: two parameters."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)

"""Does influence predict what training gains on real text? Answers of NIH institutes to consumers' health questions.

    python -m benchmarks.influence.medquad --data DIR --json FILE

DIR holds medquad/qa.jsonl (MedQuAD, CC BY 4.0) and world_history/documents.jsonl (OpenStax, World History), one JSON
object a line: source, focus, question, answer; title, text. FILE receives figures only, none of the text. The first
run takes some minutes on one core; the pretrained model is kept in scratch/medquad.

There being no larger model at hand, a small one is trained from scratch on a part of MedQuAD, then warmed up by LoRA on
other pairs of it. Candidates, one pair a subject and none of them seen before:

    in_domain  MedQuAD's pairs
    history    a history book's headings with one of their paragraphs
    shuffled   MedQuAD's questions, each with the answer to another subject's
    truncated  MedQuAD's pairs, the answers ending after a few words

Random sets of them are trained on from the warmed-up checkpoint, and what held-out questions gained is held against
the sets' mean influence and against their mean embedding similarity (RDS+, of the same model): sets of all candidates
alike ("uniform") and of the first pool alone ("in_domain"). Each pool is trained on alone too.
"""

import argparse
import json
import math
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from benchmarks.influence.__main__ import describe_machine
from benchmarks.influence.lab import PROMPTS
from rubric_influence.config import FineTuning, Lora, ModelSpec
from rubric_influence.influence.agreement import draw_sets, measure_agreement
from rubric_influence.influence.directions import validation_gradients
from rubric_influence.influence.embeddings import embedding_similarity
from rubric_influence.influence.examples import Example, collate, encode
from rubric_influence.influence.gradients import sample_losses
from rubric_influence.influence.moments import AdamMoments, load_moments
from rubric_influence.influence.retraining import Recipe, Retraining
from rubric_influence.influence.scorers import GradientScorer
from rubric_influence.journal import scratch_folder
from rubric_influence.lab.models import build_model
from rubric_influence.metrics import write_metrics
from rubric_influence.models import load_tokenizer
from rubric_influence.records import QAPair
from rubric_influence.sft import fine_tune, list_checkpoints, load_fine_tuned
from rubric_influence.standins import train_tokenizer

MEDQUAD, HISTORY = "medquad/qa.jsonl", "world_history/documents.jsonl"
POOLS = ("in_domain", "history", "shuffled", "truncated")
FEWEST_WORDS = 30  # of a pair's answer, so that a truncated one is far from whole
BOILERPLATE = 200  # characters: answers that begin alike for so long count as one
BATCH_TOKENS = 4096
Pair = tuple[str, str]


@dataclass(frozen=True)
class Settings:
    """Counts are of pairs unless they say otherwise."""

    vocabulary: int = 3000
    hidden_size: int = 160
    layers: int = 4
    pretraining_steps: int = 450
    pretraining_batch: int = 16
    max_tokens: int = 128  # of question and answer; what is longer is cut
    warm_up: int = 96
    warm_up_epochs: int = 3
    warm_up_rate: float = 1e-3
    validation: int = 48
    held_out: int = 64
    pool: int = 112
    truncated_words: int = 6
    sets: int = 56  # of each draw
    set_size: int = 20
    alone_sets: int = 4  # of each pool alone
    alone_size: int = 16
    epochs: int = 2
    batch_size: int = 8
    learning_rates: tuple[float, ...] = (1e-3, 3e-4)
    seed: int = 0


@dataclass(frozen=True)
class Parts:
    """Disjoint parts, by subject but for `pretraining`, which has all pairs of the subjects that are left."""

    pretraining: list[Pair]
    warm_up: list[Pair]
    validation: list[Pair]
    held_out: list[Pair]
    pools: dict[str, list[Pair]]


def read_lines(folder: Path, name: str) -> list[dict]:
    """Raises ValueError if the file is not there."""
    if not (folder / name).is_file():
        raise ValueError(f"no {name} in {folder}; --data is the folder that holds {MEDQUAD} and {HISTORY}")
    with (folder / name).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def read_subjects(folder: Path) -> dict[str, list[Pair]]:
    """MedQuAD's pairs by subject (its focus), without short answers and those that begin as an earlier one does."""
    subjects, seen = defaultdict(list), set()
    for entry in read_lines(folder, MEDQUAD):
        answer = " ".join(entry["answer"].split())
        if len(answer.split()) >= FEWEST_WORDS and answer[:BOILERPLATE] not in seen:
            seen.add(answer[:BOILERPLATE])
            subjects[" ".join(entry["focus"].casefold().split())].append((entry["question"].strip(), answer))
    return dict(subjects)


def read_history(folder: Path, rng: random.Random) -> list[Pair]:
    """A random paragraph of every chapter, under a question that is made of its heading; headings are unique."""
    documents = read_lines(folder, HISTORY)
    titles = Counter(document["title"] for document in documents)
    pairs = []
    for document in documents:
        long = [p for p in document["text"].split("\n") if len(p.split()) >= FEWEST_WORDS]
        if long and titles[document["title"]] == 1:  # "Introduction" says nothing of its chapter
            pairs.append((f"What is known about {document['title']} ?", " ".join(rng.choice(long).split())))
    return pairs


def divide(subjects: dict[str, list[Pair]], history: list[Pair], settings: Settings) -> Parts:
    """The parts, drawn at random. Raises ValueError if there are too few subjects or chapters for them."""
    rng = random.Random(settings.seed)
    counts = (settings.warm_up, settings.validation, settings.held_out, *[settings.pool] * (len(POOLS) - 1))
    if len(subjects) <= sum(counts) or len(history) < settings.pool:
        raise ValueError(
            f"{len(subjects)} subjects in {MEDQUAD} and {len(history)} chapters in {HISTORY}; needed are more than "
            f"{sum(counts)} and {settings.pool}: give the whole files"
        )
    names = rng.sample(sorted(subjects), len(subjects))
    drawn = iter(names)
    warm_up, validation, held_out, in_domain, moved, whole = (
        [rng.choice(subjects[next(drawn)]) for _ in range(count)] for count in counts
    )
    answers = [answer for _, answer in moved]
    words = settings.truncated_words
    pools = {
        "in_domain": in_domain,
        "history": rng.sample(history, settings.pool),
        "shuffled": [(q, a) for (q, _), a in zip(moved, answers[1:] + answers[:1], strict=True)],
        "truncated": [(question, " ".join(answer.split()[:words])) for question, answer in whole],
    }
    return Parts([pair for name in drawn for pair in subjects[name]], warm_up, validation, held_out, pools)


def encode_all(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], settings: Settings) -> list[Example]:
    """An answer that is cut has no end token, so that only the truncated pool teaches to end early."""
    return [encode(tokenizer, question, answer, PROMPTS.answer, settings.max_tokens) for question, answer in pairs]


def pretrain(pairs: Sequence[Pair], settings: Settings) -> ModelSpec:
    """A model trained from scratch to predict the next token of the pairs, questions included; kept in scratch/."""
    sizes = (settings.vocabulary, settings.hidden_size, settings.layers, settings.max_tokens)
    steps, batch_size = settings.pretraining_steps, settings.pretraining_batch
    folder = scratch_folder("medquad", pairs, sizes, steps, batch_size, settings.seed)
    spec = ModelSpec(path=str(folder), dtype="float32", attention="eager")
    if (folder / "model.safetensors").exists():
        return spec
    tokenizer = train_tokenizer((f"{question}\n{answer}" for question, answer in pairs), settings.vocabulary)
    examples = [Example(e.input_ids, e.input_ids) for e in encode_all(tokenizer, pairs, settings)]
    torch.manual_seed(settings.seed)
    model = build_model(tokenizer, "qwen3", settings.hidden_size, settings.layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    rising = max(1, min(20, steps // 4))
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rising, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    rng, order = random.Random(settings.seed), []
    with tqdm(range(steps), desc="pretraining", unit="step", mininterval=2) as bar:
        for _ in bar:
            while len(order) < batch_size:
                order += rng.sample(range(len(examples)), len(examples))
            rows, order = order[:batch_size], order[batch_size:]
            loss = sample_losses(model, collate([examples[row] for row in rows], tokenizer.pad_token_id)).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rates.step()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    tokenizer.save_pretrained(folder)
    with tempfile.TemporaryDirectory(dir=folder) as partial:  # so that weights found there are whole
        model.save_pretrained(partial)
        for name in ("config.json", "model.safetensors"):
            Path(partial, name).rename(folder / name)
    return spec


def warm_up(spec: ModelSpec, pairs: Sequence[Pair], settings: Settings) -> tuple[PeftModel, AdamMoments]:
    """The model with a LoRA adapter trained on the pairs, and Adam's state at its end."""
    records = [
        QAPair(question, answer, document_id="", rubric_id="", teacher="MedQuAD", seed=settings.seed, slot=slot)
        for slot, (question, answer) in enumerate(pairs)
    ]
    tuning = FineTuning(
        epochs=settings.warm_up_epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.warm_up_rate,
        schedule="constant",
        max_tokens=settings.max_tokens,
    )
    with tempfile.TemporaryDirectory() as folder:
        out, scratch = Path(folder, "adapter"), Path(folder, "scratch")
        lora = Lora(r=16, alpha=32)
        fine_tune(spec, records, PROMPTS, lora, tuning, settings.seed, out, scratch, name="warm-up")
        (checkpoint,) = list_checkpoints(out)
        return load_fine_tuned(spec, checkpoint), load_moments(checkpoint / "moments.safetensors")


def compare(sets: np.ndarray, gains: Sequence[float], predictors: dict[str, np.ndarray], seed: int) -> dict:
    """Each predictor's mean over every set against the gains, in the shape of metrics/gate.json."""
    found: dict = {"sets": len(sets), "mean_gain": round(float(np.mean(gains)), 5)}
    for name, values in predictors.items():
        agreement = asdict(measure_agreement(values[sets].mean(axis=1), gains, seed))
        del agreement["sets"]
        found[name] = {key: np.round(value, 4).tolist() for key, value in agreement.items()}
    return found


def measure(parts: Parts, settings: Settings) -> dict:
    """All figures, without machine and settings. Gains are in nats a token of held-out answers, above 0 is better."""
    seed, size = settings.seed, settings.pool
    spec = pretrain(parts.pretraining, settings)
    model, moments = warm_up(spec, parts.warm_up, settings)
    tokenizer = load_tokenizer(spec)
    validation, held_out = (encode_all(tokenizer, pairs, settings) for pairs in (parts.validation, parts.held_out))
    candidates = encode_all(tokenizer, [pair for name in POOLS for pair in parts.pools[name]], settings)
    direction = validation_gradients(model, validation, None, BATCH_TOKENS)["all"][None]
    scorer = GradientScorer(model, direction, moments, momentum=False, batch_tokens=BATCH_TOKENS)
    predictors = {
        "influence": scorer.score(candidates)[:, 0].numpy(),
        "similarity": embedding_similarity(model, candidates, validation, BATCH_TOKENS).numpy(),
    }
    draws = {
        "uniform": draw_sets(len(candidates), settings.sets, settings.set_size, seed),
        "in_domain": draw_sets(size, settings.sets, settings.set_size, seed + 1),  # the first pool's come first
    }
    for number, name in enumerate(POOLS):
        draws[f"{name} alone"] = number * size + draw_sets(size, settings.alone_sets, settings.alone_size, seed)
    pools: dict = {}
    for number, name in enumerate(POOLS):
        rows = slice(number * size, (number + 1) * size)
        pools[name] = {"pairs": size, "answer_tokens": 0.0}
        for predictor, values in predictors.items():
            pools[name] |= {predictor: values[rows].mean(), f"{predictor}_sd": values[rows].std()}
    found: dict = {"loss_before": 0.0, "pools": pools}
    for rate in settings.learning_rates:
        recipe = Recipe(settings.epochs, settings.batch_size, rate)
        retraining = Retraining(model, moments, held_out, recipe, batch_tokens=BATCH_TOKENS)
        with tqdm(total=sum(map(len, draws.values())), desc=f"sets at {rate:g}", unit="set", mininterval=2) as bar:
            pass
    return found

"""Does influence predict what training gains on real text? Answers of NIH institutes to consumers' health questions.

    python -m benchmarks.influence.medquad --data DIR --json FILE

DIR holds medquad/qa.jsonl (MedQuAD, CC BY 4.0) and world_history/documents.jsonl (OpenStax, World History), one JSON
object a line: focus, question, answer; title, text. FILE receives figures only, none of the text.

A small model is trained from scratch on a part of MedQuAD, which takes minutes and is kept in scratch/medquad, then
warmed up by LoRA on other pairs of it. Candidates, one pair a subject and none of them seen before:

    in_domain  MedQuAD's pairs
    history    a history book's chapter titles, each with a paragraph
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
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from benchmarks.influence.__main__ import describe_machine
from benchmarks.influence.lab import PROMPTS
from rubric_influence.core.config import FineTuning, Lora
from rubric_influence.core.files import write_json
from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.core.records import QAPair
from rubric_influence.core.scratch import Workplace, scratch_folder
from rubric_influence.influence.checks.agreement import draw_sets, measure_agreement
from rubric_influence.influence.checks.retraining import Recipe, Retraining
from rubric_influence.influence.directions import validation_gradients
from rubric_influence.influence.embeddings import embedding_similarity
from rubric_influence.influence.moments import AdamMoments, load_moments
from rubric_influence.influence.scorers import GradientScorer
from rubric_influence.lab.networks import build_model
from rubric_influence.lab.standins import train_tokenizer
from rubric_influence.models.examples import Example, collate, encode
from rubric_influence.models.loading import load_tokenizer
from rubric_influence.models.losses import sample_losses
from rubric_influence.training.fine_tuning import TuningRun, fine_tune, list_checkpoints, load_fine_tuned

MEDQUAD, HISTORY = "medquad/qa.jsonl", "world_history/documents.jsonl"
POOLS = ("in_domain", "history", "shuffled", "truncated")
FEWEST_WORDS = 30  # of a pair's answer, so that a truncated one is far from whole
BOILERPLATE = 200  # characters: answers that begin alike for so long count as one
BATCH_TOKENS = 4096
Pair = tuple[str, str]


@dataclass(frozen=True)
class Settings:
    """Counts are of pairs unless they say otherwise."""

    vocabulary: int = 2000
    hidden_size: int = 128
    layers: int = 4
    pretraining_steps: int = 360
    pretraining_batch: int = 16
    max_tokens: int = 112  # of question and answer; what is longer is cut
    warm_up: int = 96
    validation: int = 48
    held_out: int = 64
    pool: int = 112
    truncated_words: int = 6
    sets: int = 48  # of each draw
    alone_sets: int = 3  # of each pool alone
    set_size: int = 16
    epochs: int = 2  # over a set; the warm-up takes one more
    batch_size: int = 8
    learning_rates: tuple[float, ...] = (3e-4, 1e-3)
    single_rate: float = 3e-5  # of one small step a sample on pools alone, which is all that influence sees
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
    pairs, documents = [], read_lines(folder, HISTORY)
    titles = Counter(document["title"] for document in documents)
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
            f"{len(subjects)} subjects in {MEDQUAD} and {len(history)} chapters in {HISTORY}; give the whole files: "
            f"needed are more than {sum(counts)} and {settings.pool}"
        )
    drawn = iter(rng.sample(sorted(subjects), len(subjects)))
    warm_up, validation, held_out, in_domain, moved, whole = (
        [rng.choice(subjects[next(drawn)]) for _ in range(count)] for count in counts
    )
    pools = {
        "in_domain": in_domain,
        "history": rng.sample(history, settings.pool),
        "shuffled": [(q, a) for (q, _), (_, a) in zip(moved, moved[1:] + moved[:1], strict=True)],
        "truncated": [(question, " ".join(answer.split()[: settings.truncated_words])) for question, answer in whole],
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
    if (folder / "done").exists():
        return spec
    tokenizer = train_tokenizer((f"{question}\n{answer}" for question, answer in pairs), settings.vocabulary)
    examples = [Example(e.input_ids, e.input_ids) for e in encode_all(tokenizer, pairs, settings)]
    torch.manual_seed(settings.seed)
    model = build_model(tokenizer, "qwen3", settings.hidden_size, settings.layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / min(20, steps), 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    rng, epochs = random.Random(settings.seed), range(1 + steps * batch_size // len(examples))
    order = [example for _ in epochs for example in rng.sample(examples, len(examples))]
    with tqdm(range(steps), desc="pretraining", unit="step", mininterval=2) as bar:
        for step in bar:
            batch = collate(order[step * batch_size : (step + 1) * batch_size], tokenizer.pad_token_id)
            loss = sample_losses(model, batch).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rates.step()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    (folder / "done").touch()
    return spec


def warm_up(spec: ModelSpec, pairs: Sequence[Pair], settings: Settings) -> tuple[PeftModel, AdamMoments]:
    """The model with a LoRA adapter trained on the pairs, and Adam's state at its end."""
    origin = dict(document_id="", rubric_id="", teacher="MedQuAD", seed=settings.seed)
    records = [QAPair(question, answer, slot=slot, **origin) for slot, (question, answer) in enumerate(pairs)]
    sizes = dict(epochs=settings.epochs + 1, batch_size=settings.batch_size, max_tokens=settings.max_tokens)
    tuning = FineTuning(**sizes, learning_rate=1e-3, schedule="constant")
    with tempfile.TemporaryDirectory() as folder:
        out, state, lora = Path(folder, "adapter"), Path(folder, "state"), Lora(r=16, alpha=32)
        fine_tune(TuningRun(spec, PROMPTS, lora, tuning, settings.seed, name="warm-up"), records, Workplace(out, state))
        (checkpoint,) = list_checkpoints(out)
        return load_fine_tuned(spec, checkpoint), load_moments(checkpoint / "moments.safetensors")


def compare(sets: np.ndarray, gains: Sequence[float], predictors: dict[str, np.ndarray], seed: int) -> dict:
    """Each predictor's mean over every set against the gains, in the shape of metrics/gate.json."""
    found: dict = {"sets": len(sets), "mean_gain": tidy(np.mean(gains))}
    for predictor, values in predictors.items():
        agreement = asdict(measure_agreement(values[sets].mean(axis=1), gains, seed))
        found[predictor] = {key: tidy(value) for key, value in agreement.items() if key != "sets"}
    return found


def tidy(figures: float | Sequence[float]) -> float | list[float]:
    return np.round(np.asarray(figures, float), 5).tolist()


def measure(parts: Parts, settings: Settings) -> dict:
    """All figures. Gains are in nats a token of held-out answers, positive where training lowers their loss.

    The agreement of sets is given at the first learning rate, and under `other_rates` at the others.
    """
    spec = pretrain(parts.pretraining, settings)
    model, moments = warm_up(spec, parts.warm_up, settings)
    tokenizer = load_tokenizer(spec)
    validation, held_out = (encode_all(tokenizer, pairs, settings) for pairs in (parts.validation, parts.held_out))
    candidates = encode_all(tokenizer, [pair for name in POOLS for pair in parts.pools[name]], settings)
    gradients = [validation_gradients(model, part, None, BATCH_TOKENS)["all"] for part in (validation, held_out)]
    scorer = GradientScorer(model, torch.stack(gradients), moments, momentum=False, batch_tokens=BATCH_TOKENS)
    scores = scorer.score(candidates).numpy()
    similarity = embedding_similarity(model, candidates, validation, BATCH_TOKENS).numpy()
    predictors = {"influence": scores[:, 0], "similarity": similarity}
    size, seed = settings.pool, settings.seed
    rows_of = {name: np.arange(number * size, (number + 1) * size) for number, name in enumerate(POOLS)}
    draws = {
        "uniform": draw_sets(len(candidates), settings.sets, settings.set_size, seed),
        "in_domain": rows_of["in_domain"][draw_sets(size, settings.sets, settings.set_size, seed + 1)],
    }
    alone = {n: rows[draw_sets(size, settings.alone_sets, settings.set_size, seed)] for n, rows in rows_of.items()}
    pools: dict = {name: {"pairs": size, "gain": {}} for name in POOLS}
    for name, (predictor, values) in product(POOLS, {**predictors, "influence_on_held_out": scores[:, 1]}.items()):
        own = values[rows_of[name]]
        pools[name] |= {predictor: tidy(own.mean()), f"{predictor}_sd": tidy(own.std())}
    recipes = {f"{rate:g}": Recipe(settings.epochs, settings.batch_size, rate) for rate in settings.learning_rates}
    by_rate: dict = {rate: {} for rate in recipes}
    for label, recipe in {**recipes, "single": Recipe(1, 1, settings.single_rate)}.items():
        retraining = Retraining(model, moments, held_out, recipe, batch_tokens=BATCH_TOKENS)
        for name, sets in alone.items():
            gains = train_all(retraining, candidates, sets, f"{name} alone, {label}")
            pools[name]["gain"][label] = tidy(np.mean(gains))
        for name, sets in draws.items() if label in recipes else ():
            gains = train_all(retraining, candidates, sets, f"{name} sets, {label}")
            by_rate[label][name] = compare(sets, gains, predictors, seed)
    first = next(iter(by_rate))
    figures = {"learning_rate": float(first), **by_rate.pop(first), "other_rates": by_rate}
    alike = torch.cosine_similarity(*gradients, dim=0).item()  # 1: what helps validation questions helps held-out ones
    return {"gradients_cosine": tidy(alike), "held_out_loss": tidy(retraining.before), "pools": pools, **figures}


def train_all(retraining: Retraining, candidates: Sequence[Example], sets: np.ndarray, name: str) -> list[float]:
    bar = tqdm(sets, desc=name, unit="set", mininterval=2)
    return [retraining.gain([candidates[row] for row in rows], seed=number) for number, rows in enumerate(bar)]


def list_rows(found: dict) -> list[str]:
    """What is printed: pools with their gains by recipe, and the agreement at the first."""
    rows = [f"{'pool':<12}{'influence':>12}{'similarity':>12}  gain alone"]
    for name, pool in found["pools"].items():
        gains = ", ".join(f"{rate}: {gain:.4f}" for rate, gain in pool["gain"].items())
        rows.append(f"{name:<12}{pool['influence']:>12.4f}{pool['similarity']:>12.4f}  {gains}")
    for draw, predictor in product(("uniform", "in_domain"), ("influence", "similarity")):
        figures = found[draw][predictor]
        shown = [
            f"{figures[k]:.2f} ({' to '.join(f'{x:.2f}' for x in figures[k + '_ci95'])})" for k in ("r2", "spearman")
        ]
        rows.append(f"{draw:<12}{predictor:<12}R2 {shown[0]}, Spearman {shown[1]}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds the two data sets")
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings(seed=arguments.seed)
    try:
        subjects = read_subjects(arguments.data)
        parts = divide(subjects, read_history(arguments.data, random.Random(settings.seed)), settings)
    except ValueError as error:
        sys.exit(str(error))
    found = {"machine": describe_machine(threads=1), **measure(parts, settings), "settings": asdict(settings)}
    write_json(arguments.json, found)
    print("\n".join(list_rows(found)))


if __name__ == "__main__":
    main()

"""Stand-ins: a tiny language model trained for a minute or two on a profile's own documents.

A profile on real text can thus be run from end to end where no real model is at hand. A stand-in has the format of a
real model (Hugging Face folder, subword tokenizer, ChatML), has seen the profile's prompts and writes the JSON that
they ask for. It knows next to nothing: a run with it shows that every stage works, and its accuracies mean nothing.

Its training data are made from the documents alone, without exam, expert or larger model. Three tasks are mixed:
document -> one of a few general rubrics; document, with or without a rubric -> question and answer, which ask for a
blank or the second half of a sentence; the same question -> its answer, closed-book.
"""

import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as token_models
from transformers import PreTrainedTokenizerFast

from rubric_influence.core.config import Config, Prompts
from rubric_influence.core.corpus_sections import TextCorpus
from rubric_influence.core.files import write_json
from rubric_influence.data.chunks import chunk_document
from rubric_influence.data.documents import drop_duplicates, read_documents
from rubric_influence.lab.networks import build_model, wrap_tokenizer
from rubric_influence.lab.pretraining import Schedule, train_model
from rubric_influence.models.examples import encode
from rubric_influence.synthesis.prompts import ask_answer, ask_pair, ask_rubric

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORMS = ("fill-in-the-blank", "short-answer")
# What a rubric can ask about, and where a stand-in looks for it: 0 is the document's first sentence, 1 its last.
ASPECTS = {"background": 0.0, "aim": 0.3, "method": 0.6, "main finding": 1.0}
WORDINGS = (
    "Ask a {form} question about the {aspect}.",
    "Write one {form} question on the {aspect}, with a concise answer.",
)
MOST_WORDS = 24  # of a sentence go into a question and its answer
TASK_WEIGHTS = {"rubric": 1, "pair": 3, "free pair": 1, "closed book": 2}


def train_tokenizer(texts: Iterable[str], vocabulary: int = 2000) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocabulary` tokens with a ChatML template; it encodes every text without loss."""
    tokenizer = Tokenizer(token_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    special = dict(pad_token=PAD, eos_token=END, additional_special_tokens=[START])
    return wrap_tokenizer(tokenizer, chat_template=CHAT_TEMPLATE, model_max_length=4096, **special)


def write_pair(document: str, form: str, aspect: str, rng: random.Random) -> tuple[str, str]:
    """A question and answer on the document's sentence at the aspect's place."""
    sentences = [s for s in re.split(r"(?<=[.!?])\s+", document) if len(s.split()) > 4] or [document]
    words = sentences[round(ASPECTS[aspect] * (len(sentences) - 1))].split()[:MOST_WORDS]
    if form == "short-answer" and len(words) > 1:
        half = len(words) // 2
        return f"What comes after: {' '.join(words[:half])} ...?", " ".join(words[half:])
    hidden = rng.choice(sorted(range(len(words)), key=lambda i: -len(words[i]))[:3])  # a long word says something
    return f"Fill in the blank: {' '.join([*words[:hidden], '____', *words[hidden + 1 :]])}", words[hidden]


def draw_example(prompts: Prompts, document: str, rng: random.Random) -> tuple[str, str]:
    """One (prompt, completion) of a random task about a document."""
    form, aspect = rng.choice(FORMS), rng.choice(list(ASPECTS))
    rubric = rng.choice(WORDINGS).format(form=form, aspect=aspect)
    question, answer = write_pair(document, form, aspect, rng)
    task = rng.choices(list(TASK_WEIGHTS), weights=list(TASK_WEIGHTS.values()))[0]
    if task == "rubric":
        conversation, written = ask_rubric(prompts, document), json.dumps({"rubric": rubric}, ensure_ascii=False)
    elif task == "closed book":
        conversation, written = ask_answer(prompts, question), answer
    else:
        conversation = ask_pair(prompts, document, rubric if task == "pair" else None)
        written = json.dumps({"question": question, "answer": answer}, ensure_ascii=False)
    return conversation[0]["content"], written


@dataclass(frozen=True)
class StandinSettings:
    """How a stand-in is made: its architecture, its size and its training."""

    family: str = "qwen3"
    steps: int = 240
    batch_size: int = 8
    hidden_size: int = 128
    layers: int = 2
    seed: int = 0


def read_texts(config: Config, documents: Path | None = None) -> list[str]:
    """The chunks of a profile's documents, or of others. Raises ValueError for a profile of another kind."""
    if not isinstance(config.corpus, TextCorpus):
        raise ValueError(f"corpus.kind is {config.corpus.kind}; stand-ins are for corpus.kind: text")
    section = config.corpus
    found = read_documents(documents or section.documents, section.document_columns, section.skip_faulty_documents)
    read = drop_duplicates(found.documents)
    return [chunk.text for document in read for chunk in chunk_document(document, config.corpus.max_document_words)]


def train_standin(texts: Sequence[str], prompts: Prompts, out: Path, settings: StandinSettings) -> dict[str, Any]:
    """Train a tokenizer and a model on document texts and write both to `out`.

    Returns (and writes to standin.json) how it was made, its number of parameters, and the loss every 20 steps.
    Raises ValueError for no texts, an unknown family, or an `out` that holds another model than a stand-in.
    """
    if not texts:
        raise ValueError("there are no texts to train a stand-in on")
    if any(out.glob("*.safetensors")) and not (out / "standin.json").is_file():
        raise ValueError(f"{out} holds a model that is no stand-in; give another folder")
    rng = random.Random(settings.seed)
    drawn = [draw_example(prompts, rng.choice(texts), rng) for _ in range(settings.steps * settings.batch_size)]
    tokenizer = train_tokenizer([*texts, *(text for example in drawn for text in example)])
    examples = [encode(tokenizer, prompt, completion) for prompt, completion in drawn]
    torch.manual_seed(settings.seed)
    model = build_model(tokenizer, settings.family, settings.hidden_size, settings.layers)
    warmup = min(20, settings.steps // 4)
    schedule = Schedule(settings.steps, settings.batch_size, 3e-3, warmup, logging_steps=20, seed=settings.seed)
    log = train_model(model, tokenizer, examples, out, schedule)
    recipe = {"standin": True, "family": settings.family, "texts": len(texts), "tokens": len(tokenizer)}
    recipe |= {key: getattr(settings, key) for key in ("steps", "seed", "batch_size")}
    recipe |= {"parameters": model.num_parameters(), "losses": [entry["loss"] for entry in log if "loss" in entry]}
    write_json(out / "standin.json", recipe)
    return recipe

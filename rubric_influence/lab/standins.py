"""Stand-ins: a tiny language model trained for a minute or two on a profile's own documents.

Where no real model is at hand, a profile on real text can still be run from end to end: a stand-in has the format of
a real model (Hugging Face folder, subword tokenizer, ChatML), has seen the profile's prompts and writes the JSON that
they ask for. It knows next to nothing, so a run with it shows that every stage works, and its accuracies mean nothing.

What it is trained on is made from the documents alone, without exam, expert or larger model: document -> one of a few
general rubrics; document and rubric -> a blank in a sentence, or its second half, as question and answer; the same
question -> its answer, closed-book.
"""

import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as token_models
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments

from rubric_influence.core.config import Config, Prompts, TextCorpus
from rubric_influence.core.files import write_json
from rubric_influence.data.documents import chunk_document, drop_duplicates, read_documents
from rubric_influence.influence.examples import collate, encode
from rubric_influence.lab.networks import build_model
from rubric_influence.models.progress import show_progress
from rubric_influence.synthesis.prompts import ask_answer, ask_pair, ask_rubric

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORMS = ("fill-in-the-blank", "short-answer")
# What a rubric can ask about, and how far into the document a stand-in looks for it.
ASPECTS = {"background": 0.0, "aim": 0.3, "method": 0.6, "main finding": 1.0}
WORDINGS = (
    "Ask a {form} question about the {aspect}.",
    "Write one {form} question on the {aspect}, with a concise answer.",
)
MOST_WORDS = 24  # of a sentence that is asked about
TASK_WEIGHTS = {"rubric": 1, "pair": 3, "free pair": 1, "closed book": 2}


def train_tokenizer(texts: Iterable[str], vocabulary: int = 2000) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most so many tokens, which every text survives, with a ChatML template."""
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
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def draw_rubric(rng: random.Random) -> tuple[str, str, str]:
    """A rubric's text, form and aspect, uniform over all."""
    form, aspect = rng.choice(FORMS), rng.choice(list(ASPECTS))
    return rng.choice(WORDINGS).format(form=form, aspect=aspect), form, aspect


def write_pair(document: str, form: str, aspect: str, rng: random.Random) -> tuple[str, str]:
    """A question and answer on the sentence that stands where the aspect is looked for."""
    sentences = [s for s in re.split(r"(?<=[.!?])\s+", document) if len(s.split()) > 4] or [document]
    words = sentences[round(ASPECTS[aspect] * (len(sentences) - 1))].split()[:MOST_WORDS]
    if form == "short-answer" and len(words) > 1:
        half = len(words) // 2
        return f"What comes after: {' '.join(words[:half])} ...?", " ".join(words[half:])
    hidden = rng.choice(sorted(range(len(words)), key=lambda i: -len(words[i]))[:3])  # a long word says something
    return f"Fill in the blank: {' '.join([*words[:hidden], '____', *words[hidden + 1 :]])}", words[hidden]


def draw_example(prompts: Prompts, document: str, rng: random.Random) -> tuple[str, str]:
    """One (prompt, completion) of a random task about a document."""
    rubric, form, aspect = draw_rubric(rng)
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
    """The chunks of a profile's documents, or of others. Raises ValueError for a profile of the lab."""
    if not isinstance(config.corpus, TextCorpus):
        raise ValueError("this is a lab profile, which has its own models; stand-ins are for corpus.kind: text")
    read = drop_duplicates(read_documents(documents or config.corpus.documents))
    return [chunk.text for document in read for chunk in chunk_document(document, config.corpus.max_document_words)]


def train_standin(
    texts: Sequence[str], prompts: Prompts, out: str | Path, settings: StandinSettings | None = None
) -> dict:
    """Train a tokenizer and a model on document texts and write both to `out`. Returns (and writes) the recipe.

    Raises ValueError for no texts, an unknown family, or an `out` that holds another model than a stand-in.
    """
    made = settings or StandinSettings()
    out = Path(out)
    if not texts:
        raise ValueError("there are no texts to train a stand-in on")
    if any(out.glob("*.safetensors")) and not (out / "standin.json").is_file():
        raise ValueError(f"{out} holds a model that is no stand-in; give another folder")
    rng = random.Random(made.seed)
    drawn = [draw_example(prompts, rng.choice(texts), rng) for _ in range(made.steps * made.batch_size)]
    tokenizer = train_tokenizer([*texts, *(text for example in drawn for text in example)])
    examples = [encode(tokenizer, prompt, completion) for prompt, completion in drawn]
    torch.manual_seed(made.seed)
    model = build_model(tokenizer, made.family, made.hidden_size, made.layers)
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=made.steps,
        per_device_train_batch_size=made.batch_size,
        learning_rate=3e-3,
        adam_beta2=0.98,
        weight_decay=0.01,
        warmup_steps=min(20, made.steps // 4),
        lr_scheduler_type="cosine",
        bf16=torch.cuda.is_available(),  # CPUs without bf16 units are twenty times slower at it
        use_cpu=not torch.cuda.is_available(),
        logging_steps=20,
        disable_tqdm=True,
        save_strategy="no",
        report_to="none",
        seed=made.seed,
    )
    trainer = Trainer(
        model, arguments, train_dataset=examples, data_collator=lambda rows: collate(rows, tokenizer.pad_token_id)
    )
    show_progress(trainer, f"stand-in {out.name}", "loss")
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    recipe = dict(standin=True, family=made.family, texts=len(texts), tokens=len(tokenizer), steps=made.steps)
    recipe |= dict(seed=made.seed, batch_size=made.batch_size, parameters=model.num_parameters(), losses=losses)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_json(out / "standin.json", recipe)
    return recipe

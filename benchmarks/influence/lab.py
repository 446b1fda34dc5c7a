"""A target to measure influence on: the lab's base after a short warm-up, its moments, validation and candidates."""

import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel

from rubric_influence.core.config import FineTuning, Lora, Prompts
from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.core.records import QAPair
from rubric_influence.core.scratch import Workplace
from rubric_influence.influence.moments import AdamMoments, load_moments
from rubric_influence.lab import world
from rubric_influence.models.examples import Example, encode
from rubric_influence.models.loading import load_tokenizer
from rubric_influence.training.fine_tuning import TuningRun, fine_tune, list_checkpoints, load_fine_tuned

DATA = Path(__file__).parents[2] / "data/lab"
FIELD = DATA / "fields/medicine.yaml"
BASE = ModelSpec(path=str(DATA / "models/medicine-qwen3"), dtype="float32", attention="eager")
PROMPTS = Prompts(
    rubric="{document}", pair="{document} {rubric}", pair_without_rubric="{document}", expert_rubrics=["none"]
)
LORA = Lora(r=16, alpha=32)
WARM_UP = FineTuning(epochs=10, batch_size=16, learning_rate=4e-3, schedule="linear", max_tokens=128)
DOCUMENTS = 48  # entities that warm-up and candidates are about; the validation's are others


@dataclass(frozen=True)
class Case:
    """model: the warmed-up target, in eval mode. moments: Adam's after its last step.

    validation: exam questions with their answers, about entities that no candidate is about. topics: each one's.
    held_out: as many such questions about entities that neither candidates nor validation are about.
    candidates: pairs that the warm-up has not seen, in random order: a third each about the exam's topics, about
        others, and about the exam's with another question's answer.
    asked, texts: questions and answers as text, of validation and candidates.
    """

    model: PeftModel
    moments: AdamMoments
    validation: list[Example]
    topics: list[str]
    held_out: list[Example]
    candidates: list[Example]
    asked: list[str]
    texts: list[str]


def draw_pairs(
    field: world.Field, entities: Sequence[world.Entity], topics: list[str], count: int, rng: random.Random
) -> list[tuple[str, str]]:
    """Questions and answers as a competent teacher writes them, in every form, about random entities."""
    return [
        world.write_pair(field, rng.choice(entities), world.draw_choice(field, rng, topics), rng, field.topics)
        for _ in range(count)
    ]


def draw_candidates(
    field: world.Field, entities: Sequence[world.Entity], count: int, rng: random.Random
) -> list[tuple[str, str]]:
    """As `Case` says."""
    others = [topic for topic in field.topics if topic not in field.exam_topics]
    third = count // 3
    right = draw_pairs(field, entities, field.exam_topics, count - 2 * third, rng)
    other = draw_pairs(field, entities, others, third, rng)
    moved = draw_pairs(field, entities, field.exam_topics, third, rng)
    answers = [answer for _, answer in moved]
    wrong = [(question, answer) for (question, _), answer in zip(moved, answers[1:] + answers[:1], strict=True)]
    pairs = [*right, *other, *wrong]
    rng.shuffle(pairs)
    return pairs


def make_case(
    seed: int, warm_up: int = 96, validation: int = 12, candidates: int = 384, epochs: int = WARM_UP.epochs
) -> Case:
    """The case of a seed: `warm_up` pairs trained on, questions about `validation` entities, so many candidates.

    `epochs` of warm-up change the model and its moments alone.
    """
    field = world.load_field(FIELD)
    rng = random.Random(seed)
    entities = world.draw_entities(field, DOCUMENTS + 2 * validation, rng)
    described, asked = entities[:DOCUMENTS], entities[DOCUMENTS:]
    pairs = [
        QAPair(question, answer, document_id="", rubric_id="", teacher="world", seed=seed, slot=slot)
        for slot, (question, answer) in enumerate(draw_pairs(field, described, field.topics, warm_up, rng))
    ]
    exam, held_out = (world.write_exam(field, part, rng) for part in (asked[:validation], asked[validation:]))
    drawn = draw_candidates(field, described, candidates, rng)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "adapter")
        settings = WARM_UP.model_copy(update={"epochs": epochs})
        run = TuningRun(BASE, PROMPTS, LORA, settings, seed, name="warm-up")
        fine_tune(run, pairs, Workplace(out, Path(folder, "scratch")))
        (checkpoint,) = list_checkpoints(out)
        model, moments = load_fine_tuned(BASE, checkpoint), load_moments(checkpoint / "moments.safetensors")
    tokenizer = load_tokenizer(BASE)

    questions = [(item.question, item.options[item.answer_index]) for item in exam]

    def encode_all(pairs: Sequence[tuple[str, str]]) -> list[Example]:
        return [encode(tokenizer, question, answer, PROMPTS.answer) for question, answer in pairs]

    return Case(
        model,
        moments,
        encode_all(questions),
        [item.topic for item in exam],
        encode_all([(item.question, item.options[item.answer_index]) for item in held_out]),
        encode_all(drawn),
        [" ".join(pair) for pair in questions],
        [" ".join(pair) for pair in drawn],
    )

"""How faithful a lab model is as a teacher: how often its pair states the document's fact on the rubric's topic."""

import random

import pandas as pd

from rubric_influence.engines.base import Engine, Sampling
from rubric_influence.lab import world
from rubric_influence.lab.pretraining import pair_prompt
from rubric_influence.models.chat import Conversation, ask
from rubric_influence.synthesis.parsing import ParsedPair, parse_pair


def states_fact(pair: ParsedPair, choice: world.Choice, value: str) -> bool:
    """Whether the answer gives the value: in a multiple-choice question by its letter, else as a word."""
    if choice.question_type != "multiple choice":
        return value in pair.answer.split()
    letter, words = pair.answer.split()[-1], pair.question.split()
    return any(words[i : i + 3] == [letter, ":", value] for i in range(len(words)))


def measure_fidelity(field: world.Field, teacher: Engine, count: int, seed: int) -> pd.DataFrame:
    """How well a teacher writes pairs on documents about `count` random entities, by question type.

    Columns: the share of pairs that are valid, the share that state the document's fact, and the number of pairs.
    """
    rng = random.Random(seed)
    expected: list[tuple[world.Choice, str]] = []
    asked: list[Conversation] = []
    for _ in range(count):
        entity = world.draw_entity(field, rng.choice(field.entity_names), rng)
        choice = world.draw_choice(field, rng)
        document = world.write_document(field, entity, rng)
        expected.append((choice, entity.facts[choice.topic]))
        asked.append(ask(pair_prompt(document, world.write_rubric(field, choice, rng))))
    rows = []
    for (choice, value), completion in zip(expected, teacher.generate(asked, Sampling(seed, 64)), strict=True):
        pair = parse_pair(completion.text)
        valid = not pair.problem
        rows.append((choice.question_type, valid, valid and states_fact(pair, choice, value)))
    by_type = pd.DataFrame(rows, columns=["question type", "valid", "states the fact"]).groupby("question type")
    return by_type.mean().assign(pairs=by_type.size())

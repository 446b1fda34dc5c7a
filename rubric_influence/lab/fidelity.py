"""How well a lab model plays its roles, measured against the world's truth.

A teacher is faithful where its pair follows the rubric's topic and its answer holds the document's fact.
"""

import random

import pandas as pd

from rubric_influence.engines.base import Engine, Sampling
from rubric_influence.lab import world
from rubric_influence.lab.pretraining import pair_prompt
from rubric_influence.models.chat import ask
from rubric_influence.synthesis.parsing import ParsedPair, parse_pair

MAX_TOKENS = 64


def states_fact(pair: ParsedPair, choice: world.Choice, value: str) -> bool:
    """Whether the answer gives the value: by its letter in a multiple-choice question, else in words."""
    if choice.question_type != "multiple choice":
        return value in pair.answer.split()
    letter, words = pair.answer.split()[-1], pair.question.split()
    return any(words[i : i + 3] == [letter, ":", value] for i in range(len(words)))


def measure_fidelity(field: world.Field, teacher: Engine, count: int, seed: int) -> pd.DataFrame:
    """Share of pairs that are valid, and that state the document's fact, by question type, over `count` entities."""
    rng = random.Random(seed)
    cases = []
    for _ in range(count):
        entity = world.draw_entity(field, rng.choice(field.entity_names), rng)
        choice = world.draw_choice(field, rng)
        document = world.write_document(field, entity, rng)
        cases.append(
            (choice, entity.facts[choice.topic], pair_prompt(document, world.write_rubric(field, choice, rng)))
        )
    asked = [ask(prompt) for _, _, prompt in cases]
    written = teacher.generate(asked, Sampling(seed, MAX_TOKENS))
    rows = []
    for (choice, value, _), completion in zip(cases, written, strict=True):
        pair = parse_pair(completion.text)
        valid = not pair.problem
        faithful = valid and states_fact(pair, choice, value)
        rows.append({"question type": choice.question_type, "valid": valid, "states the fact": faithful})
    table = pd.DataFrame(rows)
    shares = table.groupby("question type").mean()
    return shares.assign(pairs=table.groupby("question type").size())

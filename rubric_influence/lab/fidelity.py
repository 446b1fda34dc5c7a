"""How well a lab model plays its roles, measured against the world's truth.

    python -m rubric_influence.lab.fidelity data/lab/models/medicine-qwen3 --field data/lab/fields/medicine.yaml

A teacher is faithful where its pair follows the rubric's topic and its answer holds the document's fact.
"""

import argparse
import random

import pandas as pd

from rubric_influence.config import ModelSpec
from rubric_influence.generation import Engine, open_engine
from rubric_influence.lab import world
from rubric_influence.lab.pretraining import pair_prompt
from rubric_influence.parsing import ParsedPair, parse_pair
from rubric_influence.prompts import ask

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
    written = teacher.generate(asked, seed=seed, temperature=1.0, top_p=1.0, max_tokens=MAX_TOKENS)
    rows = []
    for (choice, value, _), completion in zip(cases, written, strict=True):
        pair = parse_pair(completion.text)
        valid = not pair.problem
        faithful = valid and states_fact(pair, choice, value)
        rows.append({"question type": choice.question_type, "valid": valid, "states the fact": faithful})
    table = pd.DataFrame(rows)
    shares = table.groupby("question type").mean()
    return shares.assign(pairs=table.groupby("question type").size())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--field", required=True)
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    teacher = open_engine(ModelSpec(path=arguments.model, dtype="float32", attention="eager"), batch_size=128)
    print(measure_fidelity(world.load_field(arguments.field), teacher, arguments.count, arguments.seed).round(3))


if __name__ == "__main__":
    main()

"""The lab's world: invented entities, the documents that state their facts, rubrics, pairs and the exam.

A field (medicine, history, ...) is a table in data/lab/fields; nothing here knows any field's words. An entity has
eight attributes: four that the exam asks about and four that it does not. A document states all eight. The exam is
closed-book, so only pairs that teach an entity's facts, in a form that transfers to the exam, can raise the score.

All text is words separated by blanks, one token each (`lab.models.build_tokenizer`).
"""

import random
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

import pydantic
import yaml

QUESTION_TYPES = ("multiple choice", "fill in the blank", "short answer", "essay")
STYLES = ("concise", "stepwise")
REGISTERS = ("technical", "plain")
LETTERS = "ABCD"

# What a teacher is told to write, as a person would put it. Slots are blank-separated words.
RUBRIC_WORDINGS = (
    "ask a {type} question about the {topic} in {register} language with a {style} answer .",
    "write one {type} question in {register} language . topic : {topic} . answer style : {style} .",
    "the answer is {style} . the question is {type} , {register} , on the {topic} .",
)


class Attribute(pydantic.BaseModel):
    """One kind of fact: its possible values and the sentences that state or ask for it ({e} entity, {v} value)."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)
    exam_topic: bool
    values: tuple[str, ...] = pydantic.Field(min_length=4)
    statements: tuple[str, ...] = pydantic.Field(min_length=1)
    technical: tuple[str, ...] = pydantic.Field(min_length=1)
    plain: tuple[str, ...] = pydantic.Field(min_length=1)
    cloze: str

    @pydantic.model_validator(mode="after")
    def can_be_written(self) -> "Attribute":
        for value in self.values:
            if len(value.split()) != 1:
                raise ValueError(f"value {value!r} is not one word")
            if self.values.count(value) > 1:
                raise ValueError(f"values {list(self.values)} repeat {value!r}")
        for texts, slots in ((self.statements, ["e", "v"]), ((*self.technical, *self.plain, self.cloze), ["e"])):
            for text in texts:
                found = sorted({slot for _, slot, _, _ in Formatter().parse(text) if slot is not None})
                if found != slots:
                    raise ValueError(f"{text!r} has slots {found}, expected {slots}")
        return self


class NameParts(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)
    first: tuple[str, ...]
    last: tuple[str, ...]

    @pydantic.model_validator(mode="after")
    def are_distinct(self) -> "NameParts":
        made = set()
        for name in (first + last for first in self.first for last in self.last):
            if name in made:
                raise ValueError(f"the name {name!r} can be made in two ways")
            made.add(name)
        return self


class Registers(pydantic.BaseModel):
    """What the field calls the exam's register and everyday language."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)
    technical: str
    plain: str


class Field(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)
    name: str
    entity: str
    registers: Registers
    names: NameParts
    attributes: dict[str, Attribute]

    @pydantic.model_validator(mode="after")
    def can_be_examined(self) -> "Field":
        if not self.exam_topics:
            raise ValueError("no attribute is an exam topic")
        return self

    @property
    def entity_names(self) -> list[str]:
        return [first + last for first in self.names.first for last in self.names.last]

    @property
    def topics(self) -> list[str]:
        return list(self.attributes)

    @property
    def exam_topics(self) -> list[str]:
        return [topic for topic, attribute in self.attributes.items() if attribute.exam_topic]


@dataclass(frozen=True)
class Entity:
    name: str
    facts: dict[str, str]  # topic -> value


@dataclass(frozen=True)
class Choice:
    """What a lab rubric chooses; the 4 x 8 x 2 x 2 combinations are the rubric generator's whole action space."""

    question_type: str
    topic: str
    register: str
    style: str


@dataclass(frozen=True)
class ExamQuestion:
    question: str
    options: tuple[str, ...]
    answer_index: int
    topic: str
    entity: str


def load_field(path: str | Path) -> Field:
    """Read a field's table. Raises ValueError naming the file and what is wrong with it."""
    try:
        return Field.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except FileNotFoundError:
        known = sorted(p.stem for p in Path(path).parent.glob("*.yaml"))
        raise ValueError(f"no field table at {path}; the tables there are {known}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: pydantic's, or not UTF-8
        raise ValueError(f"field table {path} is not valid: {error}") from None


def draw_entity(field: Field, name: str, rng: random.Random) -> Entity:
    return Entity(name, {topic: rng.choice(a.values) for topic, a in field.attributes.items()})


def draw_entities(field: Field, count: int, rng: random.Random) -> list[Entity]:
    """`count` entities with distinct names. Raises ValueError if the field has fewer names."""
    names = field.entity_names
    if count > len(names):
        raise ValueError(
            f"field {field.name!r} has {len(names)} entity names, {count} were asked for; lower the counts"
        )
    return [draw_entity(field, name, rng) for name in rng.sample(names, count)]


def draw_choice(field: Field, rng: random.Random, topics: list[str] | None = None) -> Choice:
    """A choice uniform over everything (or over the given topics): what the pretrained generator does untrained."""
    return Choice(
        rng.choice(QUESTION_TYPES), rng.choice(topics or field.topics), rng.choice(REGISTERS), rng.choice(STYLES)
    )


def state_fact(field: Field, entity: Entity, topic: str, rng: random.Random) -> str:
    return rng.choice(field.attributes[topic].statements).format(e=entity.name, v=entity.facts[topic])


def write_document(field: Field, entity: Entity, rng: random.Random, topics: list[str] | None = None) -> str:
    """A document that states the entity's facts (all, or those of `topics`) in shuffled order and varied wording."""
    chosen = list(topics or field.topics)
    rng.shuffle(chosen)
    return " ".join([f"{entity.name} is a {field.entity} .", *(state_fact(field, entity, t, rng) for t in chosen)])


def write_rubric(field: Field, choice: Choice, rng: random.Random) -> str:
    return rng.choice(RUBRIC_WORDINGS).format(
        type=choice.question_type,
        topic=choice.topic,
        register=getattr(field.registers, choice.register),
        style=choice.style,
    )


def read_rubric(field: Field, text: str) -> Choice | None:
    """The choice that a lab rubric states, or None where it names none, or two, of a kind."""

    def only(options: dict[str, str]) -> str | None:
        padded = f" {text} "
        found = [key for key, words in options.items() if f" {words} " in padded]
        return found[0] if len(found) == 1 else None

    question_type = only({t: t for t in QUESTION_TYPES})
    topic = only({t: t for t in field.topics})
    register = only({r: getattr(field.registers, r) for r in REGISTERS})
    style = only({s: s for s in STYLES})
    if None in (question_type, topic, register, style):
        return None
    return Choice(question_type, topic, register, style)


def ask(field: Field, entity: Entity, topic: str, register: str, rng: random.Random) -> str:
    return rng.choice(getattr(field.attributes[topic], register)).format(e=entity.name)


def draw_options(attribute: Attribute, value: str, rng: random.Random) -> tuple[tuple[str, ...], int]:
    """Four options in random order, one of them right, and the index of the right one."""
    options = [value, *rng.sample([v for v in attribute.values if v != value], len(LETTERS) - 1)]
    rng.shuffle(options)
    return tuple(options), options.index(value)


def write_pair(field: Field, entity: Entity, choice: Choice, rng: random.Random, stated: list[str]) -> tuple[str, str]:
    """The question and answer that a competent teacher writes for a choice from a document stating `stated` topics.

    The forms differ in what they teach a closed-book reader: a short answer or a blank gives the fact itself, a
    multiple-choice answer only a letter, an essay buries the fact among others, a stepwise answer puts it late.
    """
    attribute = field.attributes[choice.topic]
    value = entity.facts[choice.topic]
    wording = ask(field, entity, choice.topic, choice.register, rng)
    if choice.question_type == "essay":
        others = [t for t in stated if t != choice.topic]
        told = [choice.topic, *rng.sample(others, min(2, len(others)))]
        rng.shuffle(told)
        body = " ".join(state_fact(field, entity, t, rng) for t in told)
        question, answer = f"write an essay . {wording}", f"{entity.name} is a {field.entity} . {body}"
    elif choice.question_type == "multiple choice":
        options, right = draw_options(attribute, value, rng)
        listed = " ".join(f"{letter} : {option}" for letter, option in zip(LETTERS, options, strict=True))
        question, answer = f"{wording} {listed}", LETTERS[right]
    elif choice.question_type == "fill in the blank":
        hint = "" if choice.register == "technical" else f"{wording} "
        question, answer = f"{hint}complete : {attribute.cloze.format(e=entity.name)}", value
    else:
        question, answer = wording, value
    if choice.style == "stepwise":
        answer = (
            f"first , recall {entity.name} , a {field.entity} . second , consider the {choice.topic} . so : {answer}"
        )
    return question, answer


def write_exam(field: Field, entities: list[Entity], rng: random.Random) -> list[ExamQuestion]:
    """Every technical wording of every exam topic for every entity, with four options each."""
    questions = []
    for entity in entities:
        for topic in field.exam_topics:
            attribute = field.attributes[topic]
            for wording in attribute.technical:
                options, right = draw_options(attribute, entity.facts[topic], rng)
                questions.append(ExamQuestion(wording.format(e=entity.name), options, right, topic, entity.name))
    return questions

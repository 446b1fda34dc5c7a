"""The lab's world: invented entities, the documents that state their facts, rubrics, pairs and the exam.

A field (medicine, history, ...) is a table in data/lab/fields; this module holds no field's words. An entity has eight
attributes: the exam asks about four of them, and a document states all eight. The exam is closed-book, so only pairs
that teach an entity's facts, in a form that transfers to the exam, can raise the score.

All text is words separated by blanks, each of which is one token (`lab.networks.build_tokenizer`).
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Formatter

import pydantic
import yaml

from rubric_influence.core.records import ExamItem

QUESTION_TYPES = ("multiple choice", "fill in the blank", "short answer", "essay")
STYLES = ("concise", "stepwise")
REGISTERS = ("technical", "plain")
LETTERS = "ABCD"

# What a teacher is told to write, as a person would put it. Blanks separate slots from other words.
RUBRIC_WORDINGS = (
    "ask a {question_type} question about the {topic} in {register} language with a {style} answer .",
    "write one {question_type} question in {register} language . topic : {topic} . answer style : {style} .",
    "the answer is {style} . the question is {question_type} , {register} , on the {topic} .",
)


class Table(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Attribute(Table):
    """One kind of fact: its possible values and the sentences that state or ask for it ({e} entity, {v} value)."""

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


class NameParts(Table):
    first: tuple[str, ...]
    last: tuple[str, ...]


class Registers(Table):
    """What the field calls the exam's register and everyday language."""

    technical: str
    plain: str


class Field(Table):
    name: str
    entity: str
    registers: Registers
    names: NameParts
    attributes: dict[str, Attribute]

    @pydantic.model_validator(mode="after")
    def can_be_examined(self) -> "Field":
        if not self.exam_topics:
            raise ValueError("no attribute is an exam topic")
        for name in (names := self.entity_names):
            if names.count(name) > 1:
                raise ValueError(f"the name {name!r} can be made in two ways")
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
    """What a lab rubric chooses. The 4 x 8 x 2 x 2 combinations are the rubric generator's whole action space."""

    question_type: str
    topic: str
    register: str
    style: str


def load_field(path: str | Path) -> Field:
    """Read a field's table. Raises ValueError with the file's name and what is wrong with it."""
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


def draw_choice(field: Field, rng: random.Random, topics: Sequence[str] | None = None) -> Choice:
    """A choice drawn uniformly, of any topic or of the given ones. The generator is pretrained to choose like this."""
    return Choice(*map(rng.choice, (QUESTION_TYPES, topics or field.topics, REGISTERS, STYLES)))


def write_sentence(field: Field, entity: Entity, topic: str, form: str, rng: random.Random) -> str:
    """A random one of the sentences that state the entity's fact (form "statements") or ask for it in a register."""
    return rng.choice(getattr(field.attributes[topic], form)).format(e=entity.name, v=entity.facts[topic])


def write_document(field: Field, entity: Entity, rng: random.Random, topics: Sequence[str] | None = None) -> str:
    """A document that states the entity's facts (all, or those on `topics`) in shuffled order and varied wording."""
    chosen = list(topics or field.topics)
    rng.shuffle(chosen)
    facts = [write_sentence(field, entity, topic, "statements", rng) for topic in chosen]
    return " ".join([f"{entity.name} is a {field.entity} .", *facts])


def write_rubric(field: Field, choice: Choice, rng: random.Random) -> str:
    words = asdict(choice) | {"register": getattr(field.registers, choice.register)}
    return rng.choice(RUBRIC_WORDINGS).format(**words)


def list_options(field: Field) -> dict[str, Sequence[str]]:
    """What a rubric can choose of each kind; exam topics come first."""
    topics = sorted(field.topics, key=lambda topic: topic not in field.exam_topics)
    return {"topic": topics, "question_type": QUESTION_TYPES, "register": REGISTERS, "style": STYLES}


def read_choice(field: Field, text: str) -> Choice | None:
    """The choice that a lab rubric states, or None where it states no option, or two, of a kind."""
    chosen = {}
    for kind, options in list_options(field).items():
        words = dict(field.registers) if kind == "register" else {}
        stated = [option for option in options if f" {words.get(option, option)} " in f" {text} "]
        if len(stated) != 1:
            return None
        chosen[kind] = stated[0]
    return Choice(**chosen)


def draw_options(field: Field, entity: Entity, topic: str, rng: random.Random) -> tuple[tuple[str, ...], int]:
    """Four values of a topic in random order, one of which is the entity's, and its index."""
    value = entity.facts[topic]
    options = [value, *rng.sample([v for v in field.attributes[topic].values if v != value], len(LETTERS) - 1)]
    rng.shuffle(options)
    return tuple(options), options.index(value)


def write_pair(field: Field, entity: Entity, choice: Choice, rng: random.Random, stated: list[str]) -> tuple[str, str]:
    """The question and answer that a competent teacher writes for a choice from a document on the `stated` topics.

    The forms differ in what they teach a closed-book reader: a short answer or a blank gives the fact itself, a
    multiple-choice answer only a letter, an essay buries the fact among others, a stepwise answer puts it late.
    """
    wording = write_sentence(field, entity, choice.topic, choice.register, rng)
    question, answer = wording, entity.facts[choice.topic]
    if choice.question_type == "essay":
        others = [t for t in stated if t != choice.topic]
        told = [choice.topic, *rng.sample(others, min(2, len(others)))]
        rng.shuffle(told)
        body = " ".join(write_sentence(field, entity, t, "statements", rng) for t in told)
        question, answer = f"write an essay . {wording}", f"{entity.name} is a {field.entity} . {body}"
    elif choice.question_type == "multiple choice":
        options, right = draw_options(field, entity, choice.topic, rng)
        listed = " ".join(f"{letter} : {option}" for letter, option in zip(LETTERS, options, strict=True))
        question, answer = f"{wording} {listed}", LETTERS[right]
    elif choice.question_type == "fill in the blank":
        hint = "" if choice.register == "technical" else f"{wording} "
        question = f"{hint}complete : {field.attributes[choice.topic].cloze.format(e=entity.name)}"
    if choice.style == "stepwise":
        steps = f"first , recall {entity.name} , a {field.entity} . second , consider the {choice.topic} ."
        answer = f"{steps} so : {answer}"
    return question, answer


def write_exam(field: Field, entities: Sequence[Entity], rng: random.Random, split: str = "test") -> list[ExamItem]:
    """Every technical wording of every exam topic for every entity, with four options each."""
    return [
        ExamItem(wording.format(e=entity.name), *draw_options(field, entity, topic, rng), split, topic, "lab")
        for entity in entities
        for topic in field.exam_topics
        for wording in field.attributes[topic].technical
    ]

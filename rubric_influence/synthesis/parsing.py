"""From what a model wrote to a rubric or a question-answer pair, or the reason why it is neither.

A model writes one JSON object (`RubricOutput`, `PairOutput`), perhaps after a <think> block, inside a code fence or
between remarks. Nothing here raises on a model's output, and the time is bounded whatever it wrote. Nothing here judges
whether the content is right or safe.
"""

import json
import re
from itertools import islice
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from rubric_influence.engines.base import MAX_OUTPUT_CHARACTERS

MAX_OBJECTS_TRIED = 32  # places where an object may start; each costs time linear in the output
MAX_RUBRIC_CHARACTERS = 4_000
MAX_QUESTION_CHARACTERS = 4_000
MAX_ANSWER_CHARACTERS = 16_000

OBJECT_START = re.compile(r'\{\s*"')
# A run of letters and digits, or one character of a script that puts no blanks between words (Japanese, Chinese).
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
# No rubric or pair holds these: a slot or tag copied from the instructions ({question}, [answer], <rubric>), a control
# token such as <|end|>, control characters, lone surrogates and the replacement character.
LEFTOVER = re.compile(
    r"\{\{?\s*(?:document|rubric|question|answer)\s*\}|\[(?:document|rubric|question|answer)\]"
    r"|</?(?:document|rubric|question|answer|think)>|<\|\w+\|>|[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff\ufffd]",
    re.IGNORECASE,
)

Output = TypeVar("Output", bound=BaseModel)


class RubricOutput(BaseModel, extra="forbid", strict=True):
    """What the rubric generator writes: `{"rubric": "..."}`."""

    rubric: str


class PairOutput(BaseModel, extra="forbid", strict=True):
    """What the teacher writes: `{"question": "...", "answer": "..."}`."""

    question: str
    answer: str


class ParsedRubric(NamedTuple):
    text: str
    problem: str  # why the rubric cannot be used; "" means valid


class ParsedPair(NamedTuple):
    question: str
    answer: str
    problem: str  # why the pair cannot be used; "" means valid


def parse_rubric(output: str) -> ParsedRubric:
    """The rubric in a model's output, with runs of whitespace made one blank; text "" where there is none.

    Problems: no JSON object; wrong keys or types; fewer than two words; too long; a leftover of the instructions.
    """
    try:
        text = " ".join(read_object(output, RubricOutput).rubric.split())
    except ValueError as error:
        return ParsedRubric("", str(error))
    return ParsedRubric(text, find_problem("rubric", text, least_words=2, most_characters=MAX_RUBRIC_CHARACTERS))


def parse_pair(output: str) -> ParsedPair:
    """The pair in a model's output, with runs of whitespace made one blank; both texts "" where there is none.

    Problems: as for a rubric (a question has two words at least, an answer one); an answer that repeats the question.
    """
    try:
        pair = read_object(output, PairOutput)
    except ValueError as error:
        return ParsedPair("", "", str(error))
    question, answer = " ".join(pair.question.split()), " ".join(pair.answer.split())
    problem = (
        find_problem("question", question, least_words=2, most_characters=MAX_QUESTION_CHARACTERS)
        or find_problem("answer", answer, least_words=1, most_characters=MAX_ANSWER_CHARACTERS)
        or ("answer repeats the question" if answer.casefold() == question.casefold() else "")
    )
    return ParsedPair(question, answer, problem)


def read_object(output: str, schema: type[Output]) -> Output:
    """The first JSON object of the output as `schema`. Raises ValueError with the problem in a few words."""
    text = output[:MAX_OUTPUT_CHARACTERS]
    thought, closed, rest = text.partition("</think>")
    if not closed and thought.lstrip().startswith("<think>"):
        raise ValueError("thinking does not end")
    text = rest if closed else text
    decoder = json.JSONDecoder(strict=False)  # models put line breaks into strings without escaping them
    for start in islice(OBJECT_START.finditer(text), MAX_OBJECTS_TRIED):
        try:
            found, _ = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            continue
        try:
            return schema.model_validate(found)
        except ValidationError as error:
            wrong = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)]
            raise ValueError(f"wrong keys or types: {'; '.join(wrong)[:200]!a}") from None
    raise ValueError("no JSON object")


def find_problem(name: str, text: str, least_words: int, most_characters: int) -> str:
    if len(text) > most_characters:
        return f"{name} is longer than {most_characters} characters"
    if len(WORD.findall(text)) < least_words:
        return f"{name} is trivial" if text else f"{name} is empty"
    leftover = LEFTOVER.search(text)
    return f"{name} has a leftover: {leftover.group()!r}" if leftover else ""

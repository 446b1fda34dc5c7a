"""From what a model wrote to a rubric or a question-answer pair, or the reason why it is neither.

A model writes one JSON object, perhaps after reasoning and drafts, between remarks, and with LaTeX in it. Nothing here
raises on a model's output, the time is bounded, and nothing judges whether the content is right or safe.
"""

import json
import re
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from rubric_influence.engines.base import MAX_OUTPUT_CHARACTERS

PARSER = 1  # raised by 1 where outputs are read in another way: a streamed corpus does not mix two (its run.json)
MAX_OBJECTS_TRIED = 32  # places where an object may start, the last ones; each costs time linear in the output
MAX_RUBRIC_CHARACTERS = MAX_QUESTION_CHARACTERS = 4_000
MAX_ANSWER_CHARACTERS = 16_000

MARK = re.compile(r'\{\s*"|</?(?i:think|thinking|thought|reasoning)>|\[/?THINK\]|<\|channel\|>(?:analysis|final)')
# A backslash, with the JSON escape that it begins as group 1. "\nu" may be a line break and "u", or LaTeX. It is LaTeX
# where all letters that follow are listed here: "u", "ot" (\not) seldom begin a line, nor is "o" (\to) set off by tabs.
# What often begins one is left out: \nexists, \nless, \ni, and \ne before "." or ")". \b before a letter is LaTeX.
BACKSLASH = re.compile(
    r"(\\(?:[\"\\/]|u[0-9a-fA-F]{4}|(?!b[A-Za-z]|(?:fbox|flat|footnote|forall|frac|frown|nabla|natural|ncong|ne(?![.)])|"
    r"n[ew]arrow|neg|neq|newline|ngeq|nleq|nonumber|not|notag|notin|nsu[bp]seteq|nu|rangle|rbrace|rbrack|rceil|ref|rfloor|"
    r"rho|right[a-z]*|rm|root|rtimes|r[vV]ert|tag|tanh?|tau|tbinom|text(?:bf|color|degree|it|mu|normal|rm|s[cf]|style|"
    r"su[bp][a-z]+|tt|up)?|tfrac|therefore|theta|thicksim|tilde|times|tiny|to|top|triangle[a-z]*)(?![A-Za-z]))[bfnrt]))|\\"
)
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
    """The last JSON object outside reasoning that fits `schema`. Raises ValueError with the last object's problem."""
    text = BACKSLASH.sub(lambda match: match[1] or r"\\", output[:MAX_OUTPUT_CHARACTERS])
    decoder = json.JSONDecoder(strict=False)  # models put line breaks into strings without escaping them
    tried = [mark.start() for mark in MARK.finditer(text) if mark[0][0] == "{"][-MAX_OBJECTS_TRIED:]
    fitting, problem, thinking, position = None, "no JSON object", False, 0
    while mark := MARK.search(text, position):  # an object, or where reasoning begins or ends
        position = mark.end()
        if mark[0][0] != "{":
            ends = "/" in mark[0] or mark[0].endswith("final")
            if ends and not thinking:  # the chat template has begun the reasoning
                fitting, problem = None, "no JSON object"
            thinking = not ends
        elif not thinking and mark.start() in tried:
            try:
                found, position = decoder.raw_decode(text, mark.start())
                fitting = schema.model_validate(found)
            except ValidationError as error:
                wrong = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)]
                problem = f"wrong keys or types: {'; '.join(wrong)[:200]!a}"
            except (ValueError, RecursionError):
                continue
    if fitting is None:
        raise ValueError("thinking does not end" if thinking else problem)
    return fitting


def find_problem(name: str, text: str, least_words: int, most_characters: int) -> str:
    if len(text) > most_characters:
        return f"{name} is longer than {most_characters} characters"
    if len(WORD.findall(text)) < least_words:
        return f"{name} is trivial" if text else f"{name} is empty"
    leftover = LEFTOVER.search(text)
    return f"{name} has a leftover: {leftover.group()!r}" if leftover else ""

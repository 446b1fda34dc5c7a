"""What the HTTP response to a chat completion says: an answer, or a fault that may or may not pass."""

from dataclasses import dataclass
from http import HTTPStatus

import openai
from pydantic import BaseModel, Field, ValidationError

from rubric_influence.engines.base import MAX_OUTPUT_CHARACTERS, Completion
from rubric_influence.engines.throttle import read_retry_after

CONGESTION = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
PASSING = CONGESTION | {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT}  # and every status of 500 or above


class Message(BaseModel):
    content: str | None = None


class Choice(BaseModel):
    message: Message
    finish_reason: str | None = None


class Tokens(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Answer(BaseModel):
    """The fields of a chat completion that are read; a server may send more."""

    choices: list[Choice] = Field(min_length=1)
    usage: Tokens | None = None


@dataclass(frozen=True)
class Fault:
    """A try that gave no answer."""

    reason: str
    passing: bool = True  # another try may give one
    congestion: bool = False  # the server has too much to do
    wait: float = 0.0  # seconds that the server asks for


def read_answer(content: bytes, needs_usage: bool) -> Completion | Fault:
    """The completion in a response's body. With `needs_usage`, a body without token counts is a fault that stays."""
    try:
        answer = Answer.model_validate_json(content)
    except ValidationError:
        return Fault("a response that is no chat completion")
    if answer.usage is None and needs_usage:
        return Fault("HTTP 200, but no token usage, so no budget can be kept; remove the budget", passing=False)
    choice, usage = answer.choices[0], answer.usage or Tokens()
    text = (choice.message.content or "")[:MAX_OUTPUT_CHARACTERS]
    return Completion(text, usage.prompt_tokens, usage.completion_tokens, choice.finish_reason == "stop")


def read_refusal(error: openai.APIStatusError, key: str) -> Fault:
    """What a status of 300 or above means. `key` is masked in its message, since some servers repeat it."""
    status, message = error.status_code, " ".join(str(error.message).split())[:300]
    message = message.replace(key, "***") if key else message
    spent = status == HTTPStatus.TOO_MANY_REQUESTS and error.code == "insufficient_quota"
    passing = (status in PASSING or status >= 500) and not spent
    wait = read_retry_after(error.response.headers)
    return Fault(f"HTTP {status}" if passing else f"HTTP {status}: {message}", passing, status in CONGESTION, wait)

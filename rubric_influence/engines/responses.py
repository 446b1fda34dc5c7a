"""What the body of a response to a chat completion says: an answer, or a fault that may or may not pass.

Bodies differ: content is text, a list of parts or null, reasoning stands beside it or among its parts, an answer comes
whole or as a stream of server-sent events, a refusal may be in a body of HTTP 200. What a server does not say of tokens
is estimated, so that all that it may have been paid for is counted.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from rubric_influence.core.checks import HALF
from rubric_influence.engines.base import MAX_OUTPUT_CHARACTERS, Completion
from rubric_influence.engines.faults import MOST_WORDS, Fault, Tokens, judge, read_error

BYTES_PER_TOKEN = 3  # of an estimate: rather too many tokens than too few, as English has four bytes a token
CUT = ("length", "max_tokens", "model_length")  # finish reasons where max_tokens ended an answer
FILTERED = ("content_filter", "safety", "refusal", "recitation", "prohibited_content", "sensitive")
BROKEN = ("error", "abort")
REASONING = ("reasoning_content", "reasoning")
STREAM = re.compile(rb"\s*(?:data|event|id|retry)?:")  # how one begins
BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n|\r\r")


class Asked(NamedTuple):
    """What is known of a request when its answer is read."""

    prompt: int  # estimated tokens of the messages
    most: int  # tokens that the answer may have
    sent: Collection[str]  # names of the parameters


def estimate_tokens(size: int) -> int:
    """About as many tokens as a text of `size` bytes in UTF-8 has."""
    return -(-size // BYTES_PER_TOKEN)


def read_answer(content: bytes, asked: Asked) -> Completion | Fault:
    """The completion in the body of an HTTP 200, or why there is none and what that cost."""
    try:
        body = join_stream(content) if STREAM.match(content) else json.loads(content)
    except (ValueError, RecursionError):
        return Fault(f"a response that is no chat completion: {show(content)}", lost=estimate_loss(content, asked))
    choice, message = find_message(body)
    ending = str(choice.get("finish_reason") or "").lower()
    text, others = split_content(message.get("content"))
    written = "".join([text, others, *(split_content(message.get(key))[0] for key in REASONING)])
    said = read_usage(body)
    guess = asked.most if ending in CUT else min(asked.most, estimate_tokens(len(written.encode("utf-8", "replace"))))
    tokens = Tokens(said.prompt or asked.prompt, said.completion or guess)
    lost = tokens if written or any(said) else None
    if error := find_error(body, choice):
        return replace(judge(read_error(error, None, {}), asked.sent, "an error in HTTP 200, as"), lost=lost)
    if ending in BROKEN or not (message or ending in FILTERED):
        return Fault(f"a response without an answer: {show(content)}", lost=lost)
    text = HALF.sub("\N{REPLACEMENT CHARACTER}", text[:MAX_OUTPUT_CHARACTERS])
    estimated = not said.prompt or (not said.completion and bool(written))
    completion = Completion(text, *tokens, ending not in (*CUT, *FILTERED), estimated=estimated)
    refusal = " ".join(find_refusal(choice, message).split())[:MOST_WORDS]
    if refusal or ending in FILTERED:
        failure = ": ".join(filter(None, [ending if ending in FILTERED else "refusal", refusal]))
        return replace(completion, failure=failure, refused="answer")
    return completion


def estimate_loss(content: bytes, asked: Asked) -> Tokens | None:
    """What an answer that is cut short, or cannot be read, has cost; None where the content is none."""
    return Tokens(asked.prompt, min(asked.most, estimate_tokens(len(content)))) if b'"choices"' in content else None


def show(content: bytes) -> str:
    return " ".join(content[:200].decode("utf-8", "replace").split()) or "it is empty"


def find_message(body: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first choice of a body and its message; empty where there is none."""
    choices = body.get("choices") if isinstance(body, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    return choice, message if isinstance(message, dict) else {}


def split_content(content: object) -> tuple[str, str]:
    """The text of a message's content and, where that is a list of parts, what stands in those of other kinds."""
    if isinstance(content, str):
        return content, ""
    parts = content if isinstance(content, list) else [content]
    texts: list[object] = []
    others: list[object] = []
    for part in filter(None, parts):
        is_text = isinstance(part, dict) and part.get("type", "text") in ("text", "output_text")
        texts.append(part["text"] if is_text and "text" in part else part)
        if not isinstance(texts[-1], str):
            others.append(texts.pop())
    return "".join(map(str, texts)), json.dumps(others, ensure_ascii=False) if others else ""


def find_refusal(choice: dict[str, Any], message: dict[str, Any]) -> str:
    """The server's words where it, or the model, refuses to answer; "" where there are none."""
    content, results = message.get("content"), choice.get("content_filter_results")
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    for said in (message.get("refusal"), *(part.get("refusal") for part in parts)):
        if isinstance(said, str) and said.strip():
            return said
    filters = results.items() if isinstance(results, dict) else ()
    return ", ".join(name for name, result in filters if isinstance(result, dict) and result.get("filtered") is True)


def find_error(body: object, choice: dict[str, Any]) -> object:
    """The error in a body of HTTP 200; None where there is none."""
    if choice.get("error"):
        return choice["error"]
    bare = isinstance(body, dict) and "choices" not in body and any(key in body for key in ("message", "detail", "msg"))
    return body if isinstance(body, dict) and (body.get("error") or bare) else None


def read_usage(body: object) -> Tokens:
    """The tokens that a body says were used; 0 for a number that it does not give.

    Some servers count hidden reasoning in the total alone: what is left of it beside the prompt is of the completion.
    """
    usage = body.get("usage") if isinstance(body, dict) else None
    keys = ("prompt_tokens", "completion_tokens", "total_tokens")
    counts = [usage.get(key) if isinstance(usage, dict) else 0 for key in keys]
    prompt, completion, total = (int(n) if isinstance(n, int | float) and 0 < n < 1e12 else 0 for n in counts)
    return Tokens(prompt, max(completion, total - prompt) if prompt and completion else completion)


def join_stream(content: bytes) -> dict[str, Any]:
    """The body that a stream of server-sent events would have been as a whole. Raises ValueError for one cut short."""
    texts: dict[str, list[str]] = {key: [] for key in ("content", "refusal", *REASONING)}
    choice: dict[str, Any] = {}
    body: dict[str, Any] = {}
    ended = False
    for event in BLANK_LINE.split(content):
        data = b"\n".join(line[5:].strip() for line in event.splitlines() if line.startswith(b"data:"))
        if not data or data == b"[DONE]":
            ended |= bool(data)
            continue
        chunk = json.loads(data)
        if not isinstance(chunk, dict):
            raise ValueError("an event that is no object")
        body |= {key: chunk[key] for key in ("usage", "error") if chunk.get(key)}
        parts = chunk.get("choices")
        for part in parts if isinstance(parts, list) else ():
            if not isinstance(part, dict) or part.get("index"):
                continue
            delta = part.get("delta")
            for key, pieces in texts.items():
                text, others = split_content(delta.get(key) if isinstance(delta, dict) else None)
                pieces.append(text)
                texts["reasoning"].append(others)
            choice |= {key: part[key] for key in ("finish_reason", "error", "content_filter_results") if part.get(key)}
            body["choices"] = [choice]
    choice["message"] = {key: "".join(pieces) for key, pieces in texts.items()}
    if not (ended or "finish_reason" in choice or "error" in body):
        raise ValueError("a stream without its end")
    return body


def read_refusal(content: bytes, headers: Mapping[str, str], status: int, asked: Asked) -> Fault:
    """What a response of status 300 or above means."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = content.decode("utf-8", "replace")
    return judge(read_error(body, status, headers), asked.sent)

"""Servers on 127.0.0.1 that want to be asked, and answer, as kinds of servers that people rent do.

Bodies are as the servers' documentation or public reports of them have them, shortened. `python tests/server_kinds.py`
asks each of them one question and writes what was sent and answered to docs/servers.md.
"""

import asyncio
import json
import re
import textwrap
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from faulty_server import FaultyServer
from hypothesis import strategies as st

from rubric_influence.core.checks import RunStopped
from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.engines.base import Completion, Sampling
from rubric_influence.engines.endpoint import EndpointEngine
from rubric_influence.engines.ledger import Ledger
from rubric_influence.synthesis.parsing import RubricOutput

PAGE = Path(__file__).parents[1] / "docs/servers.md"
TEXT = '{"rubric": "ask for the dose"}'
USAGE = {"prompt_tokens": 10, "completion_tokens": 5}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
)  # whatever a server may send


@dataclass(frozen=True)
class Reply:
    body: object  # sent as JSON; a text is sent as it is
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """A kind of server. `reply` gets a request's body and how many came before it."""

    name: str
    reply: Callable[[dict, int], Reply]
    endpoint: dict = field(default_factory=dict)  # fields of the profile's section
    sampling: dict = field(default_factory=dict)


class KindServer(FaultyServer):
    def __init__(self, kind: Kind):
        super().__init__()
        self.kind, self.replies = kind, []

    async def respond(self, body, writer):
        reply = self.kind.reply(body, len(self.replies))
        self.replies.append(reply)
        await asyncio.sleep(self.delay)
        content = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
        extra = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
        await self.write(writer, reply.status, content.encode(), extra)
        return True


@dataclass(frozen=True)
class Exchange:
    """One question to a server of a kind: what was sent and answered, and what came of it."""

    sent: list[dict]
    replies: list[Reply]
    ledger: Ledger
    completion: Completion | None
    stopped: str  # the message of the error that ended the call
    seconds: float

    @property
    def notes(self) -> list[str]:
        return [note for row in self.ledger.effort.values() for note in row.notes]


def ask_once(kind: Kind, **endpoint) -> Exchange:
    ledger, completion, stopped, started = Ledger(), None, "", time.monotonic()
    with KindServer(kind) as server, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = dict(base_url=server.url, attempts=2, backoff=0.01, timeout=5.0) | kind.endpoint | endpoint
        engine = EndpointEngine(ModelSpec(path="teacher", engine="openai", endpoint=options), None, ledger, "rubrics")
        try:
            conversation = [{"role": "user", "content": "document 0 rubric :"}]
            (completion,) = engine.generate([conversation], Sampling(**dict(seed=3, max_tokens=64) | kind.sampling))
        except RunStopped as error:
            stopped = str(error).replace(server.url, "https://server.example/v1")
    return Exchange(server.bodies, server.replies, ledger, completion, stopped, time.monotonic() - started)


def complete(content: object = TEXT, ending: object = "stop", usage: object = USAGE, **message) -> Reply:
    choice = {"message": {"role": "assistant", "content": content} | message, "finish_reason": ending}
    return Reply({"choices": [choice], "usage": usage})


def refuse(message: object, status: int = 400, headers: dict[str, str] | None = None, **more) -> Reply:
    return Reply({"error": {"message": message} | more}, status, headers or {})


def stream(
    *deltas: dict, usage: object = None, ending: str | None = "stop", begin: str = "", end: str = "[DONE]"
) -> str:
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": ending}]})
    chunks += [{"choices": [], "usage": usage}] if usage else []
    events = [json.dumps(chunk) for chunk in chunks] + [end]
    return begin + "".join(f"data: {event}\n\n" for event in events if event)


def want_completion_tokens(body: dict, before: int) -> Reply:
    invalid = {"type": "invalid_request_error", "code": "unsupported_parameter"}
    for name, more in (("max_tokens", " Use 'max_completion_tokens' instead."), ("top_p", "")):
        if name in body:
            said = f"Unsupported parameter: '{name}' is not supported with this model.{more}"
            return refuse(said, param=name, **invalid)
    return complete()


def refuse_seed(body: dict, before: int) -> Reply:
    if "seed" in body:
        return refuse("Unrecognized request argument supplied: seed", type="invalid_request_error", param=None)
    return complete()


def refuse_extras(body: dict, before: int) -> Reply:
    if "seed" in body:
        extra = {"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}
        return Reply({"object": "error", "message": {"detail": [extra]}, "type": "invalid_request_error"}, 422)
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "The text names a dose ..."}]}
    return complete([thinking, {"type": "text", "text": TEXT}])


def refuse_both(body: dict, before: int) -> Reply:
    if "temperature" in body and "top_p" in body:
        said = "`temperature` and `top_p` cannot both be specified for this model. Please use only one."
        return refuse(said, type="invalid_request_error")
    return complete()


def want_streams(body: dict, before: int) -> Reply:
    if not body.get("stream"):
        said = "This model only support stream mode, please enable the stream parameter to access the model. "
        return refuse(said, type="invalid_request_error", code="invalid_parameter_error")
    usage = USAGE if body.get("stream_options") else None
    thought = {"content": None, "reasoning_content": "The text names a dose ..."}
    return Reply(stream(thought, {"content": TEXT[:9]}, {"content": TEXT[9:]}, usage=usage))


def stream_unasked(body: dict, before: int) -> Reply:
    return Reply(stream({"role": "assistant", "content": TEXT}, begin=": PROCESSING\n\n"))


def refuse_stream_options(body: dict, before: int) -> Reply:
    if "stream_options" in body:
        return refuse([{"loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted"}], 422)
    return Reply(stream({"content": TEXT}))


def filter_prompt(body: dict, before: int) -> Reply:
    said = "The response was filtered due to the prompt triggering Azure OpenAI's content management policy."
    inner = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"self_harm": {"filtered": True}}}
    return refuse(said, type=None, param="prompt", code="content_filter", status=400, innererror=inner)


def filter_answer(body: dict, before: int) -> Reply:
    results = {"hate": {"filtered": False, "severity": "safe"}, "self_harm": {"filtered": True, "severity": "high"}}
    choice = {"finish_reason": "content_filter", "index": 0, "message": {}, "content_filter_results": results}
    return Reply({"choices": [choice], "usage": USAGE})


def flag_prompt(body: dict, before: int) -> Reply:
    said = 'teacher requires moderation on Example. Your input was flagged for "self-harm"'
    return refuse(said, 403, code=403, metadata={"reasons": ["self-harm"], "flagged_input": "document 0"})


def say_too_long(body: dict, before: int) -> Reply:
    said = (
        "This model's maximum context length is 4096 tokens. However, you requested 5064 tokens (5000 in the messages)."
    )
    return Reply({"object": "error", "message": said, "type": "BadRequestError", "param": None, "code": 400}, 400)


def err_within_200(body: dict, before: int) -> Reply:
    if before:
        return complete()
    reset = str(int((time.time() + 0.6) * 1000))
    headers = {"X-RateLimit-Limit": "20", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": reset}
    return refuse("Rate limit exceeded: free-models-per-min", 200, code=429, metadata={"headers": headers})


def break_off(body: dict, before: int) -> Reply:
    if before:
        return complete()
    choice = {"message": {"content": TEXT[:9]}, "finish_reason": "error"}
    error = {"code": 502, "message": "Upstream error", "metadata": {"raw": "CUDA out of memory", "provider_name": "X"}}
    return Reply({"choices": [choice | {"error": error}], "usage": USAGE})


def limit_rate(body: dict, before: int) -> Reply:
    if before:
        return complete()
    said = "Rate limit reached for requests"
    return refuse(
        said, 429, {"retry-after-ms": "400", "retry-after": "60"}, type="requests", code="rate_limit_exceeded"
    )


def limit_tokens(body: dict, before: int) -> Reply:
    if before:
        return complete()
    headers = {"x-ratelimit-remaining-requests": "900", "x-ratelimit-reset-requests": "23h59m0s"}
    headers |= {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "400ms"}
    return refuse("Rate limit reached for tokens", 429, headers, type="tokens", code="rate_limit_exceeded")


def want_credit(body: dict, before: int) -> Reply:
    said = "You exceeded your current quota, please check your plan and billing details."
    return refuse(said, 429, type="insufficient_quota", code="insufficient_quota")


def want_balance(body: dict, before: int) -> Reply:
    said = "Your credit balance is too low to access the API. Please go to Plans & Billing."
    return refuse(said, type="invalid_request_error")


def refuse_schema(body: dict, before: int) -> Reply:
    return refuse("This response_format type is unavailable now", type="invalid_request_error")


def refuse_top_p(body: dict, before: int) -> Reply:
    if "top_p" in body:
        return refuse("Unsupported parameter: 'top_p' is not supported with this model.", code="unsupported_parameter")
    return complete()


KINDS = [
    Kind("plain, as vLLM", lambda body, before: complete()),
    Kind("wants max_completion_tokens, takes no top_p (OpenAI's reasoning models)", want_completion_tokens),
    Kind("takes no seed (OpenAI, formerly)", refuse_seed),
    Kind("takes no seed and says so by pydantic; content in parts with reasoning (Mistral)", refuse_extras),
    Kind("the same, seed renamed in the profile", refuse_extras, endpoint={"rename": {"seed": "random_seed"}}),
    Kind("takes top_p or temperature, not both (Anthropic)", refuse_both),
    Kind("takes no top_p, and the profile's is 0.9", refuse_top_p, sampling={"top_p": 0.9}),
    Kind("the same, top_p left out in the profile", refuse_top_p, {"omit": ["top_p"]}, {"top_p": 0.9}),
    Kind("takes no schema (DeepSeek)", refuse_schema, sampling={"schema": RubricOutput}),
    Kind(
        "content in parts",
        lambda body, before: complete([{"type": "text", "text": text} for text in (TEXT[:9], TEXT[9:])]),
    ),
    Kind(
        "reasoning beside the content (DeepSeek, vLLM)",
        lambda body, before: complete(reasoning_content='A draft: {"rubric": "ask for the name"}'),
    ),
    Kind("usage null", lambda body, before: complete(usage=None)),
    Kind("streams only (DashScope)", want_streams),
    Kind("streams whatever it is asked, without usage", stream_unasked),
    Kind("streams, takes no stream_options", refuse_stream_options, endpoint={"stream": True}),
    Kind("filters the prompt (Azure)", filter_prompt),
    Kind("filters the answer (Azure)", filter_answer),
    Kind("flags the prompt (OpenRouter)", flag_prompt),
    Kind(
        "refuses to answer (OpenAI)", lambda body, before: complete(None, refusal="I'm sorry, I can't help with that.")
    ),
    Kind("prompt too long (vLLM)", say_too_long),
    Kind("cuts the answer at max_tokens", lambda body, before: complete('{"rubric": "ask', "length")),
    Kind("error within HTTP 200, with the limit's reset (OpenRouter)", err_within_200),
    Kind("error within a choice (OpenRouter)", break_off),
    Kind("limit of requests, retry-after-ms", limit_rate),
    Kind("limit of tokens, x-ratelimit-reset", limit_tokens),
    Kind("no credit, HTTP 429 (OpenAI)", want_credit),
    Kind("no credit, HTTP 400 (Anthropic)", want_balance),
]

HEAD = """# Servers tried

What each kind of server was sent and what it answered, when it was asked one question: `tests/server_kinds.py` has the
servers, `tests/engines/test_servers.py` holds this page and what came of each to them. `->` is a request without its
model and messages, `<-` an answer. [Engines](engines.md) says what is done with them.
"""


def describe(kind: Kind, exchange: Exchange) -> str:
    """A section of the page."""
    lines = []
    for body, reply in zip(exchange.sent, exchange.replies, strict=True):
        sent = {name: value for name, value in body.items() if name not in ("model", "messages")}
        answer = reply.body.strip() if isinstance(reply.body, str) else json.dumps(reply.body)
        said = "".join(f", {name}: {value}" for name, value in reply.headers.items())
        lines += [
            f"-> {json.dumps(sent)}",
            f"<- {reply.status}{said}",
            *(f"   {line}" for line in answer.split("\n") if line),
        ]
    lines += [f"note: {note}" for note in exchange.notes]
    if completion := exchange.completion:
        guess = " (estimated)" if completion.estimated else ""
        cut = "" if completion.finished or completion.failure else ", cut by max_tokens"
        lines.append(f"failure: {completion.failure}" if completion.failure else f"text: {completion.text}{cut}")
        lines.append(f"tokens: {completion.prompt_tokens} + {completion.completion_tokens}{guess}")
    if exchange.stopped:
        lines.append(f"the run stops: {exchange.stopped}")
    lines = [re.sub(r"\b1\d{12}\b", "1790000000000", line) for line in lines]  # a time
    wrapped = [textwrap.fill(line, 112, subsequent_indent="      ", break_on_hyphens=False) for line in lines]
    return f"## {kind.name[0].upper()}{kind.name[1:]}\n\n```text\n" + "\n".join(wrapped) + "\n```\n"


def write_page(exchanges: dict[str, Exchange]) -> str:
    return "\n".join([HEAD, *(describe(kind, exchanges[kind.name]) for kind in KINDS)])


if __name__ == "__main__":
    PAGE.write_text(write_page({kind.name: ask_once(kind) for kind in KINDS}), encoding="utf-8")

"""Why a try gave no answer: the server's own words, and whether that holds for this try, this request or all of them.

Servers word their refusals in many ways. What is known here is judged at once; of other refusals (`Reach.UNCLEAR`) the
caller learns by whether further requests are answered.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum
from http import HTTPStatus
from typing import Any, NamedTuple

from rubric_influence.engines.throttle import read_retry_after

MOST_WORDS = 300  # characters of a server's message
CONGESTION = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE, 529}
PASSING = CONGESTION | {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT}  # and every status of 500 or above
GENERAL = {HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.GONE, 407}
VAGUE = ("error", "invalid_request_error", "BadRequestError")  # codes
ADD_CREDIT = "Add credit to the account or raise its limit"

# What is searched is a refusal's message, code, type and parameter, in small letters.
NO_CREDIT = re.compile(
    r"insufficient[_ ](?:quota|balance|credits?|funds)|credit balance|balance is (?:insufficient|too low|not enough)|"
    r"billing[_ ]hard[_ ]limit|billing_not_active|exceeded_current_quota|(?:out of|more|no) credits|arrear|overdue"
)
POLICY = re.compile(
    r"content[_ ]?(?:management|policy|filter|moderation|safety)|responsible_?ai|policy[_ ]?violation|usage polic|"
    r"violat\w* .{0,40}polic|\bflagged|inappropriate|data_?inspection|\bsafety\b|\bunsafe\b|(?<!case[- ])\bsensitive|"
    r"\bharmful|\bmoderation|prohibited_content|invalid_prompt"
)
OF_THE_INPUT = re.compile(r"\b(?:input|prompt|request|content|messages?|text)\b")
OF_THE_ACCOUNT = re.compile(r"\baccount\b|\borgani[sz]ation\b")
TOO_LONG = re.compile(
    r"context[_ ](?:length|window)|too (?:long|large|many tokens)|above_max_length|reduce the length|longer than|"
    r"exceed\w* .{0,60}(?:tokens|length|context)|(?:tokens|length) .{0,40}exceed|at least 1, got -"
)
OUTPUT_LIMIT = re.compile(
    r"^(?!.*(?:context|input|prompt|message|at least 1, got -)).*\bmax_(?:\w+_)?tokens\b", re.DOTALL
)
REFUSES = re.compile(
    r"unsupported|not (?:be )?support|unknown|unrecogni[sz]ed|unexpected|unavailable|extraneous|not permitted|"
    r"not allowed|extra[_ ](?:inputs?|fields?|forbid)|not a valid|cannot both|cannot be (?:used|set|specified)|"
    r"deprecated|only the default|cannot find field|does not (?:accept|take|exist)|'? instead"
)
STREAMS_ONLY = re.compile(
    r"\bonly supports? (?:the )?stream|non-streaming|stream=false|without stream(?:ing)? is not|"
    r"stream\w* (?:mode )?(?:is |are )?(?:required|mandatory)|"
    r"stream\W{0,3} (?:must|should|has to|needs to) be (?:set to )?\W?true"
)
OF_ALL = re.compile(
    r"model_not_found|\bmodel\b.{0,80}(?:not found|not exist|no longer|not available|not supported|decommissioned)|"
    r"no such model|unknown model|api[_ ]key|(?:unknown|unsupported)_(?:parameter|value)"
)
IDS = re.compile(r"\breq(?:uest)?_\w+|\b(?=[\w-]*\d)[0-9a-zA-Z-]{20,}\b")  # else no two messages would be the same


class Reach(Enum):
    """What a fault holds for."""

    TRY = "this try: another one may give an answer"
    REQUEST = "this request: others may be answered"
    UNCLEAR = "this request, or all of them"
    ENDPOINT = "all requests"


class Tokens(NamedTuple):
    prompt: int
    completion: int


@dataclass(frozen=True)
class Fault:
    """A try that gave no answer."""

    reason: str
    reach: Reach = Reach.TRY
    lasting: bool = False  # the server judged what the request holds, and would again
    congestion: bool = False  # the server has too much to do
    wait: float = 0.0  # seconds that the server asks for
    unwanted: tuple[str, ...] = ()  # parameters that the server does not take; "stream" where it wants that one
    fix: str = ""  # what the user can do, where it is known
    lost: Tokens | None = None  # what the try cost, where the server answered


@dataclass(frozen=True)
class ServerError:
    """A server's refusal, from whatever shape it has, in its own words; `searched` are its codes and message."""

    status: int
    code: str  # "" where it has none, or one that says no more than the status
    words: str
    searched: str
    headers: Mapping[str, str] = field(default_factory=dict)  # of limits


def read_error(body: object, status: int | None, headers: Mapping[str, str]) -> ServerError:
    """The refusal in a body (decoded JSON or text). Without a status (HTTP 200), the body's code or words give it."""
    if isinstance(body, list) and body:
        body = body[0]
    outer = body if isinstance(body, dict) else {}
    error = outer.get("error") or body
    fields: dict[str, Any] = outer | (error if isinstance(error, dict) else {})
    metadata = fields["metadata"] if isinstance(fields.get("metadata"), dict) else {}
    inner = fields["innererror"] if isinstance(fields.get("innererror"), dict) else {}
    told = flatten(error if isinstance(error, dict) else body)
    if isinstance(raw := metadata.get("raw"), str):  # a gateway's: the words of the server behind it
        told = f"{told}: {raw}"
    codes = [fields.get("code"), fields.get("type"), fields.get("param"), inner.get("code"), fields.get("status")]
    found = [str(code) for code in codes if code]
    searched = " ".join([*found, told]).lower()
    words = IDS.sub("...", " ".join(told.split())[:MOST_WORDS])
    status = status or guess_status(found, searched)
    code = next((code for code in found[:2] if code not in (str(status), *VAGUE) and code not in words), "")
    nested = metadata["headers"] if isinstance(metadata.get("headers"), dict) else {}
    waits = {**headers, **{str(name): str(value) for name, value in nested.items()}}
    return ServerError(status, code, words, searched, waits)


def flatten(value: object, depth: int = 4) -> str:
    """The message in a refusal: text, or a list or object that holds it at most `depth` levels down."""
    if isinstance(value, str) or not depth:
        return value if isinstance(value, str) else ""
    if isinstance(value, list):
        return "; ".join(filter(None, (flatten(item, depth - 1) for item in value[:5])))
    if not isinstance(value, dict):
        return ""
    if isinstance(value.get("loc"), list):  # pydantic's, of servers made with FastAPI
        return f"{'.'.join(map(str, value['loc']))}: {flatten(value.get('msg'), depth - 1)}"
    found = (flatten(value.get(key), depth - 1) for key in ("message", "detail", "msg", "error", "error_msg"))
    return next(filter(None, found), "")


def guess_status(codes: Collection[str], searched: str) -> int:
    """The status that a refusal within HTTP 200 should have had."""
    for code in codes:
        if code.isdecimal() and 300 <= int(code) < 600:
            return int(code)
    kind = " ".join(codes).lower()
    if NO_CREDIT.search(searched):
        return HTTPStatus.PAYMENT_REQUIRED
    if re.search(r"rate_?limit|too_?many|throttl|overload|busy|exhausted", kind):
        return HTTPStatus.TOO_MANY_REQUESTS
    if re.search(r"auth|api_?key|permission|forbidden", kind):
        return HTTPStatus.UNAUTHORIZED
    if re.search(r"invalid|bad_?request|unsupported|unknown", kind) or POLICY.search(searched):
        return HTTPStatus.BAD_REQUEST
    return HTTPStatus.INTERNAL_SERVER_ERROR


def judge(error: ServerError, sent: Collection[str], within: str = "HTTP") -> Fault:
    """What a refusal means for a request with the parameters `sent`. `within` says where it was found."""
    status, searched = error.status, error.searched
    reason = f"{within} {status}" + (f" ({error.code})" if error.code else "")
    reason += f": {error.words}" if error.words else ""
    if NO_CREDIT.search(searched) or status == HTTPStatus.PAYMENT_REQUIRED:
        return Fault(reason, Reach.ENDPOINT, fix=ADD_CREDIT)
    if status in PASSING or status >= 500:
        wait = read_retry_after(error.headers, error.words)
        return Fault(reason, congestion=status in CONGESTION, wait=wait)
    if status < 400 or status in GENERAL:
        return Fault(reason, Reach.ENDPOINT)
    if "stream" not in sent and STREAMS_ONLY.search(searched):
        return Fault(reason, Reach.ENDPOINT, unwanted=("stream",))
    named = tuple(name for name in sent if re.search(rf"(?<!\w){re.escape(name.lower())}(?!\w)", searched))
    if named and REFUSES.search(searched):
        return Fault(reason, Reach.ENDPOINT, unwanted=named)
    of_the_account = OF_THE_ACCOUNT.search(searched)
    of_the_input = status != HTTPStatus.FORBIDDEN or OF_THE_INPUT.search(searched)
    if POLICY.search(searched) and of_the_input and not of_the_account:
        return Fault(reason, Reach.REQUEST, lasting=True)
    if OUTPUT_LIMIT.search(searched):
        fix = "Lower synthesis.max_rubric_tokens and synthesis.max_pair_tokens to what the model can write"
        return Fault(reason, Reach.ENDPOINT, fix=fix)
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or TOO_LONG.search(searched):
        return Fault(reason, Reach.REQUEST)
    general = status == HTTPStatus.FORBIDDEN or of_the_account or OF_ALL.search(searched)
    return Fault(reason, Reach.ENDPOINT if general else Reach.UNCLEAR)

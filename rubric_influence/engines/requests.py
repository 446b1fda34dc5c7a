"""The requests for a call's conversations: what is asked, under which key its answer is kept, and its cost at most."""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from rubric_influence.core.model_sections import Endpoint, ModelSpec
from rubric_influence.core.records import content_id
from rubric_influence.engines.base import Sampling
from rubric_influence.engines.ledger import MILLION
from rubric_influence.engines.responses import estimate_tokens
from rubric_influence.engines.shapes import identify_body
from rubric_influence.models.chat import Conversation


class Request(NamedTuple):
    place: int  # of its conversation in the call
    key: str  # a hash of everything that shapes the answer
    body: dict[str, Any]
    prompt: int  # estimated tokens of the messages
    tokens: int  # the most that it can use: no token of a prompt is less than a byte
    usd: float  # the most that it can cost


def price(endpoint: Endpoint) -> tuple[float, float]:
    """USD for a million prompt tokens, and for a million completion tokens."""
    return endpoint.usd_per_million_prompt_tokens, endpoint.usd_per_million_completion_tokens


def write_requests(
    spec: ModelSpec, endpoint: Endpoint, conversations: Sequence[Conversation], sampling: Sampling
) -> Iterator[Request]:
    """A request for each conversation, in order."""
    shape: dict[str, Any] = dict(temperature=sampling.temperature, top_p=sampling.top_p)
    shape |= {"max_tokens": sampling.max_tokens, **endpoint.extra_body}
    if schema := sampling.schema:
        form = {"name": schema.__name__, "schema": schema.model_json_schema(), "strict": True}
        shape["response_format"] = {"type": "json_schema", "json_schema": form}
    prices, seeds = price(endpoint), draw_seeds(conversations, sampling.seed)
    for place, (conversation, seed) in enumerate(zip(conversations, seeds, strict=True)):
        body = {"model": spec.path, "messages": conversation, "seed": seed, **shape}
        identity = json.dumps(identify_body(body, endpoint), sort_keys=True)
        size = sum(len(message["content"].encode("utf-8", "replace")) for message in conversation)
        estimate, most = estimate_tokens(size) + 4 * len(conversation), size + 16 * len(conversation)
        usd = (most * prices[0] + body["max_tokens"] * prices[1]) / MILLION
        key = content_id(endpoint.base_url, spec.revision, identity)
        yield Request(place, key, body, estimate, most + body["max_tokens"], usd)


def draw_seeds(conversations: Sequence[Conversation], seed: int) -> list[int]:
    """A 31-bit seed for each conversation; equal conversations have different ones."""
    seen: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)
    states = (np.random.SeedSequence([seed, next(seen[text])]) for text in map(json.dumps, conversations))
    return [int(state.generate_state(1)[0] >> 1) for state in states]

"""Any OpenAI-compatible endpoint (`vllm serve`, hosted APIs) as a text engine.

One call sends many requests side by side, as many as the server bears (throttle.py). A fault that may pass is tried
again, one that cannot pass stops the call at once (responses.py). Every answer is written to the journal as soon as it
arrives, under a key of everything that shapes it, and is never asked for again.
"""

import asyncio
import itertools
import json
import os
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import openai
from anyio.from_thread import start_blocking_portal
from tqdm import tqdm

from rubric_influence.core.checks import RunStopped
from rubric_influence.core.journal import Journal
from rubric_influence.core.model_sections import LOOPBACK, ModelSpec
from rubric_influence.core.records import content_id
from rubric_influence.engines.base import Completion, Sampling, name_model
from rubric_influence.engines.ledger import MILLION, Ledger
from rubric_influence.engines.responses import Fault, read_answer, read_refusal
from rubric_influence.engines.throttle import RequestWindow, choose_backoff
from rubric_influence.models.chat import Conversation

MAX_BODY_BYTES = 8 << 20  # of a response; a larger one is no answer
RESERVE_BYTES = 4 << 20  # of the disk, for the answers that are under way when it fills up
MOST_FAILURES_IN_A_ROW = 20  # requests given up without one answer in between: the server is gone
HOW_TO_GO_ON = (
    "Check the server, the endpoint's base_url and key, the model's name and the sampling parameters; what was "
    "answered is kept: run the same command to go on"
)


class EndpointError(RunStopped):
    """The endpoint cannot be used as it is; the answers that came are kept."""


class Request(NamedTuple):
    place: int  # of its conversation in the call
    key: str  # a hash of everything that shapes the answer
    body: dict[str, Any]
    tokens: int  # the most that it can use: no token of a prompt is less than a byte
    usd: float  # the most that it can cost


class EndpointEngine:
    """Answers of a model behind an endpoint, sampled by the server with a seed for each request.

    `journal` keeps the answers (None: nothing is kept), `ledger` counts them as `what` and holds the budget. The seed
    of a request depends on the call's seed and on how often the same conversation comes before it in the call, so the
    answers do not depend on how requests are grouped. The key is read from the environment when requests are sent.
    """

    independent = True

    def __init__(self, spec: ModelSpec, journal: Journal | None = None, ledger: Ledger | None = None, what: str = ""):
        assert spec.endpoint is not None  # ModelSpec sees to it, for the engine openai
        self.spec, self.endpoint, self.name = spec, spec.endpoint, name_model(spec)
        self.journal, self.ledger, self.what = journal, ledger or Ledger(), what
        self.prices = (self.endpoint.usd_per_million_prompt_tokens, self.endpoint.usd_per_million_completion_tokens)
        self.read_key()  # a missing key should stop a run before its first stage is paid for

    def generate(self, conversations: Sequence[Conversation], sampling: Sampling) -> list[Completion]:
        """One completion for each conversation, in order; those that failed have a `failure` and no text.

        Raises EndpointError where the endpoint refuses what it is asked or is gone, BudgetReached where the ledger has
        no room and OSError where the disk has none; the answers up to there are then in the journal.
        """
        shape: dict[str, Any] = dict(temperature=sampling.temperature, top_p=sampling.top_p)
        shape |= {"max_tokens": sampling.max_tokens, **self.endpoint.extra_body}
        if schema := sampling.schema:
            form = {"name": schema.__name__, "schema": schema.model_json_schema(), "strict": True}
            shape["response_format"] = {"type": "json_schema", "json_schema": form}
        effort = self.ledger.track(self.what, self.name)
        completions: dict[int, Completion] = {}
        missing = []
        seeds = draw_seeds(conversations, sampling.seed)
        for place, (conversation, seed) in enumerate(zip(conversations, seeds, strict=True)):
            body = {"model": self.spec.path, "messages": conversation, "seed": seed, **shape}
            key = content_id(self.endpoint.base_url, self.spec.revision, json.dumps(body, sort_keys=True))
            if self.journal is not None and key in self.journal:
                completions[place] = self.count(Completion(**self.journal[key]))
                effort.kept += 1
            else:
                prompt = sum(len(m["content"].encode("utf-8", "replace")) + 16 for m in body["messages"])
                usd = (prompt * self.prices[0] + body["max_tokens"] * self.prices[1]) / MILLION
                missing.append(Request(place, key, body, prompt + body["max_tokens"], usd))
        if missing:
            started = time.monotonic()
            try:
                if self.journal is not None:
                    self.journal.hold(RESERVE_BYTES)
                with start_blocking_portal() as portal:  # a notebook's own thread has a loop already
                    completions |= portal.call(self.send, missing)
            finally:
                if self.journal is not None:
                    self.journal.let_go()
                effort.seconds += time.monotonic() - started
        return [completions[place] for place in range(len(conversations))]

    async def send(self, requests: Sequence[Request]) -> dict[int, Completion]:
        """The completions by place. Raises what stopped the call, once all that was under way is settled."""
        key, endpoint = self.read_key(), self.endpoint
        # No redirect may carry documents, and perhaps the key, to another server; no proxy stands before this machine.
        remote = urlsplit(endpoint.base_url).hostname not in LOOPBACK
        http = openai.DefaultAsyncHttpxClient(follow_redirects=False, trust_env=remote)
        async with openai.AsyncOpenAI(
            base_url=endpoint.base_url, api_key=key or "none", timeout=endpoint.timeout, max_retries=0, http_client=http
        ) as client:
            with tqdm(total=len(requests), desc=self.what, unit="answer", leave=False) as bar:
                call = Call(self, client, key, bar)
                try:
                    await call.send_all(requests)
                finally:
                    if call.under_way:
                        await asyncio.wait(call.under_way)
        if call.stop.done():
            raise call.stop.result()
        return call.completions

    def count(self, completion: Completion) -> Completion:
        """The completion, once it is in the ledger."""
        self.ledger.count(self.what, self.name, [completion], self.prices)
        return completion

    def read_key(self) -> str:
        """The endpoint's key; "" where it wants none. Raises ValueError where its variable is not set."""
        name = self.endpoint.api_key_env
        if name and not os.environ.get(name):
            raise ValueError(f"the key of {self.name} is read from the environment variable {name}, which is not set")
        return os.environ[name] if name else ""


class Call:
    """The requests of one call while they are under way. `stop` gets the first error that is to end the call."""

    def __init__(self, engine: EndpointEngine, client: openai.AsyncOpenAI, key: str, bar: tqdm):
        self.engine, self.client, self.key, self.bar = engine, client, key, bar
        self.endpoint, self.effort = engine.endpoint, engine.ledger.track(engine.what, engine.name)
        self.completions: dict[int, Completion] = {}  # by place
        self.under_way: dict[asyncio.Task[None], Request] = {}
        self.window, self.rng = RequestWindow(self.endpoint.concurrency), random.Random()
        self.stop: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self.failures_in_a_row = 0

    async def send_all(self, requests: Sequence[Request]) -> None:
        """Begin one request after another, each when the budget has room for it, until the call is stopped."""
        # More than the window has places for: requests that wait before their next try leave their places to others.
        begun = asyncio.Semaphore(2 * self.window.most)

        def finish(task: asyncio.Task[None]) -> None:
            del self.under_way[task]
            begun.release()
            if not task.cancelled() and (error := task.exception()):  # an error in this module is not to be swallowed
                self.halt(error)

        for request in requests:
            await begun.acquire()
            while not self.has_room(request):
                if not self.under_way:
                    self.halt(self.engine.ledger.refuse())
                    break
                await asyncio.wait(self.under_way, return_when=asyncio.FIRST_COMPLETED)
            if self.stop.done():
                return
            task = asyncio.create_task(self.answer(request))
            self.under_way[task] = request
            task.add_done_callback(finish)

    def has_room(self, request: Request) -> bool:
        """Whether the budget covers the request and all that are under way, each at its most."""
        asked = [request, *self.under_way.values()]
        return self.engine.ledger.has_room(sum(r.tokens for r in asked), sum(r.usd for r in asked))

    async def answer(self, request: Request) -> None:
        """Ask until there is an answer, the attempts are used up or the call is stopped."""
        for attempt in range(self.endpoint.attempts):
            async with self.window as sent:
                if self.stop.done():
                    return
                self.effort.sent += 1
                self.effort.retries += attempt > 0
                outcome = await self.ask(request.body)
            if isinstance(outcome, Completion):
                self.window.report_success()
                return self.keep(request, outcome)
            if outcome.congestion:
                self.window.report_congestion(sent)
            if outcome.passing and attempt + 1 < self.endpoint.attempts:
                pause = max(outcome.wait, choose_backoff(attempt, self.endpoint.backoff, self.rng))
                await asyncio.wait([self.stop], timeout=pause)
                continue
            if outcome.passing:
                failed = Completion("", 0, 0, False, f"{outcome.reason}, {self.endpoint.attempts} times")
                self.completions[request.place] = self.engine.count(failed)
                self.failures_in_a_row += 1
            if not outcome.passing or self.failures_in_a_row >= MOST_FAILURES_IN_A_ROW:
                where = f"{self.engine.name} at {self.endpoint.base_url}"
                self.halt(EndpointError(f"{where}: {outcome.reason}. {HOW_TO_GO_ON}"))
            return

    def halt(self, error: BaseException) -> None:
        """Let no further request be sent; the call raises the first error that it is halted with."""
        if not self.stop.done():
            self.stop.set_result(error)

    def keep(self, request: Request, completion: Completion) -> None:
        """Write an answer to the journal and count it. A disk that is full stops the call."""
        self.failures_in_a_row = 0
        if self.engine.journal is not None:
            try:
                self.engine.journal.add(request.key, asdict(completion))
            except OSError as error:
                return self.halt(error)
            if self.engine.journal.full:
                self.halt(self.engine.journal.full)
        self.completions[request.place] = self.engine.count(completion)
        self.bar.update()

    async def ask(self, body: dict[str, Any]) -> Completion | Fault:
        """The answer or the fault that one try gives."""
        rest, content = dict(body), bytearray()
        create = self.client.chat.completions.with_streaming_response.create
        asked = create(messages=rest.pop("messages"), model=rest.pop("model"), extra_body=rest)
        try:
            async with asyncio.timeout(self.endpoint.timeout), asked as response:
                async for part in response.iter_bytes():
                    content += part
                    if len(content) > MAX_BODY_BYTES:
                        return Fault(f"a response of over {MAX_BODY_BYTES} bytes")
        except (TimeoutError, openai.APITimeoutError):
            return Fault(f"no answer in {self.endpoint.timeout:g} s", congestion=True)
        except openai.APIStatusError as error:
            return read_refusal(error, self.key)
        except openai.APIConnectionError as error:
            return Fault(f"the connection failed ({type(error.__cause__ or error).__name__})")
        except openai.OpenAIError as error:
            return Fault(f"no answer ({type(error).__name__})")
        except Exception as error:  # of the HTTP library, while the body is read: cut off, wrongly encoded
            return Fault(f"the response broke off ({type(error).__name__})")
        limits = self.engine.ledger.limit_usd, self.engine.ledger.limit_tokens
        return read_answer(bytes(content), needs_usage=limits != (None, None))


def draw_seeds(conversations: Sequence[Conversation], seed: int) -> list[int]:
    """A 31-bit seed for each conversation; equal conversations have different ones."""
    seen: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)
    states = (np.random.SeedSequence([seed, next(seen[text])]) for text in map(json.dumps, conversations))
    return [int(state.generate_state(1)[0] >> 1) for state in states]

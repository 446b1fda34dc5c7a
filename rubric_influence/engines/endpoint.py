"""Any OpenAI-compatible endpoint (`vllm serve`, hosted APIs) as a text engine.

From outside it is one call; inside, requests go out side by side, as many as the server bears (throttle.py). What may
pass (429, 5xx, a dropped connection, a timeout, a body that is no answer) is tried again, and in the end becomes a
failed completion with its reason. What will not pass (a wrong key, model or parameter) stops the call at once. Either
way every answer is in the journal as soon as it arrives, under a key of everything that shapes it, and is never asked
for again.
"""

import asyncio
import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import asdict
from urllib.parse import urlsplit

import numpy as np
import openai
from anyio.from_thread import start_blocking_portal
from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from tqdm import tqdm

from rubric_influence.core.checks import RunStopped
from rubric_influence.core.config import LOOPBACK, ModelSpec
from rubric_influence.core.journal import Journal
from rubric_influence.core.records import content_id
from rubric_influence.engines.base import Completion, Sampling, name_model
from rubric_influence.engines.ledger import Ledger
from rubric_influence.engines.responses import Fault, read_answer, read_refusal
from rubric_influence.engines.throttle import RequestWindow, choose_backoff
from rubric_influence.models.chat import Conversation

MAX_BODY_BYTES = 8 << 20  # of a response; a larger one is no answer
RESERVE_BYTES = 4 << 20  # of the disk, for the answers that are under way when it fills up
MOST_FAILURES_IN_A_ROW = 20  # requests given up without one answer in between: the server is gone


class EndpointError(RunStopped):
    """The endpoint cannot be used as it is; what was answered is kept."""


class EndpointEngine:
    """Answers of a model behind an endpoint, sampled by the server with a seed for each request.

    `journal` keeps the answers (None: nothing is kept), `ledger` counts them as `what` and holds the budget. The seed
    of a request depends on the call's seed and on how often the same conversation stands before it in the call, so
    the answers do not depend on how requests are grouped. The key is read from the environment when requests are
    sent.
    """

    independent = True

    def __init__(self, spec: ModelSpec, journal: Journal | None = None, ledger: Ledger | None = None, what: str = ""):
        self.spec, self.journal, self.ledger, self.what = spec, journal, ledger or Ledger(), what
        self.name = name_model(spec)
        endpoint = spec.endpoint
        self.prices = (endpoint.usd_per_million_prompt_tokens, endpoint.usd_per_million_completion_tokens)
        read_api_key(spec)  # a missing key should stop a run before its first stage is paid for

    def generate(self, conversations: Sequence[Conversation], sampling: Sampling) -> list[Completion]:
        """One completion for each conversation, in order; those that failed have a `failure` and no text.

        Raises EndpointError where the endpoint refuses what it is asked or is gone, BudgetReached where the ledger has
        no room and OSError where the disk has none; then the answers up to there are in the journal.
        """
        shape: dict = {"temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": sampling.max_tokens}
        shape |= self.spec.endpoint.extra_body
        if schema := sampling.schema:
            form = {"name": schema.__name__, "schema": schema.model_json_schema(), "strict": True}
            shape["response_format"] = {"type": "json_schema", "json_schema": form}
        bodies = [
            {"model": self.spec.path, "messages": conversation, "seed": request_seed} | shape
            for conversation, request_seed in zip(conversations, draw_seeds(conversations, sampling.seed), strict=True)
        ]
        call = Call(self, bodies)
        if call.missing:
            started = time.monotonic()
            with start_blocking_portal() as portal:  # a notebook's own thread has a loop already
                future = portal.start_task_soon(call.run)
                try:
                    future.result()
                except BaseException:
                    future.cancel()
                    raise
                finally:
                    self.ledger.track(self.what, self.name).seconds += time.monotonic() - started
        return [call.completions[place] for place in range(len(bodies))]

    def make_key(self, body: dict) -> str:
        """Of everything that shapes the answer."""
        return content_id(self.spec.endpoint.base_url, self.spec.revision, json.dumps(body, sort_keys=True))


class Call:
    """One call of an engine: the requests that its journal does not answer, sent and waited for."""

    def __init__(self, engine: EndpointEngine, bodies: list[dict]):
        self.engine, self.bodies, self.endpoint = engine, bodies, engine.spec.endpoint
        self.keys = [engine.make_key(body) for body in bodies]
        self.effort = engine.ledger.track(engine.what, engine.name)
        self.completions: dict[int, Completion] = {}
        journal = engine.journal
        for place, key in enumerate(self.keys):
            if journal is not None and key in journal:
                self.settle(place, Completion(**journal[key]))
                self.effort.kept += 1
        self.missing = [place for place in range(len(bodies)) if place not in self.completions]
        self.window = RequestWindow(self.endpoint.concurrency)
        self.rng = random.Random()
        self.stop: BaseException | None = None
        self.failures_in_a_row = 0
        self.reserved_tokens, self.reserved_usd = 0, 0.0

    async def run(self) -> None:
        """Send what is missing. Raises what stopped it, once all that was under way is settled."""
        journal = self.engine.journal
        if journal is not None:
            journal.hold(RESERVE_BYTES)
        self.key, self.stopped = read_api_key(self.engine.spec), asyncio.Event()
        on_this_machine = urlsplit(self.endpoint.base_url).hostname in LOOPBACK
        # A redirect would carry documents, and perhaps the key, to another server.
        http = DefaultAsyncHttpxClient(follow_redirects=False, trust_env=not on_this_machine)
        tasks: set[asyncio.Task] = set()
        try:
            async with AsyncOpenAI(
                base_url=self.endpoint.base_url,
                api_key=self.key or "none",
                timeout=self.endpoint.timeout,
                max_retries=0,
                http_client=http,
            ) as self.client:
                with tqdm(total=len(self.missing), desc=self.engine.what, unit="answer", leave=False) as self.bar:
                    try:
                        await self.send_all(tasks)
                    finally:
                        if tasks:
                            await asyncio.wait(tasks)
        finally:
            if journal is not None:
                journal.let_go()
        if self.stop:
            raise self.stop

    async def send_all(self, tasks: set[asyncio.Task]) -> None:
        # Some sleep before their next try: twice the window is as many as are begun.
        begun = asyncio.Semaphore(2 * self.window.most)

        def finish(task: asyncio.Task) -> None:
            tasks.discard(task)
            begun.release()
            if not task.cancelled() and task.exception():  # an error of our own is not to be swallowed
                self.halt(task.exception())

        for place in self.missing:
            await begun.acquire()
            tokens, usd = self.bound_cost(self.bodies[place])
            while not self.engine.ledger.has_room(self.reserved_tokens + tokens, self.reserved_usd + usd):
                if not tasks:
                    self.halt(self.engine.ledger.refuse())
                    break
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if self.stop:
                return
            self.reserved_tokens += tokens
            self.reserved_usd += usd
            task = asyncio.create_task(self.answer(place, tokens, usd))
            tasks.add(task)
            task.add_done_callback(finish)

    def bound_cost(self, body: dict) -> tuple[int, float]:
        """The most tokens and USD that a request can cost: no token is less than a byte."""
        prompt = sum(len(m["content"].encode("utf-8", "replace")) + 16 for m in body["messages"])
        prices = self.engine.prices
        return prompt + body["max_tokens"], (prompt * prices[0] + body["max_tokens"] * prices[1]) / 1_000_000

    async def answer(self, place: int, tokens: int, usd: float) -> None:
        """Ask until there is an answer, or give up."""
        try:
            for attempt in range(self.endpoint.attempts):
                async with self.window as sent:
                    if self.stop:
                        return
                    self.effort.sent += 1
                    self.effort.retries += attempt > 0
                    outcome = await self.ask(self.bodies[place])
                if isinstance(outcome, Completion):
                    self.window.report_success()
                    self.keep(place, outcome)
                    return
                if not outcome.passing:
                    self.halt(EndpointError(self.describe(outcome)))
                    return
                if outcome.congestion:
                    self.window.report_congestion(sent)
                if attempt + 1 < self.endpoint.attempts:
                    await self.pause(max(outcome.wait, choose_backoff(attempt, self.endpoint.backoff, self.rng)))
            self.settle(place, Completion("", 0, 0, False, f"{outcome.reason}, {self.endpoint.attempts} times"))
            self.failures_in_a_row += 1
            if self.failures_in_a_row >= MOST_FAILURES_IN_A_ROW:
                self.halt(EndpointError(self.describe(outcome)))
        finally:
            self.reserved_tokens -= tokens
            self.reserved_usd -= usd

    async def pause(self, seconds: float) -> None:
        """Sleep, unless the call is stopped."""
        try:
            await asyncio.wait_for(self.stopped.wait(), seconds)
        except TimeoutError:
            return

    def halt(self, stop: BaseException) -> None:
        self.stop = self.stop or stop
        self.stopped.set()

    def keep(self, place: int, completion: Completion) -> None:
        self.failures_in_a_row = 0
        if self.engine.journal is not None:
            try:
                self.engine.journal.add(self.keys[place], asdict(completion))
            except OSError as error:
                self.halt(error)
                return
            if self.engine.journal.full:
                self.halt(self.engine.journal.full)
        self.settle(place, completion)
        self.bar.update()

    def settle(self, place: int, completion: Completion) -> None:
        self.completions[place] = completion
        self.engine.ledger.count(self.engine.what, self.engine.name, [completion], self.engine.prices)

    async def ask(self, body: dict) -> Completion | Fault:
        """One try."""
        try:
            async with asyncio.timeout(self.endpoint.timeout):
                messages = {"messages": body["messages"], "model": body["model"]}
                extra = {name: value for name, value in body.items() if name not in messages}
                create = self.client.chat.completions.with_streaming_response.create
                async with create(**messages, extra_body=extra) as response:
                    parts, size = [], 0
                    async for part in response.iter_bytes():
                        parts.append(part)
                        size += len(part)
                        if size > MAX_BODY_BYTES:
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
        return read_answer(b"".join(parts), needs_usage=self.engine.ledger.has_limit)

    def describe(self, fault: Fault) -> str:
        return (
            f"{self.engine.name} at {self.endpoint.base_url}: {fault.reason}. Check the server, the endpoint's "
            "base_url and key, the model's name and the sampling parameters; what was answered is kept: run the same "
            "command to go on"
        )


def draw_seeds(conversations: Sequence[Conversation], seed: int) -> list[int]:
    """A 31-bit seed for each; equal conversations have different ones."""
    seen: dict[str, int] = {}
    seeds = []
    for conversation in conversations:
        text = json.dumps(conversation)
        seen[text] = seen.get(text, -1) + 1
        seeds.append(int(np.random.SeedSequence([seed, seen[text]]).generate_state(1)[0] >> 1))
    return seeds


def read_api_key(spec: ModelSpec) -> str:
    """The key, "" where the endpoint wants none. Raises ValueError where its variable is not set."""
    name = spec.endpoint.api_key_env
    if name is None:
        return ""
    key = os.environ.get(name, "")
    if not key:
        raise ValueError(f"the key of {spec.path} is read from the environment variable {name}, which is not set")
    return key

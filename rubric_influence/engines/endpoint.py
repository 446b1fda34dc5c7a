"""Any OpenAI-compatible endpoint (`vllm serve`, hosted APIs) as a text engine.

One call sends many requests side by side, as many as the server bears (throttle.py); the engine's first request goes
alone, as it shows which parameters the server takes (shapes.py). A fault that may pass is tried again, one of a single
request costs no other, and one of all requests stops the call at once (faults.py). Every answer is written to the
journal as soon as it arrives, under a key of everything that shapes it, and is never asked for again (books.py).
"""

import asyncio
import os
import random
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import openai
from anyio.from_thread import start_blocking_portal
from tqdm import tqdm

from rubric_influence.core.checks import RunStopped
from rubric_influence.core.journal import Journal
from rubric_influence.core.model_sections import LOOPBACK, ModelSpec
from rubric_influence.engines.base import Completion, Sampling, name_model
from rubric_influence.engines.books import Books
from rubric_influence.engines.faults import Fault, Reach
from rubric_influence.engines.ledger import Ledger
from rubric_influence.engines.requests import Request, price, write_requests
from rubric_influence.engines.responses import Asked, estimate_loss, read_answer, read_refusal
from rubric_influence.engines.shapes import Shape, adapt, advise, describe_omissions, open_shape
from rubric_influence.engines.throttle import LONGEST_BACKOFF, RequestWindow, choose_backoff
from rubric_influence.models.chat import Conversation

MAX_BODY_BYTES = 8 << 20  # of a response; a larger one is no answer
RESERVE_BYTES = 4 << 20  # of the disk, for the answers that are under way when it fills up
MOST_FAILURES_IN_A_ROW = 20  # requests given up without one answer in between: the server is gone
MOST_FIRST_REFUSALS = 5  # the same before the first answer, for refusals that may be of one request or of all
CHECK = "Check the server, the endpoint's base_url and key, the model's name and the sampling parameters"
HOW_TO_GO_ON = "what was answered is kept: run the same command to go on"


class EndpointError(RunStopped):
    """The endpoint cannot be used as it is; the answers that came are kept."""


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
        self.shape = open_shape(self.endpoint)
        self.probed = self.answered = False  # whether a request of this shape was not refused; whether one was answered
        self.read_key()  # a missing key should stop a run before its first stage is paid for

    def generate(self, conversations: Sequence[Conversation], sampling: Sampling) -> list[Completion]:
        """One completion for each conversation, in order; those that failed have a `failure`.

        Warns of what the server does not take. Raises EndpointError where the endpoint refuses all that it is asked or
        is gone, BudgetReached where the ledger has no room and OSError where the disk has none; the answers up to there
        are then in the journal.
        """
        books = Books(self.journal, self.ledger, self.what, self.name, price(self.endpoint))
        completions: dict[int, Completion] = {}
        missing = []
        for request in write_requests(self.spec, self.endpoint, conversations, sampling):
            if (kept := books.recall(request.key)) is not None:
                completions[request.place] = kept
            else:
                missing.append(request)
        if missing:
            started = time.monotonic()
            try:
                if self.journal is not None:
                    self.journal.hold(RESERVE_BYTES)
                with start_blocking_portal() as portal:  # a notebook's own thread has a loop already
                    completions |= portal.call(self.send, missing, books)
            finally:
                if self.journal is not None:
                    self.journal.let_go()
                books.effort.seconds += time.monotonic() - started
        return [completions[place] for place in range(len(conversations))]

    async def send(self, requests: Sequence[Request], books: Books) -> dict[int, Completion]:
        """The completions by place. Raises what stopped the call, once all that was under way is settled."""
        key, endpoint = self.read_key(), self.endpoint
        # No redirect may carry documents, and perhaps the key, to another server; no proxy stands before this machine.
        remote = urlsplit(endpoint.base_url).hostname not in LOOPBACK
        http = openai.DefaultAsyncHttpxClient(follow_redirects=False, trust_env=remote)
        for note in describe_omissions(self.shape, requests[0].body):
            self.say(note)
        async with openai.AsyncOpenAI(
            base_url=endpoint.base_url, api_key=key or "none", timeout=endpoint.timeout, max_retries=0, http_client=http
        ) as client:
            with tqdm(total=len(requests), desc=self.what, unit="answer", leave=False) as bar:
                call = Call(self, client, key, books, bar)
                try:
                    await call.send_all(requests)
                finally:
                    if call.under_way:
                        await asyncio.wait(call.under_way)
        if call.stop.done():
            raise call.stop.result()
        return call.completions

    def say(self, note: str) -> None:
        """Warn, once, of how the server is asked; the ledger's effort has it too."""
        notes = self.ledger.track(self.what, self.name).notes
        if note not in notes:
            notes.append(note)
            warnings.warn(f"{self.name} at {self.endpoint.base_url}: {note}", stacklevel=2)

    def read_key(self) -> str:
        """The endpoint's key; "" where it wants none. Raises ValueError where its variable is not set."""
        name = self.endpoint.api_key_env
        if name and not os.environ.get(name):
            raise ValueError(f"the key of {self.name} is read from the environment variable {name}, which is not set")
        return os.environ[name] if name else ""


class Call:
    """The requests of one call while they are under way. `stop` gets the first error that is to end the call."""

    def __init__(self, engine: EndpointEngine, client: openai.AsyncOpenAI, key: str, books: Books, bar: tqdm):
        self.engine, self.client, self.key, self.books, self.bar = engine, client, key, books, bar
        self.endpoint, self.ledger = engine.endpoint, engine.ledger
        self.completions: dict[int, Completion] = {}  # by place
        self.under_way: dict[asyncio.Task[None], Request] = {}
        self.window, self.rng = RequestWindow(self.endpoint.concurrency), random.Random()
        self.stop: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self.probed = asyncio.Event()  # a try was not refused for its parameters, or is settled
        self.failures_in_a_row = 0

    async def send_all(self, requests: Sequence[Request]) -> None:
        """Begin one request after another, each when the budget has room for it, until the call is stopped."""
        # More than the window has places for: requests that wait before their next try leave their places to others.
        begun = asyncio.Semaphore(2 * self.window.most)

        def finish(task: asyncio.Task[None]) -> None:
            del self.under_way[task]
            begun.release()
            self.probed.set()
            if not task.cancelled() and (error := task.exception()):  # an error in this module is not to be swallowed
                self.halt(error)

        for request in requests:
            await begun.acquire()
            while not self.has_room(request):
                if not self.under_way:
                    self.halt(self.ledger.refuse())
                    break
                await asyncio.wait(self.under_way, return_when=asyncio.FIRST_COMPLETED)
            if self.stop.done():
                return
            task = asyncio.create_task(self.answer(request))
            self.under_way[task] = request
            task.add_done_callback(finish)
            if not self.engine.probed:
                await self.probed.wait()

    def has_room(self, *more: Request) -> bool:
        """Whether the budget covers the requests that are under way, and more, each at its most."""
        asked = [*more, *self.under_way.values()]
        return self.ledger.has_room(sum(r.tokens for r in asked), sum(r.usd for r in asked))

    async def answer(self, request: Request) -> None:
        """Ask until there is an answer, the attempts are used up or the call is stopped. A full disk stops it."""
        attempt = 0
        while attempt < self.endpoint.attempts:
            async with self.window as sent:
                if self.stop.done():
                    return
                self.books.effort.sent += 1
                self.books.effort.retries += attempt > 0
                shape = self.engine.shape
                outcome = await self.ask(request, shape)
            if isinstance(outcome, Fault) and outcome.unwanted and self.reshape(shape, outcome, request):
                continue  # at once, in another shape
            self.engine.probed = True
            self.probed.set()
            if isinstance(outcome, Completion):
                self.window.report_success()
                self.failures_in_a_row, self.engine.answered = 0, True
                if outcome.estimated:
                    self.engine.say("the server does not say how many tokens an answer took; they are estimated")
                return self.settle(request, outcome)
            if outcome.congestion:
                self.window.report_congestion(sent)
            attempt += 1
            own = outcome.reach is Reach.REQUEST  # its cost is then that of its failure
            if outcome.lost and not own:
                self.books.lose(request.key, outcome.lost)
                if not self.has_room():
                    return self.halt(self.ledger.refuse())
            if outcome.reach is not Reach.TRY or attempt == self.endpoint.attempts:
                return self.give_up(request, outcome)
            if outcome.wait > LONGEST_BACKOFF:
                self.engine.say(f"the server asks to wait for {outcome.wait:.0f} s: {outcome.reason}")
            pause = max(outcome.wait, choose_backoff(attempt - 1, self.endpoint.backoff, self.rng))
            await asyncio.wait([self.stop], timeout=pause)

    def reshape(self, shape: Shape, fault: Fault, request: Request) -> bool:
        """Whether to ask again in the engine's shape, which leaves out or renames what the fault names."""
        if self.engine.shape != shape:  # another request's refusal has changed it
            return True
        if adapted := adapt(shape, fault.unwanted, fault.reason, request.body):
            self.engine.shape, note = adapted
            self.engine.say(f"{note} ({fault.reason})")
        return adapted is not None

    def give_up(self, request: Request, fault: Fault) -> None:
        """Settle a request that has no answer, and stop the call where no other would have one."""
        reason = fault.reason + (f", {self.endpoint.attempts} times" if fault.reach is Reach.TRY else "")
        if fault.reach is Reach.REQUEST:
            refused = Completion("", *(fault.lost or (0, 0)), False, reason, refused="request")
            self.settle(request, refused, lasting=fault.lasting or fault.lost is not None)
            self.failures_in_a_row += not self.engine.answered
        elif fault.reach is not Reach.ENDPOINT:
            self.settle(request, Completion("", 0, 0, False, reason), lasting=False)
            self.failures_in_a_row += 1
        first = fault.reach is Reach.UNCLEAR and not self.engine.answered
        most = MOST_FIRST_REFUSALS if first else MOST_FAILURES_IN_A_ROW
        if fault.reach is Reach.ENDPOINT or self.failures_in_a_row >= most:
            row = "" if fault.reach is Reach.ENDPOINT else f" ({self.failures_in_a_row} requests in a row failed)"
            fix = fault.fix or (advise(fault.unwanted) if fault.unwanted else CHECK)
            where = f"{self.engine.name} at {self.endpoint.base_url}"
            self.halt(EndpointError(f"{where}: {reason.rstrip('.')}{row}. {fix}; {HOW_TO_GO_ON}"))

    def halt(self, error: BaseException) -> None:
        """Let no further request be sent; the call raises the first error that it is halted with."""
        if not self.stop.done():
            self.stop.set_result(error)

    def settle(self, request: Request, completion: Completion, lasting: bool = True) -> None:
        """Count what came of a request; what lasts is first written to the journal, where a rerun finds it."""
        if lasting:
            self.books.keep(request.key, completion)
        if self.books.journal is not None and self.books.journal.full:
            self.halt(self.books.journal.full)
        self.completions[request.place] = self.books.count(completion)
        self.bar.update()

    async def ask(self, request: Request, shape: Shape) -> Completion | Fault:
        """The answer or the fault that one try gives."""
        body = shape.write(request.body)
        sent = body.keys() - self.endpoint.extra_body.keys() - {"model", "messages"}
        outcome = await self.fetch(body, Asked(request.prompt, request.body["max_tokens"], sent))
        return replace(outcome, unseeded="seed" in shape.omit) if isinstance(outcome, Completion) else outcome

    async def fetch(self, body: dict[str, Any], asked: Asked) -> Completion | Fault:
        """What comes back for a body."""
        rest, content = dict(body), bytearray()
        create = self.client.chat.completions.with_streaming_response.create
        sending = create(messages=rest.pop("messages"), model=rest.pop("model"), extra_body=rest)
        try:
            async with asyncio.timeout(self.endpoint.timeout), sending as response:
                async for part in response.iter_bytes():
                    content += part
                    if len(content) > MAX_BODY_BYTES:
                        break
                else:
                    return read_answer(mask(bytes(content), self.key), asked)
            fault = Fault(f"a response of over {MAX_BODY_BYTES} bytes")
        except (TimeoutError, openai.APITimeoutError):
            fault = Fault(f"no answer in {self.endpoint.timeout:g} s", congestion=True)
        except openai.APIStatusError as error:
            said = mask(error.response.content, self.key)
            return read_refusal(said, error.response.headers, error.status_code, asked)
        except openai.APIConnectionError as error:
            fault = Fault(f"the connection failed ({type(error.__cause__ or error).__name__})")
        except openai.OpenAIError as error:
            fault = Fault(f"no answer ({type(error).__name__})")
        except Exception as error:  # of the HTTP library, while the body is read: cut off, wrongly encoded
            fault = Fault(f"the response broke off ({type(error).__name__})")
        return replace(fault, lost=estimate_loss(bytes(content), asked))


def mask(content: bytes, key: str) -> bytes:
    """What a server sent, without the key, which some repeat; in JSON, a slash may be escaped."""
    for form in {key, key.replace("/", "\\/")} - {""}:
        content = content.replace(form.encode(), b"***")
    return content

"""A real HTTP server on 127.0.0.1 that answers chat completions, and misbehaves as it is told to.

What the "model" writes is a function of the request (some of it is malformed, as models' output is); what goes wrong
on the way is drawn anew at every try. `answered` counts, for each request, the answers that were sent whole.
"""

import asyncio
import hashlib
import json
import random
import threading
import time
from collections import Counter
from email.utils import formatdate

TRANSIENT = (
    *("429", "429 with seconds", "429 with a date", "500", "503", "dropped", "broken off", "truncated JSON"),
    *("malformed JSON", "empty body", "no choices", "timeout", "stall"),
)
# What a model may write instead of what it was asked for.
MALFORMED = ("", "I cannot help.", '{"question": "what', '{"answer": "a drug"}', '{"rubric": 7}', "long " * 50_000)
PROMPT_TOKENS, COMPLETION_TOKENS = 10, 5


def identify(body: dict) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]


class FaultyServer:
    """`with FaultyServer(faults=0.3) as server:` serves at `server.url` until the block ends."""

    def __init__(self, faults=0.0, kinds=TRANSIENT, malformed=0.1, seed=0, delay=0.0, hang=30.0, capacity=None):
        self.faults, self.kinds, self.malformed, self.delay, self.hang = faults, kinds, malformed, delay, hang
        self.capacity = capacity  # more requests at once are answered 429
        self.rng = random.Random(seed)
        self.tried: Counter = Counter()
        self.answered: Counter = Counter()
        self.faulted: Counter = Counter()
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.out = self.most_out = 0

    def __enter__(self) -> "FaultyServer":
        ready = threading.Event()
        self.loop = asyncio.new_event_loop()
        self.done = asyncio.Event()

        async def serve() -> None:
            server = await asyncio.start_server(self.handle, "127.0.0.1", 0)
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            ready.set()
            await self.done.wait()
            server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.thread = threading.Thread(target=self.loop.run_until_complete, args=(serve(),), daemon=True)
        self.thread.start()
        ready.wait()
        return self

    def __exit__(self, *error: object) -> None:
        self.loop.call_soon_threadsafe(self.done.set)
        self.thread.join()
        self.loop.close()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                self.bodies.append(body)
                self.headers.append(headers)
                self.out += 1
                self.most_out = max(self.most_out, self.out)
                try:
                    if not await self.respond(body, writer):
                        break
                finally:
                    self.out -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def respond(self, body: dict, writer: asyncio.StreamWriter) -> bool:
        """Answer, or not. Returns whether the connection stays open."""
        key = identify(body)
        self.tried[key] += 1
        fault = self.rng.choice(self.kinds) if self.rng.random() < self.faults else ""
        if self.capacity and self.out > self.capacity:
            fault = "429"
        self.faulted[fault] += bool(fault)
        answer = json.dumps(self.complete(body, key)).encode()
        if self.delay:
            await asyncio.sleep(self.delay)
        if fault.startswith("429") or fault.isdigit():
            extra = {"429 with seconds": "Retry-After: 0.05\r\n"}.get(fault, "")
            if fault == "429 with a date":
                extra = f"Retry-After: {formatdate(time.time() + 1, usegmt=True)}\r\n"
            await self.write(writer, int(fault[:3]), b'{"error": {"message": "try again"}}', extra)
            return True
        if fault == "dropped":
            return False
        if fault == "broken off":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer[: len(answer) // 2])
            await writer.drain()
            return False
        if fault == "timeout":
            await asyncio.sleep(self.hang)
            return False
        if fault == "stall":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer[:10])
            await writer.drain()
            await asyncio.sleep(self.hang)
            return False
        spoilt = {
            "truncated JSON": answer[:-10],
            "malformed JSON": b"<html>busy</html>",
            "empty body": b"",
            "no choices": b'{"choices": []}',
            "huge": b" " * (9 << 20),
        }
        await self.write(writer, 200, spoilt.get(fault, answer))
        self.answered[key] += not fault
        return True

    async def write(self, writer: asyncio.StreamWriter, status: int, body: bytes, extra: str = "") -> None:
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
        writer.write(head.encode() + body)
        await writer.drain()

    def complete(self, body: dict, key: str) -> dict:
        """What the model writes: well-formed, but for a part of the requests."""
        chance = random.Random(key)
        prompt = body["messages"][0]["content"]
        words = f"{key} of {len(prompt)} characters"
        wanted = {"rubric": f"ask {words}"} if prompt.endswith("rubric :") else {"question": f"what is {words} ?"}
        if "question" in wanted:
            wanted["answer"] = f"a drug {words}"
        text = chance.choice(MALFORMED) if chance.random() < self.malformed else json.dumps(wanted)
        usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS}
        return {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": usage}

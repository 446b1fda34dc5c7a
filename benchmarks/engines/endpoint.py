"""The endpoint engine beside a bare load generator: the same requests, concurrency and server, turn about."""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from rubric_influence.core.journal import Journal
from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.engines.base import Sampling
from rubric_influence.engines.open import open_engine

REQUESTS, CONCURRENCY, SECONDS, ROUNDS = 1500, 32, 0.2, 5
SAMPLING = dict(seed=0, temperature=1.0, top_p=1.0, max_tokens=64)


@contextmanager
def run_server(seconds: float) -> Iterator[str]:
    """A server process's base URL."""
    command = [sys.executable, "-m", "benchmarks.engines.server", "--seconds", str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.kill()
        process.wait()


def make_conversations(count: int) -> list[list[dict[str, str]]]:
    """Prompts of some 300 words, all different."""
    return [[{"role": "user", "content": f"document {number} : " + "a drug " * 150}] for number in range(count)]


async def load(url: str, bodies: list[dict], concurrency: int) -> None:
    """The bare generator: a connection for each worker, which posts the next body, reads the answer and parses it."""
    address, rest = urlsplit(url), iter(bodies)

    async def work() -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        for body in rest:
            content = json.dumps(body).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\n"
            writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            answered = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(answered.split(b"content-length:")[1].split(b"\r\n")[0])
            json.loads(await reader.readexactly(length))["choices"][0]["message"]["content"]
        writer.close()

    await asyncio.gather(*(work() for _ in range(concurrency)))


def time_bare(url: str) -> float:
    """Requests a second."""
    bodies = [{"model": "m", "messages": c} | SAMPLING for c in make_conversations(REQUESTS)]
    started = time.perf_counter()
    asyncio.run(load(url, bodies, CONCURRENCY))
    return REQUESTS / (time.perf_counter() - started)


def time_engine(url: str) -> float:
    """Requests a second of the engine as synthesis uses it: every answer into a journal."""
    spec = ModelSpec(path="m", engine="openai", endpoint=dict(base_url=url, concurrency=CONCURRENCY))
    with tempfile.TemporaryDirectory() as folder:
        engine = open_engine(spec, 1, journal=Journal(Path(folder, "answers.jsonl")), what="pairs")
        conversations = make_conversations(REQUESTS)
        started = time.perf_counter()
        completions = engine.generate(conversations, Sampling(**SAMPLING))
        rate = REQUESTS / (time.perf_counter() - started)
    assert not any(completion.failure for completion in completions)
    return rate


def measure_endpoint() -> dict:
    """Throughput of the engine over the bare generator's: the median of the rounds' ratios, and their extremes."""
    with run_server(SECONDS) as url:
        time_bare(url)  # warms up what both share
        rounds = [(time_bare(url), time_engine(url)) for _ in range(ROUNDS)]
    ratios = [engine / bare for bare, engine in rounds]
    return {
        "throughput_over_bare": round(statistics.median(ratios), 4),
        "spread": [round(min(ratios), 4), round(max(ratios), 4)],
        "bare_requests_a_second": [round(bare, 1) for bare, _ in rounds],
        "engine_requests_a_second": [round(engine, 1) for _, engine in rounds],
        "requests": REQUESTS,
        "concurrency": CONCURRENCY,
        "service_seconds": SECONDS,
    }

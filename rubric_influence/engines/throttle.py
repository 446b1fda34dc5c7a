"""How many requests may be out at once, and how long to wait before the next try: what keeps a server answering.

The number of requests follows TCP's rule (AIMD): it is halved when the server says that it is too much (429, 503, a
timeout), and raised by one after a window of successes.
"""

import asyncio
import random
import re
import time
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime

LONGEST_BACKOFF = 60.0  # seconds
LONGEST_RETRY_AFTER = 3600.0  # seconds that a server may ask for
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
PIECE = r"(\d+(?:\.\d+)?)(ms|[smhd])"
DURATION = re.compile(f"(?:{PIECE})+")
RESET = re.compile(r"(?:x-)?rate-?limit-reset(?:-[a-z]+)?|anthropic-ratelimit-[a-z-]+-reset")
ADVICE = re.compile(rf"(?:try again|retry) (?:in|after) ({DURATION.pattern}|\d+(?:\.\d+)?)(?![\w.]*\d)", re.IGNORECASE)


class RequestWindow:
    """`async with window as sent` holds one of `size` places; `sent` is for `report_congestion`."""

    def __init__(self, most: int):
        self.most = self.size = most
        self.out = self.successes = self.halvings = 0
        self.changed = asyncio.Condition()

    async def __aenter__(self) -> int:
        async with self.changed:
            await self.changed.wait_for(lambda: self.out < self.size)
            self.out += 1
            return self.halvings

    async def __aexit__(self, *error: object) -> None:
        async with self.changed:
            self.out -= 1
            self.changed.notify(self.size - self.out)

    def report_success(self) -> None:
        self.successes += 1
        if self.successes >= self.size:
            self.successes = 0
            self.size = min(self.most, self.size + 1)  # taken when the next place is given back

    def report_congestion(self, sent: int) -> None:
        """Halve the size, once for all requests that were out when it was last halved."""
        if sent == self.halvings:
            self.halvings += 1
            self.successes = 0
            self.size = max(1, self.size // 2)


def choose_backoff(attempt: int, first: float, rng: random.Random) -> float:
    """Seconds after try `attempt` (from 0): `first`, doubled at every try up to a minute, times 0.5 to 1 at random."""
    return min(LONGEST_BACKOFF, first * 2**attempt) * rng.uniform(0.5, 1.0)


def read_retry_after(headers: Mapping[str, str], words: str = "") -> float:
    """The seconds that a refusal asks to wait, at most an hour; 0 where it names none.

    Of the headers retry-after-ms, retry-after, those of limits' resets (all limits that have nothing remaining; else
    the first to come) and the message's "try again in 1m30s", the first that names a time counts.
    """
    values = {name.lower(): value for name, value in headers.items()}
    if milliseconds := values.get("retry-after-ms", "").strip():
        values["retry-after-ms"] = f"{milliseconds}ms"
    resets = {name: read_seconds(value) for name, value in values.items() if RESET.fullmatch(name)}
    spent = [seconds for name, seconds in resets.items() if values.get(name.replace("reset", "remaining")) == "0"]
    advice = ADVICE.search(words)
    asked = (
        read_seconds(values.get("retry-after-ms", "")),
        read_seconds(values.get("retry-after", "")),
        max(spent, default=0.0),
        min(filter(None, resets.values()), default=0.0),
        read_seconds(advice[1]) if advice else 0.0,
    )
    return min(LONGEST_RETRY_AFTER, next(filter(None, asked), 0.0))


def read_seconds(value: str) -> float:
    """Seconds from now: a number of them, a duration ("1m30s", "6ms") or a time (a date, seconds or ms since 1970).

    0 for what is none of these, or is past.
    """
    text = value.strip()
    try:
        seconds = float(text)
        for unit in (1.0, 1000.0):
            if 1e9 < seconds / unit < 4e9:  # as seconds to wait, this would be decades
                seconds = seconds / unit - time.time()
    except ValueError:
        if DURATION.fullmatch(text):
            seconds = sum(float(number) * SECONDS[unit] for number, unit in re.findall(PIECE, text))
        else:
            seconds = read_date(text) - time.time()
    return seconds if seconds > 0 else 0.0  # also for NaN


def read_date(text: str) -> float:
    """The time of an HTTP date or one of ISO 8601; 0 for none."""
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            return read(text).timestamp()
        except (ValueError, TypeError, OverflowError, IndexError):
            continue
    return 0.0

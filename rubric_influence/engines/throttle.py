"""How many requests may be out at once, and how long to wait before the next try: what keeps a server answering.

The number of requests follows TCP's rule (AIMD): it is halved when the server says that it is too much (429, 503, a
timeout), and raised by one after a window of successes.
"""

import asyncio
import random
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

LONGEST_BACKOFF = 60.0  # seconds
LONGEST_RETRY_AFTER = 3600.0  # seconds that a server may ask for


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


def read_retry_after(headers: Mapping[str, str]) -> float:
    """The seconds that a response's Retry-After asks for (a number or an HTTP date), at most an hour; 0 for none."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return min(LONGEST_RETRY_AFTER, seconds) if seconds > 0 else 0.0  # also for NaN

"""What models were asked for, what they answered, and what that cost.

Counts and costs are the same however often a run was interrupted; what depends on the day (seconds, retries, how much
came from an earlier run) is kept apart.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from rubric_influence.core.checks import RunStopped
from rubric_influence.engines.base import Completion

MILLION = 1_000_000


class BudgetReached(RunStopped):
    """The budget is spent; what was answered is kept."""


@dataclass
class Usage:
    """Of one kind of request (rubrics, pairs) and one model."""

    requests: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0


@dataclass
class Effort:
    """What it took this time. `kept`: answers of an earlier run, not asked for again; `seconds`: waiting for others."""

    sent: int = 0
    retries: int = 0
    kept: int = 0
    seconds: float = 0.0


@dataclass
class Ledger:
    """The account of a run, with its limits (None: no limit) on USD and on tokens, prompt and completion together."""

    limit_usd: float | None = None
    limit_tokens: int | None = None
    usage: dict[tuple[str, str], Usage] = field(default_factory=dict)  # (what, model) -> usage
    effort: dict[tuple[str, str], Effort] = field(default_factory=dict)

    def count(
        self, what: str, model: str, completions: Iterable[Completion], prices: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        """Add answers. `prices`: USD for a million prompt tokens, and for a million completion tokens."""
        row = self.usage.setdefault((what, model), Usage())
        for completion in completions:
            row.requests += 1
            row.failed += bool(completion.failure)
            row.prompt_tokens += completion.prompt_tokens
            row.completion_tokens += completion.completion_tokens
            row.usd += (completion.prompt_tokens * prices[0] + completion.completion_tokens * prices[1]) / MILLION

    def track(self, what: str, model: str) -> Effort:
        """The row to add this time's effort to."""
        return self.effort.setdefault((what, model), Effort())

    @property
    def usd(self) -> float:
        return sum(row.usd for row in self.usage.values())

    @property
    def tokens(self) -> int:
        return sum(row.prompt_tokens + row.completion_tokens for row in self.usage.values())

    @property
    def has_limit(self) -> bool:
        return self.limit_usd is not None or self.limit_tokens is not None

    def has_room(self, tokens: int = 0, usd: float = 0.0) -> bool:
        """Whether so much more may be spent."""
        within_tokens = self.limit_tokens is None or self.tokens + tokens <= self.limit_tokens
        return within_tokens and (self.limit_usd is None or self.usd + usd <= self.limit_usd)

    def refuse(self) -> BudgetReached:
        """The error to raise where there is no room: what is spent, what is kept, how to go on."""
        limits = [
            f"{self.usd:.4f} of synthesis.budget_usd ({self.limit_usd:g})" if self.limit_usd is not None else "",
            f"{self.tokens:,} of synthesis.budget_tokens ({self.limit_tokens:,})" if self.limit_tokens else "",
        ]
        answers = sum(row.requests - row.failed for row in self.usage.values())
        return BudgetReached(
            f"the budget does not cover the next request: spent {' and '.join(filter(None, limits))}. All {answers} "
            "answers are kept and will not be asked for again; raise the budget and run the same command to go on"
        )

    def report(self) -> dict[str, dict]:
        """`what: model` -> counts and cost, the same for the same answers."""
        return {": ".join(key): asdict(row) | {"usd": round(row.usd, 6)} for key, row in sorted(self.usage.items())}

    def report_effort(self) -> dict[str, dict]:
        """`what: model` -> what it took this time."""
        rows = sorted(self.effort.items())
        return {": ".join(key): asdict(row) | {"seconds": round(row.seconds, 3)} for key, row in rows}

    def restore(self, report: dict[str, dict]) -> None:
        """Add the `report` of finished work that is not read again."""
        for name, counts in report.items():
            what, _, model = name.partition(": ")
            row = self.usage.setdefault((what, model), Usage())
            for key, count in counts.items():
                setattr(row, key, getattr(row, key) + count)

"""What models were asked for, what they answered, and what that cost.

Counts and costs are the same however often a run was interrupted. What depends on the day (seconds, retries, answers
that an earlier run had left) is kept apart, as effort.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from rubric_influence.core.checks import RunStopped
from rubric_influence.engines.base import Completion

MILLION = 1_000_000


class BudgetReached(RunStopped):
    """The budget is spent; the answers that came are kept."""


@dataclass
class Usage:
    """What one kind of request (rubrics, pairs) to one model used; `failed` counts the requests without an answer."""

    requests: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0


@dataclass
class Effort:
    """What this run did for it. `kept`: answers of an earlier run, not asked for again; `seconds`: spent waiting."""

    sent: int = 0
    retries: int = 0
    kept: int = 0
    seconds: float = 0.0


@dataclass
class Ledger:
    """The account of a run. Its limits (None: no limit) are on USD, and on prompt and completion tokens together."""

    limit_usd: float | None = None
    limit_tokens: int | None = None
    usage: dict[tuple[str, str], Usage] = field(default_factory=dict)  # (what, model) -> usage
    effort: dict[tuple[str, str], Effort] = field(default_factory=dict)  # (what, model) -> effort

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
        """The row that this run's effort is added to."""
        return self.effort.setdefault((what, model), Effort())

    @property
    def usd(self) -> float:
        return sum(row.usd for row in self.usage.values())

    @property
    def tokens(self) -> int:
        return sum(row.prompt_tokens + row.completion_tokens for row in self.usage.values())

    def has_room(self, tokens: int = 0, usd: float = 0.0) -> bool:
        """Whether the limits leave room for so much more."""
        within_tokens = self.limit_tokens is None or self.tokens + tokens <= self.limit_tokens
        return within_tokens and (self.limit_usd is None or self.usd + usd <= self.limit_usd)

    def refuse(self) -> RunStopped:
        """The error to raise where there is no room: what is spent, what is kept, how to go on."""
        spent = []
        if self.limit_usd is not None:
            spent.append(f"{self.usd:.4f} of synthesis.budget_usd ({self.limit_usd:g})")
        if self.limit_tokens is not None:
            spent.append(f"{self.tokens:,} of synthesis.budget_tokens ({self.limit_tokens:,})")
        answers = sum(row.requests - row.failed for row in self.usage.values())
        return BudgetReached(
            f"the budget does not cover the next request: spent {' and '.join(spent)}. All {answers} "
            "answers are kept and will not be asked for again; raise the budget and run the same command to go on"
        )

    def report(self) -> dict[str, dict[str, float]]:
        """`what: model` -> the row of `usage`; the same for the same answers."""
        return {": ".join(key): asdict(row) | {"usd": round(row.usd, 6)} for key, row in sorted(self.usage.items())}

    def report_effort(self) -> dict[str, dict[str, float]]:
        """`what: model` -> the row of `effort`."""
        rows = sorted(self.effort.items())
        return {": ".join(key): asdict(row) | {"seconds": round(row.seconds, 3)} for key, row in rows}

    def restore(self, report: Mapping[str, Mapping[str, float]]) -> None:
        """Add the `report` of finished work that is not read again."""
        for name, counts in report.items():
            what, _, model = name.partition(": ")
            row = self.usage.setdefault((what, model), Usage())
            for key, count in counts.items():
                setattr(row, key, getattr(row, key) + count)

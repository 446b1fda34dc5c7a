"""What models were asked for, what they answered, and what that cost.

Counts and costs are the same however often a run was interrupted. What depends on the day (seconds, retries, answers
that an earlier run had left) is kept apart, as effort.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rubric_influence.core.checks import RunStopped
from rubric_influence.engines.base import Completion

MILLION = 1_000_000


class BudgetReached(RunStopped):
    """The budget is spent; the answers that came are kept."""


@dataclass
class Usage:
    """What one kind of request (rubrics, pairs) to one model used; `failed` counts the requests without an answer.

    `estimated`: of the answers, those whose tokens are estimates; `unseeded`: those drawn without a seed. A report has
    these two where there are any.
    """

    requests: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    estimated: int = 0
    unseeded: int = 0

    def report(self) -> dict[str, float]:
        row = asdict(self) | {"usd": round(self.usd, 6)}
        return {key: value for key, value in row.items() if value or key not in ("estimated", "unseeded")}


@dataclass
class Effort:
    """What this run did for it. `kept`: answers of an earlier run, not asked for again; `seconds`: spent waiting.

    `lost`: tries that gave no answer though the server had begun to give one, of earlier runs too, with what they may
    have cost; the budget covers it. `notes`: how the server wanted to be asked.
    """

    sent: int = 0
    retries: int = 0
    kept: int = 0
    seconds: float = 0.0
    lost: int = 0
    lost_tokens: int = 0
    lost_usd: float = 0.0
    notes: list[str] = field(default_factory=list)


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
            row.failed += bool(completion.failure) and completion.refused != "answer"
            row.estimated += completion.estimated
            row.unseeded += completion.unseeded
            row.prompt_tokens += completion.prompt_tokens
            row.completion_tokens += completion.completion_tokens
            row.usd += (completion.prompt_tokens * prices[0] + completion.completion_tokens * prices[1]) / MILLION

    def lose(self, what: str, model: str, tries: int, tokens: tuple[int, int], prices: tuple[float, float]) -> None:
        """Add tries without an answer, and the tokens of prompts and completions that they may have cost in all."""
        row = self.track(what, model)
        row.lost += tries
        row.lost_tokens += sum(tokens)
        row.lost_usd += (tokens[0] * prices[0] + tokens[1] * prices[1]) / MILLION

    def track(self, what: str, model: str) -> Effort:
        """The row that this run's effort is added to."""
        return self.effort.setdefault((what, model), Effort())

    @property
    def usd(self) -> float:
        """What was spent, lost tries included."""
        return sum(row.usd for row in self.usage.values()) + sum(row.lost_usd for row in self.effort.values())

    @property
    def tokens(self) -> int:
        """What was spent, lost tries included."""
        lost = sum(row.lost_tokens for row in self.effort.values())
        return sum(row.prompt_tokens + row.completion_tokens for row in self.usage.values()) + lost

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
        return {": ".join(key): row.report() for key, row in sorted(self.usage.items())}

    def report_effort(self) -> dict[str, dict[str, Any]]:
        """`what: model` -> the row of `effort`."""
        rows = sorted(self.effort.items())
        rounded = {key: {"seconds": round(row.seconds, 3), "lost_usd": round(row.lost_usd, 6)} for key, row in rows}
        return {": ".join(key): asdict(row) | rounded[key] for key, row in rows}

    def restore(self, report: Mapping[str, Mapping[str, float]]) -> None:
        """Add the `report` of finished work that is not read again."""
        for name, counts in report.items():
            what, _, model = name.partition(": ")
            row = self.usage.setdefault((what, model), Usage())
            for key, count in counts.items():
                setattr(row, key, getattr(row, key) + count)

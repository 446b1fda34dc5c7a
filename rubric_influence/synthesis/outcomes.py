"""What came of the requests of a run: why an answer cannot be used, and a ledger that stops a run of which most cannot.

A run is judged for each model and kind of record: by its answers from LEAST_ANSWERS on, before each further request,
and by the rubrics or pairs that are left without a valid record after all attempts, of however many. A limit of 1 stops
only a run of which all are lost.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from rubric_influence.core.checks import RunStopped
from rubric_influence.core.config import Synthesis
from rubric_influence.core.records import Written
from rubric_influence.engines.base import Completion
from rubric_influence.engines.ledger import Ledger
from rubric_influence.synthesis.parsing import ParsedPair, ParsedRubric, parse_pair, parse_rubric

RUBRICS, PAIRS = "rubrics", "pairs"  # what is asked for, as the ledger names it
FAILED = "request failed: "  # prefix of the problem of a record for which no answer came
REFUSED = "refused: "  # the same where the answer that came is a refusal
PARSERS: dict[str, Callable[[str], ParsedRubric | ParsedPair]] = {RUBRICS: parse_rubric, PAIRS: parse_pair}
LEAST_ANSWERS = 100  # fewer say little about the rest
MOST_SHOWN = 3  # problems in the message, the commonest


def explain(completion: Completion, problem: str) -> str:
    """Why a completion cannot be used, given the parser's problem; "" where it can."""
    if completion.failure:  # an answer that is a refusal is asked for again with another seed, as any that is invalid
        return (REFUSED if completion.refused == "answer" else FAILED) + completion.failure
    return problem if completion.finished or not problem else f"cut by max_tokens: {problem}"


@dataclass
class Tally:
    """Counts for one model and kind of record. `lost`: of the records asked for, those without a valid answer."""

    answers: int = 0
    problems: Counter[str] = field(default_factory=Counter)  # of answers that cannot be used
    unusable: int = 0  # their number
    asked: int = 0
    lost: int = 0
    sample: str = ""  # the last such answer

    def fails(self, most: float) -> bool:
        """Whether more than this part of the answers cannot be used, or of the records is lost, or all records are."""
        wasteful = self.answers >= LEAST_ANSWERS and self.unusable > most * self.answers
        return wasteful or self.lost > most * self.asked or 0 < self.asked == self.lost


@dataclass
class JudgedLedger(Ledger):
    """A ledger that has no room left once more than `most_failures` failed or cannot be used."""

    most_failures: float = 1.0
    tallies: defaultdict[tuple[str, str], Tally] = field(default_factory=lambda: defaultdict(Tally))  # (what, model)

    def count(
        self, what: str, model: str, completions: Iterable[Completion], prices: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        completions, tally = list(completions), self.tallies[what, model]
        super().count(what, model, completions, prices)
        for completion in completions:
            tally.answers += 1
            if problem := explain(completion, PARSERS[what](completion.text).problem):
                tally.unusable += 1
                tally.problems[problem] += 1
                tally.sample = completion.text or tally.sample

    def settle(self, what: str, model: str, records: Sequence[Written]) -> None:
        """Count the last record of everything that was asked for. Raises RunStopped where too much is lost."""
        tally = self.tallies[what, model]
        tally.asked += len(records)
        tally.lost += sum(bool(record.problem) for record in records)
        if tally.fails(self.most_failures):
            raise self.refuse()

    def has_room(self, tokens: int = 0, usd: float = 0.0) -> bool:
        failing = any(tally.fails(self.most_failures) for tally in self.tallies.values())
        return not failing and super().has_room(tokens, usd)

    def refuse(self) -> RunStopped:
        for (what, model), tally in self.tallies.items():
            if tally.fails(self.most_failures):
                return RunStopped(describe_failure(what, model, tally, self.most_failures))
        return super().refuse()


def describe_failure(what: str, model: str, tally: Tally, most: float) -> str:
    """What went wrong, how often, with a sample, and what to do."""
    common = tally.problems.most_common(MOST_SHOWN)
    reasons = "; ".join(f"{count} x {problem}" for problem, count in common)
    others = f" and {len(tally.problems) - len(common)} other reasons" if len(tally.problems) > len(common) else ""
    sample = f" One of them reads {tally.sample[:120]!r}." if tally.sample else ""
    return (
        f"{tally.unusable} of {tally.answers} answers of {model} for {what} cannot be used, more than "
        f"synthesis.most_failures ({most:g}) allows: {reasons}{others}.{sample} Mend the prompts, the model or its "
        "settings, or raise synthesis.most_failures. All answers are kept: what is asked in the same way is not asked "
        "for again"
    )


def open_ledger(settings: Synthesis) -> JudgedLedger:
    """An empty ledger with the limits of a profile."""
    return JudgedLedger(settings.budget_usd, settings.budget_tokens, most_failures=settings.most_failures)

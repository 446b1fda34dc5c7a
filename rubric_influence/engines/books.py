"""An endpoint's answers in journal and ledger: what is kept under which key, and what is counted."""

from dataclasses import dataclass

from rubric_influence.core.journal import Journal
from rubric_influence.engines.base import Completion
from rubric_influence.engines.faults import Tokens
from rubric_influence.engines.ledger import Effort, Ledger

MARKS = ("refused", "estimated", "unseeded")  # in the journal only where they say something


@dataclass(frozen=True)
class Books:
    """The books of one kind of request to one model; `prices` are USD for a million prompt and completion tokens."""

    journal: Journal | None
    ledger: Ledger
    what: str
    model: str
    prices: tuple[float, float]

    @property
    def effort(self) -> Effort:
        return self.ledger.track(self.what, self.model)

    def recall(self, key: str) -> Completion | None:
        """The answer of an earlier run, once it is counted, with the tries that gave none; None where there is none."""
        if self.journal is None:
            return None
        if lost := self.journal.values.get(name_lost(key)):
            tokens = lost["prompt_tokens"], lost["completion_tokens"]
            self.ledger.lose(self.what, self.model, lost["tries"], tokens, self.prices)
        if key not in self.journal:
            return None
        self.effort.kept += 1
        return self.count(Completion(**self.journal[key]))

    def keep(self, key: str, completion: Completion) -> None:
        """Write an answer to the journal. Raises OSError where there is no room for it."""
        if self.journal is not None:
            row = vars(completion).items()
            self.journal.add(key, {name: value for name, value in row if value or name not in MARKS})

    def count(self, completion: Completion) -> Completion:
        """The completion, once it is in the ledger."""
        self.ledger.count(self.what, self.model, [completion], self.prices)
        return completion

    def lose(self, key: str, tokens: Tokens) -> None:
        """Count a try that cost tokens and gave no answer, for the runs to come too. Raises OSError as `keep` does."""
        self.ledger.lose(self.what, self.model, 1, tokens, self.prices)
        if self.journal is not None:
            before = self.journal.values.get(name_lost(key), {})
            more = {"tries": 1, "prompt_tokens": tokens.prompt, "completion_tokens": tokens.completion}
            self.journal.add(name_lost(key), {name: before.get(name, 0) + count for name, count in more.items()})


def name_lost(key: str) -> str:
    """The journal's key for the tries of a request that gave no answer."""
    return f"{key} lost"

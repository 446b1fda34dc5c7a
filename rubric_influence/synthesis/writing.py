"""Documents to rubrics to question-answer pairs, with every rejected output kept and every answer asked for once.

Requests go to the engine in batches that depend only on the inputs, each finished batch is written to a journal, and
an interrupted run repeats nothing: the records are the same as an undisturbed run's.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import NamedTuple, TypeVar

from tqdm import tqdm

from rubric_influence.core.config import Prompts, Synthesis
from rubric_influence.core.journal import Journal
from rubric_influence.core.records import Document, QAPair, Rubric, content_id
from rubric_influence.core.seeds import seed_attempt, seed_batch
from rubric_influence.engines.base import Completion, Engine, Sampling
from rubric_influence.engines.ledger import Ledger
from rubric_influence.models.chat import Conversation
from rubric_influence.synthesis.parsing import PairOutput, RubricOutput, parse_pair, parse_rubric
from rubric_influence.synthesis.prompts import ask_pair, ask_rubric

Record = TypeVar("Record", Rubric, QAPair)
RUBRICS, PAIRS = "rubrics", "pairs"  # what is asked for, as the ledger says
FAILED = "request failed: "  # how the problem of a record begins that no answer came for


@dataclass(frozen=True)
class SynthesisContext:
    """What rubrics and pairs are made with, besides documents and models.

    `journal` keeps the answers of engines that do not keep them, `ledger` counts them and holds the budget.
    """

    prompts: Prompts
    settings: Synthesis
    seed: int
    journal: Journal
    ledger: Ledger = field(default_factory=Ledger)


class PairTask(NamedTuple):
    """One pair that a teacher is to write: about a document, by a rubric (None: without), as its `slot`-th."""

    document: Document
    rubric: Rubric | None
    slot: int


def identify(settings: Synthesis) -> dict:
    """What of the settings shapes the records; a budget only stops their making."""
    return settings.model_dump(exclude={"budget_usd", "budget_tokens", "window"})


def sample_rubrics(settings: Synthesis, seed: int) -> Sampling:
    """How a profile samples rubrics."""
    schema = RubricOutput if settings.constrained else None
    return Sampling(seed, settings.max_rubric_tokens, settings.temperature, settings.top_p, schema)


def sample_pairs(settings: Synthesis, seed: int) -> Sampling:
    """How a profile samples pairs."""
    schema = PairOutput if settings.constrained else None
    return Sampling(seed, settings.max_pair_tokens, settings.temperature, settings.top_p, schema)


def ask_for_pairs(tasks: Iterable[PairTask], prompts: Prompts) -> list[Conversation]:
    """What the teacher is asked for every task."""
    return [ask_pair(prompts, task.document.text, task.rubric.text if task.rubric else None) for task in tasks]


def read_rubric(completion: Completion, document: Document, author: str, seed: int, slot: int) -> Rubric:
    """The rubric in a completion, valid or with its problem.

    Where there is a problem, only `raw` is kept: what was parsed may hold what UTF-8 cannot.
    """
    text, problem = parse_rubric(completion.text)
    problem = FAILED + completion.failure if completion.failure else problem
    kept, raw = ("", completion.text) if problem else (text, "")
    return Rubric(kept, document.id, author, seed, slot, problem, raw)


def read_pair(completion: Completion, task: PairTask, teacher: str, seed: int) -> QAPair:
    """The pair in a completion, valid or with its problem; as `read_rubric`."""
    question, answer, problem = parse_pair(completion.text)
    problem = FAILED + completion.failure if completion.failure else problem
    kept, raw = (("", ""), completion.text) if problem else ((question, answer), "")
    rubric_id = task.rubric.id if task.rubric else ""
    return QAPair(*kept, task.document.id, rubric_id, teacher, seed, task.slot, problem, raw)


def generate_texts(
    engine: Engine, conversations: Sequence[Conversation], sampling: Sampling, what: str, context: SynthesisContext
) -> list[Completion]:
    """The engine's answers, in order, batch by batch; batches that the journal holds are not asked for again.

    An independent engine is asked for all at once, and keeps and counts its answers itself. Raises BudgetReached where
    the ledger has no room left.
    """
    if engine.independent:
        return engine.generate(conversations, sampling)
    journal, ledger = context.journal, context.ledger
    found: list[Completion] = []
    effort = ledger.track(what, engine.name)
    size = context.settings.batch_size
    for start in tqdm(range(0, len(conversations), size), desc=what, unit="batch", leave=False):
        batch = list(conversations[start : start + size])
        drawn = replace(sampling, seed=seed_batch(sampling.seed, start))
        shape = (drawn.temperature, drawn.top_p, drawn.max_tokens, drawn.schema is not None, drawn.seed)
        key = content_id("completions", engine.name, batch, *shape)
        if key in journal:
            effort.kept += len(batch)
        else:
            if not ledger.has_room():
                raise ledger.refuse()
            began = time.monotonic()
            completions = engine.generate(batch, drawn)
            effort.seconds += time.monotonic() - began
            effort.sent += len(batch)
            journal.add(key, [astuple(completion) for completion in completions])
        completions = [Completion(*parts) for parts in journal[key]]
        ledger.count(what, engine.name, completions)
        found += completions
    return found


def ask_until_valid(
    count: int, attempts: int, seed: int, request: Callable[[list[int], int], list[Record]]
) -> list[Record]:
    """One record for each of `count` slots, asking again for those with a problem, with every rejected one after them.

    `request(slots, seed)` makes a record for each of the slots. A slot that stays invalid keeps its last record, whose
    `problem` says why, so valid + invalid + failed records are as many as were requested. A failed request is not
    repeated here (its engine has tried), but by the next run.
    """
    final: dict[int, Record] = {}
    rejected: list[Record] = []
    pending = list(range(count))
    for attempt in range(attempts):
        for slot, record in zip(pending, request(pending, seed_attempt(seed, attempt)), strict=True):
            if slot in final:
                rejected.append(final[slot])
            final[slot] = record
        pending = [slot for slot in pending if final[slot].problem and not final[slot].problem.startswith(FAILED)]
        if not pending:
            break
    return [final[slot] for slot in range(count)] + rejected


def write_rubrics(
    engine: Engine, documents: Sequence[Document], per_document: int, context: SynthesisContext
) -> list[Rubric]:
    """`per_document` rubrics for every document, then the rejected ones (see `ask_until_valid`)."""
    slots = [(document, index) for document in documents for index in range(per_document)]

    def request(chosen: list[int], seed: int) -> list[Rubric]:
        asked = [ask_rubric(context.prompts, slots[slot][0].text) for slot in chosen]
        written = generate_texts(engine, asked, sample_rubrics(context.settings, seed), RUBRICS, context)
        return [
            read_rubric(completion, slots[slot][0], engine.name, seed, slots[slot][1])
            for slot, completion in zip(chosen, written, strict=True)
        ]

    return ask_until_valid(len(slots), context.settings.attempts, context.seed, request)


def deal_rubrics(texts: Sequence[str], author: str, documents: Sequence[Document], per_document: int) -> list[Rubric]:
    """Fixed rubric texts dealt in turn, so that every document sees each of them about equally often."""
    return [
        Rubric(texts[(index + place) % len(texts)], document.id, author, seed=0, slot=index)
        for place, document in enumerate(documents)
        for index in range(per_document)
    ]


def write_pairs(engine: Engine, tasks: Sequence[PairTask], context: SynthesisContext) -> list[QAPair]:
    """One pair for every task, then the rejected ones (see `ask_until_valid`)."""

    def request(chosen: list[int], seed: int) -> list[QAPair]:
        asked = ask_for_pairs((tasks[place] for place in chosen), context.prompts)
        written = generate_texts(engine, asked, sample_pairs(context.settings, seed), PAIRS, context)
        return [
            read_pair(completion, tasks[place], engine.name, seed)
            for place, completion in zip(chosen, written, strict=True)
        ]

    return ask_until_valid(len(tasks), context.settings.attempts, context.seed, request)


def follow_rubrics(documents: Sequence[Document], rubrics: Iterable[Rubric]) -> list[PairTask]:
    """The teacher's tasks: every valid rubric with the document that it was written for."""
    by_id = {document.id: document for document in documents}
    return [PairTask(by_id[rubric.document_id], rubric, rubric.slot) for rubric in rubrics if not rubric.problem]


def count_records(records: Sequence[Record]) -> dict[str, object]:
    """How many were requested, are valid, invalid (answered otherwise) and failed (not answered); they add up."""
    problems = Counter(record.problem for record in records if record.problem)
    failed = sum(count for problem, count in problems.items() if problem.startswith(FAILED))
    wrong = problems.total()
    counts = {"requested": len(records), "valid": len(records) - wrong, "invalid": wrong - failed, "failed": failed}
    return counts | {"problems": dict(problems)}

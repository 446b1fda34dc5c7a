"""Documents to rubrics to question-answer pairs, with every rejected output kept and every answer asked for once.

Requests go to the engine in batches that depend only on the inputs, and each finished batch is written to a journal.
So an interrupted run repeats nothing when it goes on, and ends with the records of an undisturbed one.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

from rubric_influence.core.config import Prompts, Synthesis
from rubric_influence.core.journal import Journal
from rubric_influence.core.records import Document, QAPair, Rubric, Written, content_id
from rubric_influence.core.seeds import seed_attempt, seed_batch
from rubric_influence.engines.base import Completion, Engine, Sampling
from rubric_influence.models.chat import Conversation
from rubric_influence.synthesis.outcomes import FAILED, PAIRS, RUBRICS, JudgedLedger, explain
from rubric_influence.synthesis.parsing import PairOutput, RubricOutput, parse_pair, parse_rubric
from rubric_influence.synthesis.prompts import ask_pair, ask_rubric

Task = TypeVar("Task")


@dataclass(frozen=True)
class SynthesisContext:
    """What rubrics and pairs are made with, besides documents and models."""

    prompts: Prompts
    settings: Synthesis
    seed: int
    journal: Journal  # keeps the answers of engines that do not keep them
    ledger: JudgedLedger = field(default_factory=JudgedLedger)  # counts these answers, holds the budget, judges them


class PairTask(NamedTuple):
    """One pair that a teacher is to write: the `slot`-th for a document and a rubric (None: without a rubric)."""

    document: Document
    rubric: Rubric | None
    slot: int


def identify(settings: Synthesis) -> dict[str, Any]:
    """The settings that shape the records. Others only stop a run or, as a window, cut it into parts."""
    return settings.model_dump(exclude={"most_failures", "budget_usd", "budget_tokens", "window"})


def sample_pairs(settings: Synthesis, seed: int) -> Sampling:
    schema = PairOutput if settings.constrained else None
    return Sampling(seed, settings.max_pair_tokens, settings.temperature, settings.top_p, schema)


def ask_for_pairs(tasks: Iterable[PairTask], prompts: Prompts) -> list[Conversation]:
    return [ask_pair(prompts, task.document.text, task.rubric.text if task.rubric else None) for task in tasks]


def read_rubric(completion: Completion, document: Document, author: str, seed: int, slot: int) -> Rubric:
    """The rubric in a completion, valid or with its problem.

    With a problem, the record has `raw` in place of a text: what was parsed may hold characters that UTF-8 cannot.
    """
    text, problem = parse_rubric(completion.text)
    problem = explain(completion, problem)
    kept, raw = ("", completion.text) if problem else (text, "")
    return Rubric(kept, document.id, author, seed, slot, problem, raw)


def read_pair(completion: Completion, task: PairTask, teacher: str, seed: int) -> QAPair:
    """The pair in a completion, valid or with its problem, as `read_rubric` reads a rubric."""
    question, answer, problem = parse_pair(completion.text)
    problem = explain(completion, problem)
    kept, raw = (("", ""), completion.text) if problem else ((question, answer), "")
    rubric_id = task.rubric.id if task.rubric else ""
    return QAPair(*kept, task.document.id, rubric_id, teacher, seed, task.slot, problem, raw)


def generate_texts(
    engine: Engine, conversations: Sequence[Conversation], sampling: Sampling, what: str, context: SynthesisContext
) -> list[Completion]:
    """The engine's answers, in order, batch by batch; batches that the journal holds are not asked for again.

    An independent engine is asked for all of them at once, and keeps and counts them itself. Raises BudgetReached
    where the ledger has no room left, and RunStopped where it finds that most answers cannot be used.
    """
    if engine.independent:
        return engine.generate(conversations, sampling)
    journal, ledger, size = context.journal, context.ledger, context.settings.batch_size
    effort, found = ledger.track(what, engine.name), []
    for start in tqdm(range(0, len(conversations), size), desc=what, unit="batch", leave=False):
        batch = list(conversations[start : start + size])
        drawn = replace(sampling, seed=seed_batch(sampling.seed, start))
        shape = (drawn.temperature, drawn.top_p, drawn.max_tokens, drawn.schema is not None, drawn.seed)
        key = content_id("completions", engine.name, batch, *shape)
        if key in journal:
            effort.kept += len(batch)
        elif not ledger.has_room():
            raise ledger.refuse()
        else:
            began = time.monotonic()
            written = engine.generate(batch, drawn)
            effort.seconds += time.monotonic() - began
            effort.sent += len(batch)
            journal.add(key, [astuple(completion) for completion in written])
        completions = [Completion(*parts) for parts in journal[key]]
        ledger.count(what, engine.name, completions)
        found += completions
    return found


def ask_until_valid(
    tasks: Sequence[Task], attempts: int, seed: int, request: Callable[[list[Task], int], list[Written]]
) -> list[Written]:
    """One record for every task, asking again for those with a problem, with every rejected record after them.

    `request(tasks, seed)` makes one record a task. A task whose records all have problems keeps the last one, whose
    `problem` says why; so valid + invalid + failed records are as many as were requested. A failed request, which its
    engine has tried several times, is repeated by the next run, not here.
    """
    final: dict[int, Written] = {}
    rejected: list[Written] = []
    pending = list(range(len(tasks)))
    for attempt in range(attempts):
        records = request([tasks[place] for place in pending], seed_attempt(seed, attempt))
        for place, record in zip(pending, records, strict=True):
            if place in final:
                rejected.append(final[place])
            final[place] = record
        pending = [place for place in pending if final[place].problem and not final[place].problem.startswith(FAILED)]
        if not pending:
            break
    return list(final.values()) + rejected


def write_rubrics(
    engine: Engine, documents: Sequence[Document], per_document: int, context: SynthesisContext
) -> list[Rubric]:
    """`per_document` rubrics for every document, then the rejected ones (see `ask_until_valid`).

    Raises RunStopped, as `write_pairs` does, where more are lost than synthesis.most_failures allows.
    """

    def request(tasks: list[tuple[Document, int]], seed: int) -> list[Rubric]:
        asked = [ask_rubric(context.prompts, document.text) for document, _ in tasks]
        sampling = Sampling(seed, settings.max_rubric_tokens, settings.temperature, settings.top_p, schema)
        read = zip(generate_texts(engine, asked, sampling, RUBRICS, context), tasks, strict=True)
        return [read_rubric(text, document, engine.name, seed, slot) for text, (document, slot) in read]

    settings = context.settings
    schema = RubricOutput if settings.constrained else None
    slots = [(document, slot) for document in documents for slot in range(per_document)]
    rubrics = ask_until_valid(slots, settings.attempts, context.seed, request)
    context.ledger.settle(RUBRICS, engine.name, rubrics[: len(slots)])
    return rubrics


def write_pairs(engine: Engine, tasks: Sequence[PairTask], context: SynthesisContext) -> list[QAPair]:
    """One pair for every task, then the rejected ones (see `ask_until_valid`)."""

    def request(chosen: list[PairTask], seed: int) -> list[QAPair]:
        asked = ask_for_pairs(chosen, context.prompts)
        written = generate_texts(engine, asked, sample_pairs(context.settings, seed), PAIRS, context)
        return [read_pair(text, task, engine.name, seed) for text, task in zip(written, chosen, strict=True)]

    pairs = ask_until_valid(tasks, context.settings.attempts, context.seed, request)
    context.ledger.settle(PAIRS, engine.name, pairs[: len(tasks)])
    return pairs


def deal_rubrics(texts: Sequence[str], author: str, documents: Sequence[Document], per_document: int) -> list[Rubric]:
    """Fixed rubric texts dealt in turn, so that every document sees each of them about equally often."""
    return [
        Rubric(texts[(index + place) % len(texts)], document.id, author, seed=0, slot=index)
        for place, document in enumerate(documents)
        for index in range(per_document)
    ]


def follow_rubrics(documents: Sequence[Document], rubrics: Iterable[Rubric]) -> list[PairTask]:
    """The teacher's tasks: every valid rubric with the document that it was written for."""
    by_id = {document.id: document for document in documents}
    return [PairTask(by_id[rubric.document_id], rubric, rubric.slot) for rubric in rubrics if not rubric.problem]


def write_set(
    generator: Engine, teacher: Engine, documents: Sequence[Document], per_document: int, context: SynthesisContext
) -> tuple[list[Rubric], list[QAPair]]:
    """`per_document` rubrics for every document and a pair for every valid rubric, with the rejected ones."""
    rubrics = write_rubrics(generator, documents, per_document, context)
    return rubrics, write_pairs(teacher, follow_rubrics(documents, rubrics), context)


def count_records(records: Sequence[Rubric | QAPair]) -> dict[str, object]:
    """How many were requested = valid + invalid (the answer cannot be used) + failed (no answer); and the problems."""
    problems = Counter(record.problem for record in records if record.problem)
    failed = sum(count for problem, count in problems.items() if problem.startswith(FAILED))
    valid, invalid = len(records) - problems.total(), problems.total() - failed
    return dict(requested=len(records), valid=valid, invalid=invalid, failed=failed, problems=dict(problems))

"""Documents to rubrics to question-answer pairs, with every rejected output kept and every answer asked for once.

Requests go to the engine in batches that depend only on the inputs, each finished batch is written to a journal, and
an interrupted run repeats nothing: the records are the same as an undisturbed run's.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple
from typing import TypeVar

from pydantic import BaseModel
from tqdm import tqdm

from rubric_influence.core.config import Prompts, Synthesis
from rubric_influence.core.journal import Journal
from rubric_influence.core.records import Document, QAPair, Rubric, content_id
from rubric_influence.engines.base import Completion, Engine
from rubric_influence.engines.ledger import Ledger
from rubric_influence.models.chat import Conversation
from rubric_influence.synthesis.parsing import PairOutput, RubricOutput, parse_pair, parse_rubric
from rubric_influence.synthesis.prompts import ask_pair, ask_rubric

Record = TypeVar("Record", Rubric, QAPair)
RUBRICS, PAIRS = "rubrics", "pairs"  # what is asked for, as the ledger says
FAILED = "request failed: "  # how the problem of a record begins that no answer came for


def identify(settings: Synthesis) -> dict:
    """What of the settings shapes the records; a budget only stops their making."""
    return settings.model_dump(exclude={"budget_usd", "budget_tokens", "window"})


def generate_texts(
    engine: Engine,
    conversations: Sequence[Conversation],
    settings: Synthesis,
    max_tokens: int,
    schema: type[BaseModel],
    seed: int,
    journal: Journal,
    what: str,
    ledger: Ledger,
) -> list[Completion]:
    """The engine's answers, in order, batch by batch; batches that the journal holds are not asked for again.

    An independent engine is asked for all at once, and keeps and counts its answers itself. Raises BudgetReached where
    the ledger has no room left.
    """
    sampling = dict(temperature=settings.temperature, top_p=settings.top_p, max_tokens=max_tokens)
    sampling["schema"] = schema if settings.constrained else None
    if engine.independent:
        return engine.generate(list(conversations), seed=seed, **sampling)
    found: list[Completion] = []
    effort = ledger.track(what, engine.name)
    starts = range(0, len(conversations), settings.batch_size)
    for start in tqdm(starts, desc=what, unit="batch", leave=False):
        batch = conversations[start : start + settings.batch_size]
        batch_seed = seed + start  # a part of the key: a document's prompts are alike, and may fill several batches
        shape = (settings.temperature, settings.top_p, max_tokens, settings.constrained, batch_seed)
        key = content_id("completions", engine.name, batch, *shape)
        if key in journal:
            effort.kept += len(batch)
        else:
            if not ledger.has_room():
                raise ledger.refuse()
            began = time.monotonic()
            completions = engine.generate(batch, seed=batch_seed, **sampling)
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
        for slot, record in zip(pending, request(pending, seed + 1_000_003 * attempt), strict=True):
            if slot in final:
                rejected.append(final[slot])
            final[slot] = record
        pending = [slot for slot in pending if final[slot].problem and not final[slot].problem.startswith(FAILED)]
        if not pending:
            break
    return [final[slot] for slot in range(count)] + rejected


def write_rubrics(
    engine: Engine,
    documents: Sequence[Document],
    per_document: int,
    prompts: Prompts,
    settings: Synthesis,
    seed: int,
    journal: Journal,
    ledger: Ledger | None = None,
) -> list[Rubric]:
    """`per_document` rubrics for every document, then the rejected ones (see `ask_until_valid`)."""
    slots = [(document, index) for document in documents for index in range(per_document)]
    ledger = ledger or Ledger()

    def request(chosen: list[int], seed: int) -> list[Rubric]:
        asked = [ask_rubric(prompts, slots[slot][0].text) for slot in chosen]
        written = generate_texts(
            engine, asked, settings, settings.max_rubric_tokens, RubricOutput, seed, journal, RUBRICS, ledger
        )
        records = []
        for slot, completion in zip(chosen, written, strict=True):
            document, index = slots[slot]
            rubric, problem = parse_rubric(completion.text)
            problem = FAILED + completion.failure if completion.failure else problem
            # Where there is a problem, only `raw` is kept: what was parsed may hold what UTF-8 cannot.
            kept, raw = ("", completion.text) if problem else (rubric, "")
            records.append(Rubric(kept, document.id, engine.name, seed, index, problem, raw))
        return records

    return ask_until_valid(len(slots), settings.attempts, seed, request)


def deal_rubrics(texts: Sequence[str], author: str, documents: Sequence[Document], per_document: int) -> list[Rubric]:
    """Fixed rubric texts dealt in turn, so that every document sees each of them about equally often."""
    return [
        Rubric(texts[(index + place) % len(texts)], document.id, author, seed=0, slot=index)
        for place, document in enumerate(documents)
        for index in range(per_document)
    ]


def write_pairs(
    engine: Engine,
    tasks: Sequence[tuple[Document, Rubric | None, int]],
    prompts: Prompts,
    settings: Synthesis,
    seed: int,
    journal: Journal,
    ledger: Ledger | None = None,
) -> list[QAPair]:
    """One pair for every (document, rubric or none, slot), then the rejected ones (see `ask_until_valid`)."""
    ledger = ledger or Ledger()

    def request(chosen: list[int], seed: int) -> list[QAPair]:
        asked = []
        for task in chosen:
            document, rubric, _ = tasks[task]
            asked.append(ask_pair(prompts, document.text, rubric.text if rubric else None))
        written = generate_texts(
            engine, asked, settings, settings.max_pair_tokens, PairOutput, seed, journal, PAIRS, ledger
        )
        records = []
        for task, completion in zip(chosen, written, strict=True):
            document, rubric, slot = tasks[task]
            question, answer, problem = parse_pair(completion.text)
            problem = FAILED + completion.failure if completion.failure else problem
            kept, raw = (("", ""), completion.text) if problem else ((question, answer), "")
            rubric_id = rubric.id if rubric else ""
            records.append(QAPair(*kept, document.id, rubric_id, engine.name, seed, slot, problem, raw))
        return records

    return ask_until_valid(len(tasks), settings.attempts, seed, request)


def follow_rubrics(documents: Sequence[Document], rubrics: Iterable[Rubric]) -> list[tuple[Document, Rubric, int]]:
    """The teacher's tasks: every valid rubric with the document that it was written for."""
    by_id = {document.id: document for document in documents}
    return [(by_id[rubric.document_id], rubric, rubric.slot) for rubric in rubrics if not rubric.problem]


def count_records(records: Sequence[Record]) -> dict[str, object]:
    """How many were requested, are valid, invalid (answered otherwise) and failed (not answered); they add up."""
    problems = Counter(record.problem for record in records if record.problem)
    failed = sum(count for problem, count in problems.items() if problem.startswith(FAILED))
    wrong = problems.total()
    counts = {"requested": len(records), "valid": len(records) - wrong, "invalid": wrong - failed, "failed": failed}
    return counts | {"problems": dict(problems)}

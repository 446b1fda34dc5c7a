"""Documents to rubrics to question-answer pairs, with every rejected output kept and every answer asked for once.

Requests go to the engine in batches that depend only on the inputs, each finished batch is written to a journal, and
an interrupted run repeats nothing: the records are the same as an undisturbed run's.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from pydantic import BaseModel
from tqdm import tqdm

from rubric_influence.config import Prompts, Synthesis
from rubric_influence.generation import Engine
from rubric_influence.journal import Journal
from rubric_influence.parsing import PairOutput, RubricOutput, parse_pair, parse_rubric
from rubric_influence.prompts import Conversation, ask_pair, ask_rubric
from rubric_influence.records import Document, QAPair, Rubric, content_id

Record = TypeVar("Record", Rubric, QAPair)


def generate_texts(
    engine: Engine,
    conversations: Sequence[Conversation],
    settings: Synthesis,
    max_tokens: int,
    schema: type[BaseModel],
    seed: int,
    journal: Journal,
    what: str,
) -> list[str]:
    """The engine's answers, in order, batch by batch; batches that the journal holds are not asked for again."""
    texts: list[str] = []
    starts = range(0, len(conversations), settings.batch_size)
    for start in tqdm(starts, desc=what, unit="batch", leave=False):
        batch = conversations[start : start + settings.batch_size]
        batch_seed = seed + start  # a part of the key: a document's prompts are alike, and may fill several batches
        key = content_id(
            engine.name, batch, settings.temperature, settings.top_p, max_tokens, settings.constrained, batch_seed
        )
        if key not in journal:
            completions = engine.generate(
                batch,
                seed=batch_seed,
                temperature=settings.temperature,
                top_p=settings.top_p,
                max_tokens=max_tokens,
                schema=schema if settings.constrained else None,
            )
            journal.add(key, [completion.text for completion in completions])
        texts += journal[key]
    return texts


def ask_until_valid(
    count: int, attempts: int, seed: int, request: Callable[[list[int], int], list[Record]]
) -> list[Record]:
    """One record for each of `count` slots, asking again for those with a problem, with every rejected one after them.

    `request(slots, seed)` makes a record for each of the slots. A slot that stays invalid keeps its last record, whose
    `problem` says why, so valid + invalid records are as many as were requested.
    """
    final: dict[int, Record] = {}
    rejected: list[Record] = []
    pending = list(range(count))
    for attempt in range(attempts):
        for slot, record in zip(pending, request(pending, seed + 1_000_003 * attempt), strict=True):
            if slot in final:
                rejected.append(final[slot])
            final[slot] = record
        pending = [slot for slot in pending if final[slot].problem]
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
) -> list[Rubric]:
    """`per_document` rubrics for every document, then the rejected ones (see `ask_until_valid`)."""
    slots = [(document, index) for document in documents for index in range(per_document)]

    def request(chosen: list[int], seed: int) -> list[Rubric]:
        asked = [ask_rubric(prompts, slots[slot][0].text) for slot in chosen]
        texts = generate_texts(
            engine, asked, settings, settings.max_rubric_tokens, RubricOutput, seed, journal, "rubrics"
        )
        records = []
        for slot, text in zip(chosen, texts, strict=True):
            document, index = slots[slot]
            rubric, problem = parse_rubric(text)
            # Where there is a problem, only `raw` is kept: what was parsed may hold what UTF-8 cannot.
            kept, raw = ("", text) if problem else (rubric, "")
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
) -> list[QAPair]:
    """One pair for every (document, rubric or none, slot), then the rejected ones (see `ask_until_valid`)."""

    def request(chosen: list[int], seed: int) -> list[QAPair]:
        asked = []
        for task in chosen:
            document, rubric, _ = tasks[task]
            asked.append(ask_pair(prompts, document.text, rubric.text if rubric else None))
        texts = generate_texts(engine, asked, settings, settings.max_pair_tokens, PairOutput, seed, journal, "pairs")
        records = []
        for task, text in zip(chosen, texts, strict=True):
            document, rubric, slot = tasks[task]
            question, answer, problem = parse_pair(text)
            kept, raw = (("", ""), text) if problem else ((question, answer), "")
            rubric_id = rubric.id if rubric else ""
            records.append(QAPair(*kept, document.id, rubric_id, engine.name, seed, slot, problem, raw))
        return records

    return ask_until_valid(len(tasks), settings.attempts, seed, request)


def follow_rubrics(documents: Sequence[Document], rubrics: Iterable[Rubric]) -> list[tuple[Document, Rubric, int]]:
    """The teacher's tasks: every valid rubric with the document that it was written for."""
    by_id = {document.id: document for document in documents}
    return [(by_id[rubric.document_id], rubric, rubric.slot) for rubric in rubrics if not rubric.problem]


def count_records(records: Sequence[Record]) -> dict[str, object]:
    """How many were requested, how many are valid, and the reasons of the others; the counts add up."""
    problems: dict[str, int] = {}
    for record in records:
        if record.problem:
            problems[record.problem] = problems.get(record.problem, 0) + 1
    invalid = sum(problems.values())
    return {"requested": len(records), "valid": len(records) - invalid, "invalid": invalid, "problems": problems}

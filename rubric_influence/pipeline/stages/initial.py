"""Stage 2: the initial synthetic set, from the rubric generator as it is before training."""

import pandas as pd

from rubric_influence.core.config import Config
from rubric_influence.core.files import read_records, write_json, write_records
from rubric_influence.core.fingerprints import fingerprint
from rubric_influence.core.journal import Journal
from rubric_influence.core.paths import DOCUMENTS, INITIAL, METRICS, seed_folder
from rubric_influence.core.records import Document, QAPair, Rubric, keep_valid
from rubric_influence.core.scratch import answers_path, scratch_folder
from rubric_influence.engines.ledger import Ledger
from rubric_influence.engines.open import open_engine
from rubric_influence.pipeline.jobs import run_jobs
from rubric_influence.synthesis.writing import (
    PAIRS,
    RUBRICS,
    SynthesisContext,
    count_records,
    follow_rubrics,
    identify,
    write_pairs,
    write_rubrics,
)


def make_initial_sets(config: Config) -> dict[int, tuple[list[Rubric], list[QAPair]]]:
    """Rubrics and pairs of the untrained generator for every seed, also written to data/initial."""
    results = run_jobs(make_initial_set, [(config, seed) for seed in config.seeds], config.machine)
    sets = dict(zip(config.seeds, results, strict=True))
    counts = {
        f"seed-{seed}": {"rubrics": count_records(rubrics), "pairs": count_records(pairs)}
        for seed, (rubrics, pairs, _) in sets.items()
    }
    ledgers = {f"seed-{seed}": ledger for seed, (_, _, ledger) in sets.items()}
    write_json(METRICS / "initial.json", {"sets": counts, "ledger": ledgers})
    return {seed: (rubrics, pairs) for seed, (rubrics, pairs, _) in sets.items()}


def make_initial_set(config: Config, seed: int) -> tuple[list[Rubric], list[QAPair], dict]:
    documents = read_records(DOCUMENTS, Document)
    settings, prompts, models = config.synthesis, config.prompts, config.models
    ledger = Ledger(settings.budget_usd, settings.budget_tokens)
    kept = Journal(answers_path("initial", seed))
    generator = open_engine(models.rubric_generator, settings.batch_size, journal=kept, ledger=ledger, what=RUBRICS)
    teacher = open_engine(models.teacher, settings.batch_size, journal=kept, ledger=ledger, what=PAIRS)
    identity = (fingerprint(models.rubric_generator), fingerprint(models.teacher), prompts, identify(settings), seed)
    journal = Journal(scratch_folder("initial", *identity) / "answers.jsonl")
    context = SynthesisContext(prompts, settings, seed, journal, ledger)
    rubrics = write_rubrics(generator, documents, config.budget.initial_pairs, context)
    pairs = write_pairs(teacher, follow_rubrics(documents, rubrics), context)
    write_json(journal.path.with_name("effort.json"), ledger.report_effort())
    write_records(seed_folder(INITIAL, seed) / "rubrics.jsonl", rubrics)
    write_records(seed_folder(INITIAL, seed) / "pairs.jsonl", pairs)
    return rubrics, pairs, ledger.report()


def tabulate_examples(
    documents: list[Document], rubrics: list[Rubric], pairs: list[QAPair], count: int
) -> pd.DataFrame:
    """The first valid pairs, each with its rubric and the start of its document."""
    texts = {document.id: document.text for document in documents}
    wording = {rubric.id: rubric.text for rubric in rubrics}
    return pd.DataFrame(
        [
            {
                "document": texts[pair.document_id][:80] + " ...",
                "rubric": wording.get(pair.rubric_id, ""),
                "question": pair.question,
                "answer": pair.answer,
            }
            for pair in keep_valid(pairs)[:count]
        ]
    )

"""Stage 2: the initial synthetic set, from the rubric generator as it is before training."""

import pandas as pd

from rubric_influence.core.config import Config
from rubric_influence.core.files import read_records, write_json, write_records
from rubric_influence.core.paths import DOCUMENTS, INITIAL, METRICS, seed_folder
from rubric_influence.core.records import Document, QAPair, Rubric, keep_valid
from rubric_influence.pipeline.jobs import run_seeds
from rubric_influence.pipeline.sets import ArmSet
from rubric_influence.pipeline.writers import open_writers
from rubric_influence.synthesis.writing import PAIRS, RUBRICS, count_records, follow_rubrics, write_pairs, write_rubrics


def make_initial_sets(config: Config) -> dict[int, ArmSet]:
    """The untrained generator's rubrics and pairs by seed; also data/initial and, counted, metrics/initial.json."""
    results = run_seeds(make_initial_set, config)
    counts = {
        f"seed-{seed}": {"rubrics": count_records(made.rubrics), "pairs": count_records(made.pairs)}
        for seed, (made, _) in results.items()
    }
    ledgers = {f"seed-{seed}": ledger for seed, (_, ledger) in results.items()}
    write_json(METRICS / "initial.json", {"sets": counts, "ledger": ledgers})
    return {seed: made for seed, (made, _) in results.items()}


def make_initial_set(config: Config, seed: int) -> tuple[ArmSet, dict[str, dict]]:
    """One seed's set, and what it cost (Ledger.report)."""
    documents, models = read_records(DOCUMENTS, Document), config.models
    asked = [(models.rubric_generator, RUBRICS), (models.teacher, PAIRS)]
    (generator, teacher), context = open_writers("initial", config, seed, asked)
    rubrics = write_rubrics(generator, documents, config.budget.initial_pairs, context)
    made = ArmSet(rubrics, write_pairs(teacher, follow_rubrics(documents, rubrics), context))
    write_json(context.journal.path.with_name("effort.json"), context.ledger.report_effort())
    write_records(seed_folder(INITIAL, seed) / "rubrics.jsonl", made.rubrics)
    write_records(seed_folder(INITIAL, seed) / "pairs.jsonl", made.pairs)
    return made, context.ledger.report()


def tabulate_examples(
    documents: list[Document], rubrics: list[Rubric], pairs: list[QAPair], count: int
) -> pd.DataFrame:
    """The first `count` valid pairs, each with its rubric and the start of its document."""
    texts = {document.id: document.text for document in documents}
    wording = {rubric.id: rubric.text for rubric in rubrics}
    rows = [
        (texts[pair.document_id][:80] + " ...", wording.get(pair.rubric_id, ""), pair.question, pair.answer)
        for pair in keep_valid(pairs)[:count]
    ]
    return pd.DataFrame(rows, columns=["document", "rubric", "question", "answer"])

"""Stage 10: what the run says, from what earlier stages wrote."""

import pandas as pd

from rubric_influence.core.config import Config
from rubric_influence.core.files import read_records
from rubric_influence.core.paths import ANSWERS, FINAL, seed_folder
from rubric_influence.core.records import QAPair, Rubric, keep_valid
from rubric_influence.lab.coverage import tabulate_choices
from rubric_influence.lab.world import load_field

COMPARED = ("initial", "optimised")


def tabulate_topics() -> pd.DataFrame:
    """Accuracy in per cent by arm and exam topic, mean over seeds; one column where the exam names no topics."""
    answers = pd.read_parquet(ANSWERS)
    answers["topic"] = answers["topic"].replace("", "(all)")
    arms = answers["arm"].unique()
    table = answers.pivot_table(index="arm", columns="topic", values="correct", aggfunc="mean")
    return (100 * table.loc[arms]).round(1)


def tabulate_rubric_choices(config: Config) -> pd.DataFrame:
    """Shares of what initial and optimised rubrics ask for, over all seeds; only the lab's can be read so."""
    field = load_field(config.corpus.field)
    return pd.DataFrame(
        {
            arm: tabulate_choices(field, [r.text for seed in config.seeds for r in keep_valid(read_rubrics(arm, seed))])
            for arm in COMPARED
        }
    )


def tabulate_rubrics(seed: int, count: int) -> pd.DataFrame:
    """The first rubrics of the initial and of the optimised generator, each with a pair that it led to."""
    rows = []
    for arm in COMPARED:
        pairs = {
            p.rubric_id: p for p in keep_valid(read_records(seed_folder(FINAL / arm, seed) / "pairs.jsonl", QAPair))
        }
        shown = [rubric for rubric in read_rubrics(arm, seed) if rubric.id in pairs][:count]
        rows += [
            {"arm": arm, "rubric": r.text, "question": pairs[r.id].question, "answer": pairs[r.id].answer}
            for r in shown
        ]
    return pd.DataFrame(rows)


def read_rubrics(arm: str, seed: int) -> list[Rubric]:
    return read_records(seed_folder(FINAL / arm, seed) / "rubrics.jsonl", Rubric)

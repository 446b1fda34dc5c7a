"""Stage 10: what the run says, from what earlier stages wrote."""

import pandas as pd

from rubric_influence.core.corpus_sections import LabCorpus
from rubric_influence.core.files import write_json
from rubric_influence.core.paths import ANSWERS, FINAL, METRICS
from rubric_influence.lab.coverage import tabulate_choices
from rubric_influence.lab.world import load_field
from rubric_influence.pipeline.headline import collect_headline
from rubric_influence.pipeline.sets import read_pairs, read_rubrics

COMPARED = ("initial", "optimised")


def report_headline() -> dict[str, object]:
    """The headline figures (`collect_headline`), also written to metrics/headline.json."""
    figures = collect_headline(METRICS)
    write_json(METRICS / "headline.json", figures)
    return figures


def tabulate_topics() -> pd.DataFrame:
    """Accuracy in per cent by arm and exam topic, mean over seeds; one column where the exam names no topics.

    Where the exam has open questions alone, nats a token of the right answer.
    """
    answers = pd.read_parquet(ANSWERS)
    answers["topic"] = answers["topic"].replace("", "(all)")
    by_accuracy = bool(answers["accuracy"].notna().any())
    measure, unit, digits = ("accuracy", 100, 1) if by_accuracy else ("answer_nats", 1, 3)
    table = answers.pivot_table(index="arm", columns="topic", values=measure, aggfunc="mean")
    return (unit * table.loc[answers["arm"].unique()]).round(digits)


def tabulate_rubric_choices(corpus: LabCorpus, seeds: list[int]) -> pd.DataFrame:
    """Shares of what initial and optimised rubrics ask for, over all seeds; only the lab's can be read so."""
    field = load_field(corpus.field)
    texts = {arm: [rubric.text for seed in seeds for rubric in read_rubrics(FINAL / arm, seed)] for arm in COMPARED}
    return pd.DataFrame({arm: tabulate_choices(field, written) for arm, written in texts.items()})


def tabulate_rubrics(seed: int, count: int) -> pd.DataFrame:
    """The first `count` rubrics of the initial and of the optimised generator, each with a pair that it led to."""
    rows = []
    for arm in COMPARED:
        pairs = {pair.rubric_id: pair for pair in read_pairs(FINAL / arm, seed)}
        shown = [rubric for rubric in read_rubrics(FINAL / arm, seed) if rubric.id in pairs][:count]
        rows += [(arm, rubric.text, pairs[rubric.id].question, pairs[rubric.id].answer) for rubric in shown]
    return pd.DataFrame(rows, columns=["arm", "rubric", "question", "answer"])

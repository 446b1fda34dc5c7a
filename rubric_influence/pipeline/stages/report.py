"""Stage 10: what the run says, from what earlier stages wrote."""

import json

import numpy as np
import pandas as pd

from rubric_influence.core.corpus_sections import LabCorpus
from rubric_influence.core.files import write_json
from rubric_influence.core.paths import ANSWERS, FINAL, METRICS, seed_folder
from rubric_influence.core.text import split_words
from rubric_influence.evaluation.intervals import interval
from rubric_influence.lab.coverage import tabulate_choices
from rubric_influence.lab.world import load_field
from rubric_influence.pipeline.headline import collect_headline
from rubric_influence.pipeline.sets import read_pairs, read_rubrics
from rubric_influence.rl.scores import VALIDATION

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


def read_influence(seed: int) -> dict[str, pd.Series]:
    """Arm -> the influence of its valid pairs on the validation questions, of one seed: seeds have no common scale."""
    found = {}
    for arm in COMPARED:
        lines = (seed_folder(FINAL / arm, seed) / "traces.jsonl").read_text(encoding="utf-8").splitlines()
        values = [json.loads(line)["influence"][VALIDATION] for line in lines]
        found[arm] = pd.Series([value for value in values if value is not None], dtype=float)
    return found


def tabulate_terms(seeds: list[int], count: int, resamples: int = 1000) -> pd.DataFrame:
    """The words whose share of rubrics rose and fell most from initial to optimised, at most `count` of each.

    A row a word: change, low, high, in points; the 95 % interval is of a bootstrap over rubrics. Words whose interval
    holds 0 are left out.
    """
    words = {
        arm: [set(split_words(r.text)) for seed in seeds for r in read_rubrics(FINAL / arm, seed)] for arm in COMPARED
    }
    known = sorted(set().union(*words["initial"], *words["optimised"]))
    rng, shares = np.random.default_rng(0), {}
    for arm, sets in words.items():
        has_rw = np.array([[word in found for word in known] for found in sets], dtype=float)
        weights_br = rng.multinomial(len(sets), [1 / len(sets)] * len(sets), size=resamples) / len(sets)
        shares[arm] = (100 * has_rw.mean(axis=0), 100 * weights_br @ has_rw)
    (before, drawn_before), (after, drawn_after) = shares.values()
    ends = [interval(drawn_w) for drawn_w in (drawn_after - drawn_before).T]
    table = pd.DataFrame(ends, index=known, columns=["low", "high"]).assign(change=after - before)
    sure = table[(table["low"] > 0) | (table["high"] < 0)].sort_values("change", ascending=False, kind="stable")
    rising, falling = sure[sure["change"] > 0].head(count), sure[sure["change"] < 0].tail(count)
    return pd.concat([rising, falling])[["change", "low", "high"]]

import json
import math

import pytest

from rubric_influence.core.files import write_json, write_records
from rubric_influence.core.paths import FINAL, METRICS, seed_folder
from rubric_influence.core.records import QAPair, Rubric
from rubric_influence.pipeline.stages.final import tabulate_sets
from rubric_influence.pipeline.stages.report import read_influence, tabulate_terms


@pytest.fixture
def in_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_rubrics(arm, texts):
    rubrics = [Rubric(text, f"document {place}", "generator", 0, 0) for place, text in enumerate(texts)]
    write_records(seed_folder(FINAL / arm, 0) / "rubrics.jsonl", rubrics)


def test_words_that_rose_and_fell_are_told_from_those_that_may_not_have(in_project):
    write_rubrics("initial", ["Ask for the year."] * 30 + ["Ask for the dose."] * 10)
    write_rubrics("optimised", ["Ask for the dose."] * 39 + ["Ask for the name."])
    terms = tabulate_terms([0], count=5)
    assert terms.loc["dose", "change"] == pytest.approx(100 * (39 - 10) / 40)
    assert terms.loc["year", "change"] == pytest.approx(-75)
    assert list(terms.index) == ["dose", "year"]  # "ask", "for" and "the" stayed; "name" may be chance
    assert ((terms["low"] <= terms["change"]) & (terms["change"] <= terms["high"])).all()
    assert tabulate_terms([0], count=5).equals(terms)


def test_equal_rubrics_changed_no_word(in_project):
    for arm in ("initial", "optimised"):
        write_rubrics(arm, ["Ask for the year."] * 5)
    assert tabulate_terms([0], count=5).empty


def test_influence_is_of_valid_pairs_alone(in_project):
    for arm, values in {"initial": [1.5, None, -2.0], "optimised": [3.0]}.items():
        lines = [json.dumps({"id": "x", "flags": {}, "influence": {"validation": v, "guard": v}}) for v in values]
        path = seed_folder(FINAL / arm, 0) / "traces.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(lines) + "\n")
    found = read_influence(0)
    assert found["initial"].tolist() == [1.5, -2.0] and found["optimised"].tolist() == [3.0]


def test_the_table_of_sets_counts_over_seeds(in_project, lab_config):
    counts = {}
    for seed, answers in {0: ["5mg", "ten mg"], 1: ["a dose of 5mg", "x"]}.items():
        pairs = [QAPair("what dose ?", answer, "d", "r", "t", seed, slot) for slot, answer in enumerate(answers)]
        pairs.append(QAPair("", "", "d", "r", "t", seed, 2, problem="no JSON object"))
        write_records(seed_folder(FINAL / "initial", seed) / "pairs.jsonl", pairs)
        counts[f"seed-{seed}"] = {
            "pairs": {"requested": 3, "valid": 2},
            "quality": {"flagged": {"near_duplicate": seed}},
            "distinct_questions": 1,
        }
    METRICS.mkdir()
    write_json(METRICS / "final.json", {"arms": {"initial": counts}})
    row = tabulate_sets(lab_config({"seeds": [0, 1]})).loc["initial"]
    assert row.to_dict() == {
        "pairs": 4,
        "valid %": pytest.approx(200 / 3),
        "distinct questions %": 50,
        "near duplicates %": 25,
        "with words of the exam %": 0,
        "words of a question": 3,
        "words of an answer": (1 + 2 + 4 + 1) / 4,
        "MTLD": 8,  # 16 words, which twice fall to 72 % different ones, read either way
        "HD-D": pytest.approx(math.nan, nan_ok=True),  # wants 42
    }

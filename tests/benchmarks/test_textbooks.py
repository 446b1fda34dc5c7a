"""The gate and the run on a book, on a tiny random model and a server that answers as a teacher."""

import json
from pathlib import Path

import numpy as np
import pytest
from book_samples import write_lakes
from faulty_server import FaultyServer

from benchmarks.textbooks.gate import BY_MEANING, GAINS, POOLS, PREDICTIONS, compare_meanings, make_case, measure_gate
from benchmarks.textbooks.runs import count_kinds, run_book
from benchmarks.textbooks.summary import describe
from rubric_influence.core.config import Config, WarmStart
from rubric_influence.core.records import ExamItem, Rubric

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def configure(lab_config, subword_model, embedder, tmp_path, monkeypatch):
    """A function from a server's address to the profile, in a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book").mkdir()
    write_lakes(tmp_path / "book", chapters=4, size=6)
    model = {"path": str(subword_model), "dtype": "float32", "attention": "eager"}

    def make(url):
        base = lab_config().model_dump(mode="json")
        changes = {
            "corpus": {"kind": "book", "path": str(tmp_path / "book"), "seed": 0, "validation": 0.3, "guard": 0.2},
            "models": {
                "rubric_generator": model,
                "teacher": {"path": "teacher", "engine": "openai", "endpoint": {"base_url": url}},
                "target": model,
            },
            "quality": {"embedder": str(embedder)},
            "budget": {"initial_pairs": 6, "final_pairs": 6},
            "warmup": base["warmup"] | {"fraction": 0.3, "epochs": 1, "batch_size": 4, "max_tokens": 256},
            "finetuning": base["finetuning"] | {"max_tokens": 256},
            "gate": base["gate"] | {"sets": 8, "set_size": 2, "epochs": 1, "batch_size": 2, "learning_rate": 0.01},
            "influence": base["influence"] | {"batch_tokens": 2000},
            "synthesis": base["synthesis"] | {"constrained": True, "most_failures": 1.0},
        }
        return Config.model_validate_json(json.dumps(base | changes))

    return make


def test_a_gate_has_every_figure_and_goes_on_where_it_was_stopped(configure, tmp_path):
    with FaultyServer(malformed=0.0) as server:
        config = configure(server.url)
        found = measure_gate(config)
        asked = sum(server.answered.values())
        assert measure_gate(config) == found and sum(server.answered.values()) == asked > 0
    assert set(found["pools"]) == set(POOLS) and found["sets"] == 8
    names = (*PREDICTIONS, BY_MEANING)
    for draw in ("teacher", "mixed"):
        for gain in GAINS:
            figures = found[draw][gain]
            assert set(figures) == {"mean_gain", *names}
            assert all(0 <= figures[name]["r2"] <= 1 for name in names)
    assert found["influence_r2"] == found["teacher"]["answer_nats"]["influence"]["r2"]
    assert all(-1 <= found["halves_cosine"][name] <= 1 for name in ("influence", "contrast", "contrast_by_length"))
    tables = describe({"gate": {"lakes/tiny": found}, "runs": {}})
    assert all(tables.count(f"| {name} |") == 3 for name in names)


def test_meanings_are_compared_with_the_mean_over_validation_questions():
    vectors = {"q a": [1.0, 0.0], "r b": [0.6, 0.8], "s c": [0.0, 1.0]}
    one, two, three = (ExamItem(text[0], (text[2],), 0, "validation") for text in vectors)

    def embed(texts):
        return np.array([vectors[text] for text in texts])

    np.testing.assert_allclose(compare_meanings(embed, [one, two], [one, three]), [0.5, 0.7])


def test_pools_are_of_one_size_and_the_false_one_has_the_terms_of_others(configure, tmp_path):
    with FaultyServer(malformed=0.0) as server:
        case = make_case(configure(server.url), tmp_path)
    assert len({len(pool) for pool in case.pools.values()}) == 1 and case.warm_up
    right = {pair.question: pair.answer for pair in case.pools["term"]}
    false = {pair.question: pair.answer for pair in case.pools["false"]}
    assert all(right[question] != false[question] for question in right.keys() & false.keys())
    assert not {item.id for item in case.validation} & {item.id for item in case.guard}
    assert np.isfinite([len(pool) for pool in case.pools.values()]).all()


def test_a_run_compares_its_arms_and_goes_on_where_it_was_stopped(configure, tmp_path):
    arms = ("untuned", "no_rubric", "initial")
    (tmp_path / "other").mkdir()
    other = write_lakes(tmp_path / "other", chapters=1, size=3)
    with FaultyServer(malformed=0.0) as server:
        config = configure(server.url)
        found = run_book(config, arms, other)
        asked = sum(server.answered.values())
        assert run_book(config, arms[:1], other) == found and sum(server.answered.values()) == asked > 0
    assert list(found["arms"]) == list(arms)
    for arm, row in found["arms"].items():
        assert 0 <= row["accuracy"] <= 1 and row["option_nats"] > 0 and row["passage_nats"] > 0
        gain = row["answer_nats_gain_over_initial"]
        assert gain["mean"] == pytest.approx(found["arms"]["initial"]["answer_nats"] - row["answer_nats"], abs=2e-4)
        assert (row["pairs"] == [0]) == (arm == "untuned")
    assert describe({"gate": {}, "runs": {"lakes/tiny": found}}).count("| no_rubric |") == 1


def test_rubrics_are_counted_by_the_seed_rubric_that_they_are_nearest_to(configure):
    config = configure("http://127.0.0.1:1")
    start = config.finetuning.model_dump() | {"base": config.models.target, "rubrics": ["Ask for a term.", "Ask why."]}
    config = config.model_copy(update={"warm_start": WarmStart(**start)})
    rubrics = [Rubric(text, "d", "m", 0, 0) for text in ("Ask why it is so.", "A term, ask for it.", "Say why.")]
    assert count_kinds(config, rubrics) == {"Ask why.": 0.66667, "Ask for a term.": 0.33333}
    assert count_kinds(config, []) == {}


def test_the_page_shows_what_the_committed_figures_say():
    found = json.loads((REPOSITORY / "benchmarks/results/textbooks.json").read_text(encoding="utf-8"))
    assert describe(found) in (REPOSITORY / "docs/textbooks.md").read_text(encoding="utf-8")

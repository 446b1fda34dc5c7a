import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.core.records import ExamItem
from rubric_influence.core.scratch import Workplace
from rubric_influence.evaluation.harness import evaluate
from rubric_influence.evaluation.intervals import bootstrap_means, summarise
from rubric_influence.lab import world
from rubric_influence.models.examples import encode
from rubric_influence.models.loading import load_model, load_tokenizer
from rubric_influence.training.fine_tuning import TuningRun, fine_tune, list_checkpoints, load_fine_tuned

# As Qwen3's: the finished turn holds a thought block, the generation prompt only where thinking is switched off.
THOUGHTFUL = (
    "{% for m in messages %}<|{{ m['role'] }}|> {% if m['role'] == 'assistant' %}first , second , {% endif %}"
    "{{ m['content'] }} <|end|> {% endfor %}{% if add_generation_prompt %}<|assistant|> "
    "{% if enable_thinking is defined and not enable_thinking %}first , second , {% endif %}{% endif %}"
)


@pytest.fixture(scope="module")
def config(lab_config):
    return lab_config()


@pytest.fixture(scope="module")
def shipped(config):
    return load_model(config.models.target), load_tokenizer(config.models.target)


@pytest.fixture(scope="module")
def items(medicine):
    """200 of the 800 questions about 100 entities, as the exam asks them."""
    rng = random.Random(0)
    questions = world.write_exam(medicine, world.draw_entities(medicine, 100, rng), rng)
    return [ExamItem(q.question, q.options, q.answer_index, "test", q.topic) for q in rng.sample(questions, 200)]


def answer_naively(model, tokenizer, items, template):
    """One option at a time: the log-likelihood of its tokens after all that comes before them in training."""
    right = []
    for item in items:
        likelihoods = []
        for option in item.options:
            example = encode(tokenizer, item.question, option, template)
            length = len(tokenizer(option, add_special_tokens=False)["input_ids"])
            start = len(example.input_ids) - length - 1  # the end token follows the answer
            with torch.no_grad():
                logits = model(torch.tensor([example.input_ids])).logits[0].log_softmax(-1)
            tokens = example.input_ids[start : start + length]
            assert tokenizer.decode(tokens) == option
            likelihoods.append(sum(logits[start + i - 1, token].item() for i, token in enumerate(tokens)))
        right.append(int(np.argmax(likelihoods)) == item.answer_index)
    return np.array(right)


@pytest.mark.parametrize("template", [None, THOUGHTFUL], ids=["lab template", "with a thought block"])
def test_answers_are_those_of_a_loop_over_options(config, shipped, items, template):
    model, tokenizer = shipped[0], load_tokenizer(config.models.target)
    tokenizer.chat_template = template or tokenizer.chat_template
    correct = evaluate(model, tokenizer, items[:40], config.prompts, batch_size=16)
    assert correct.dtype == bool and 0 < correct.sum() < 40
    assert correct.tolist() == answer_naively(model, tokenizer, items[:40], "{question}").tolist()


def test_options_of_several_words_and_of_any_number_are_scored_whole(config, shipped):
    model, tokenizer = shipped
    question = "what is the mechanism of velomab ?"
    items = [
        ExamItem(question, ("calcium-block .", "velomab acts by dna-binding .", "folate-block"), 2, "test"),
        ExamItem(question, ("a drug", "dna-binding"), 0, "test"),
        ExamItem("name the dose of zorvax .", ("5mg", "given at 5mg", "10mg", "a", "red"), 0, "test"),
    ]
    correct = evaluate(model, tokenizer, items, config.prompts, batch_size=2)
    assert correct.tolist() == answer_naively(model, tokenizer, items, "{question}").tolist()


def test_questions_are_asked_in_the_profiles_words(lab_config, shipped, items):
    template = "consider the drug . {question}"
    prompts = lab_config({"prompts": {"answer": template}}).prompts
    correct = evaluate(*shipped, items[:40], prompts, batch_size=16)
    assert correct.tolist() == answer_naively(*shipped, items[:40], template).tolist()


def test_answers_do_not_depend_on_batch_size_or_order(config, shipped, items):
    whole = evaluate(*shipped, items[:60], config.prompts, batch_size=64)
    assert evaluate(*shipped, items[:60], config.prompts, batch_size=1).tolist() == whole.tolist()
    assert evaluate(*shipped, items[:60][::-1], config.prompts, batch_size=7)[::-1].tolist() == whole.tolist()


def test_the_untuned_model_answers_at_chance(config, shipped, items):
    # No document states these facts, so it guesses: 0.25, standard error 0.031.
    assert evaluate(*shipped, items, config.prompts, batch_size=64).mean() == pytest.approx(0.25, abs=0.1)


def test_a_model_trained_on_the_answers_knows_them(lab_config, items, draw_pairs, tmp_path):
    config = lab_config({"finetuning": {"epochs": 20, "batch_size": 8}})
    learnt = items[:16]
    pairs = [
        replace(pair, question=item.question, answer=item.answer)
        for item, pair in zip(learnt, draw_pairs(16), strict=True)
    ]
    spec = config.models.target
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    fine_tune(TuningRun(spec, config.prompts, config.lora, config.finetuning, 0), pairs, Workplace(out, scratch))
    model = load_fine_tuned(spec, list_checkpoints(out)[-1])
    assert evaluate(model, load_tokenizer(spec), learnt, config.prompts, batch_size=64).mean() >= 0.9


# ---------------------------------------------------------------- intervals

A = np.array([[1, 0, 1, 1], [0, 0, 1, 1]], dtype=bool)  # two seeds, four items
B = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], dtype=bool)


def test_figures_of_arms_are_means_over_items_and_seeds():
    figures = summarise({"a": A, "b": B}, "a", count=500, seed=0)
    assert (figures["a"]["accuracy"], figures["a"]["mean"]) == ([0.75, 0.5], 0.625)
    assert (figures["b"]["accuracy"], figures["b"]["mean"]) == ([1.0, 0.75], 0.875)
    assert figures["b"]["gain_over_a"]["mean"] == 0.25
    for row in figures.values():
        low, high = row["ci95"]
        assert 0 <= low < row["mean"] < high <= 1


def test_arms_that_answer_alike_differ_by_exactly_nothing():
    figures = summarise({"a": A, "same": A.copy(), "b": B}, "a", count=500, seed=0)
    for arm in ("a", "same"):
        assert figures[arm]["gain_over_a"] == {"mean": 0.0, "ci95": [0.0, 0.0]}
        assert figures[arm]["ci95"] == figures["a"]["ci95"]
    low, high = figures["b"]["gain_over_a"]["ci95"]
    assert low < high


def test_a_difference_on_easy_and_hard_items_alike_is_surer_than_either_arm():
    # Item difficulty varies, the difference between arms hardly: paired draws cancel the items.
    rng = np.random.default_rng(0)
    base = np.tile(rng.random(400) < 0.5, (2, 1))
    better = base.copy()
    better[:, rng.choice(400, 20, replace=False)] = True
    figures = summarise({"base": base, "better": better}, "base", count=1000, seed=0)
    gain, arm = figures["better"]["gain_over_base"]["ci95"], figures["better"]["ci95"]
    assert gain[1] - gain[0] < (arm[1] - arm[0]) / 3


def test_an_interval_has_the_width_of_a_binomials():
    # One seed, 400 items, half right: 2 * 1.96 * sqrt(0.25 / 400) = 0.098.
    correct = np.arange(400)[None] % 2 == 0
    low, high = summarise({"a": correct}, "a", count=4000, seed=0)["a"]["ci95"]
    assert high - low == pytest.approx(0.098, rel=0.1)
    assert (low + high) / 2 == pytest.approx(0.5, abs=0.01)


def test_seeds_are_drawn_as_well_as_items():
    # One seed all right, one all wrong: half of the draws of two seeds are of one seed alone.
    correct = np.array([[True] * 50, [False] * 50])
    assert summarise({"a": correct}, "a", count=500, seed=0)["a"]["ci95"] == [0.0, 1.0]


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 6))
def test_bootstrap_means_are_means_of_the_drawn_answers(seed, seeds, items):
    correct_asi = np.random.default_rng(seed).random((2, seeds, items)) < 0.5
    means = bootstrap_means(correct_asi, 20, seed)
    assert means.shape == (20, 2)
    assert ((means >= 0) & (means <= 1)).all()
    assert np.allclose(means * seeds * items, np.round(means * seeds * items))
    assert (means == bootstrap_means(correct_asi, 20, seed)).all()
    everything = np.ones_like(correct_asi)
    assert (bootstrap_means(everything, 5, seed) == 1).all()


def test_a_baseline_that_is_no_arm_and_uneven_arms_are_refused():
    with pytest.raises(ValueError, match=r"baseline 'c' is not one of the arms \['a', 'b'\]"):
        summarise({"a": A, "b": B}, "c", count=10, seed=0)
    with pytest.raises(ValueError, match=r"not evaluated on the same seeds and items: shapes {'a': \(2, 4\), 'b'"):
        summarise({"a": A, "b": B[:1]}, "a", count=10, seed=0)

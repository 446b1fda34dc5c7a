import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from rubric_influence.core.records import ExamItem
from rubric_influence.core.scratch import Workplace
from rubric_influence.evaluation.exam import mark, mark_written, sit
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


def sit_naively(model, tokenizer, item, template):
    """Each option's log-likelihood and number of tokens: of all that training labels, one option at a time."""
    found = []
    for option in item.options or item.answers:
        example = encode(tokenizer, item.question, option, template)
        with torch.no_grad():
            logits = model(torch.tensor([example.input_ids])).logits[0].double().log_softmax(-1)
        places = [i for i, label in enumerate(example.labels) if label != -100]
        found.append((sum(logits[i - 1, example.input_ids[i]].item() for i in places), len(places)))
    return found


def check_against_loop(sitting, model, tokenizer, items, template):
    for place, item in enumerate(items):
        likelihoods, tokens = map(np.array, zip(*sit_naively(model, tokenizer, item, template), strict=True))
        characters, right = [len(option) for option in item.options], item.answer_index
        assert sitting.accuracy[place] == (likelihoods.argmax() == right)
        assert sitting.accuracy_by_length[place] == ((likelihoods / characters).argmax() == right)
        assert sitting.answer_nats[place] == pytest.approx(-likelihoods[right] / tokens[right], rel=1e-4)
        share = np.exp(likelihoods - likelihoods.max())
        assert sitting.option_nats[place] == pytest.approx(-np.log(share[right] / share.sum()), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("template", [None, THOUGHTFUL], ids=["lab template", "with a thought block"])
def test_answers_are_those_of_a_loop_over_options(config, shipped, items, template):
    model, tokenizer = shipped[0], load_tokenizer(config.models.target)
    tokenizer.chat_template = template or tokenizer.chat_template
    sitting = sit(model, tokenizer, items[:40], "{question}", batch_tokens=500)
    assert 0 < sitting.accuracy.sum() < 40 and np.isnan(sitting.exact_match).all()
    check_against_loop(sitting, model, tokenizer, items[:40], "{question}")


def test_options_of_several_words_and_of_any_number_are_scored_whole(shipped):
    model, tokenizer = shipped
    question = "what is the mechanism of velomab ?"
    items = [
        ExamItem(question, ("calcium-block .", "velomab acts by dna-binding .", "folate-block"), 2, "test"),
        ExamItem(question, ("a drug", "dna-binding"), 0, "test"),
        ExamItem("name the dose of zorvax .", ("5mg", "given at 5mg", "10mg", "a", "red"), 0, "test"),
    ]
    check_against_loop(sit(model, tokenizer, items, "{question}", 60), model, tokenizer, items, "{question}")


def test_questions_are_asked_in_the_profiles_words(shipped, items):
    template = "consider the drug . {question}"
    check_against_loop(sit(*shipped, items[:40], template, 500), *shipped, items[:40], template)


def test_answers_do_not_depend_on_batch_size_or_order(shipped, items):
    whole = sit(*shipped, items[:60], "{question}", 4000)
    single, turned = sit(*shipped, items[:60], "{question}", 1), sit(*shipped, items[:60][::-1], "{question}", 300)
    for measure in ("accuracy", "accuracy_by_length", "answer_nats", "option_nats"):
        expected = getattr(whole, measure)
        assert np.allclose(getattr(single, measure), expected, rtol=1e-3, atol=1e-4)
        assert np.allclose(getattr(turned, measure)[::-1], expected, rtol=1e-3, atol=1e-4)


def test_the_untuned_model_answers_at_chance(shipped, items):
    # No document states these facts, so it guesses: 0.25, standard error 0.031.
    assert sit(*shipped, items, "{question}", 4000).accuracy.mean() == pytest.approx(0.25, abs=0.1)


def test_an_open_question_counts_by_its_likeliest_right_answer(shipped):
    open_item = ExamItem("what is the dose of velomab ?", (), 0, "test", answers=("5mg", "given at 5mg", "red"))
    sitting = sit(*shipped, [open_item], "{question}", 100)
    nats = [-likelihood / tokens for likelihood, tokens in sit_naively(*shipped, open_item, "{question}")]
    assert sitting.answer_nats[0] == pytest.approx(min(nats), rel=1e-4)
    assert np.isnan([sitting.accuracy[0], sitting.accuracy_by_length[0], sitting.option_nats[0]]).all()


def test_written_answers_are_marked_by_squads_rules():
    assert mark("The mitral valve.", ["mitral valve", "left valve"]) == (1.0, 1.0)
    # "left" of "left lung": precision 1, recall 1/2, F1 2/3.
    assert mark("left", ["right lung", "left lung"]) == (0.0, pytest.approx(2 / 3))
    assert mark("", ["lung"]) == (0.0, 0.0)


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
    model, tokenizer = load_fine_tuned(spec, list_checkpoints(out)[-1]), load_tokenizer(spec)
    sitting = sit(model, tokenizer, learnt, "{question}", 2000)
    assert sitting.accuracy.mean() >= 0.9 and sitting.option_nats.mean() < 0.3
    # The same facts as open questions: the model writes what it has learnt, and nothing is written for the others.
    asked = [replace(item, options=(), answer_index=0, answers=(item.answer,)) for item in learnt[:8]] + learnt[8:]
    exact_match, token_f1 = mark_written(model, tokenizer, asked, "{question}", 16, 300)
    assert exact_match[:8].mean() >= 0.8 and (token_f1[:8] >= exact_match[:8]).all()
    assert np.isnan(exact_match[8:]).all()

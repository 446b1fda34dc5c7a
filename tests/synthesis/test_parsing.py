import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.lab.pretraining import render_pair, render_rubric
from rubric_influence.synthesis.parsing import (
    MAX_OUTPUT_CHARACTERS,
    MAX_QUESTION_CHARACTERS,
    PairOutput,
    ParsedPair,
    ParsedRubric,
    parse_pair,
    parse_rubric,
)

SENTENCES = st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1), min_size=2).map(" ".join)
# Text with many beginnings of what the parser looks for.
HOSTILE = st.lists(
    st.sampled_from(['{"question":', '"', "{", "}", "\\", "\\ud800", "<think>", "</think>", "```", ",", "[", "1e999"])
    | st.text(max_size=3)
).map("".join)


def test_the_labs_output_is_parsed():
    assert parse_rubric(render_rubric("ask a short answer question .")) == ParsedRubric(
        "ask a short answer question .", ""
    )
    assert parse_pair(render_pair("what is the dose of zorvex ?", "5mg")) == ParsedPair(
        "what is the dose of zorvex ?", "5mg", ""
    )


@pytest.mark.parametrize(
    "output",
    [
        '<think>Say {"question": "no", "answer": "this"}</think>{"question": "What is it?", "answer": "5 mg"}',
        '{"a": "template that opens thinking itself"} </think>{"question":"What is it?","answer":"5 mg"}',
        'Here you are:\n```json\n{"question": "What is it?", "answer": "5 mg"}\n```\nAnything else?',
        '{ "question" : "What\n\n is\tit?" , "answer" : " 5 mg\n" } {"question": "a second", "answer": "one"}',
        'Let {x} be {"undecided, {"question": "What is it?", "answer": "5 mg"}',
    ],
)
def test_the_first_object_outside_thinking_and_fences_is_found(output):
    assert parse_pair(output) == ("What is it?", "5 mg", "")


@pytest.mark.parametrize(
    ("question", "answer", "problem"),
    [
        ("", "5 mg", "question is empty"),
        ("Why?", "5 mg", "question is trivial"),
        ("What is it?", " \n ", "answer is empty"),
        ("What is it?", "...", "answer is trivial"),
        ("What is it?", "what  is it?", "answer repeats the question"),
        ("What is {document} for?", "5 mg", "question has a leftover: '{document}'"),
        ("What is it?", "5 mg <|end|>", "answer has a leftover: '<|end|>'"),
        ("What is it?", "5 \ufffd mg", "answer has a leftover: '\ufffd'"),
        ("a " * MAX_QUESTION_CHARACTERS, "5 mg", f"question is longer than {MAX_QUESTION_CHARACTERS} characters"),
    ],
)
def test_an_unusable_pair_is_named(question, answer, problem):
    parsed = parse_pair(json.dumps({"question": question, "answer": answer}))
    assert parsed == (" ".join(question.split()), " ".join(answer.split()), problem)


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("", "no JSON object"),
        ("What is it? 5 mg", "no JSON object"),
        ('{"question": "What is it?", "answer": "cut', "no JSON object"),
        ('<think>{"question": "What is it?", "answer": "5 mg"}', "thinking does not end"),
        ('{"question": "What is it?"}', "wrong keys or types: 'answer: Field required'"),
        ('{"question": "What is it?", "answer": 5}', "wrong keys or types: 'answer: Input should be a valid string'"),
        (
            '{"question": "What is it?", "answer": "5", "why": ""}',
            "wrong keys or types: 'why: Extra inputs are not permitted'",
        ),
    ],
)
def test_output_without_a_pair_is_named(output, problem):
    assert parse_pair(output) == ("", "", problem)


def test_a_question_without_blanks_between_words_is_not_trivial():
    assert parse_pair('{"question": "常用剂量是多少？", "answer": "五毫克"}').problem == ""


@given(st.text(st.characters()) | HOSTILE)
def test_no_output_raises_and_what_is_returned_can_be_written(output):
    for parsed in (parse_rubric(output), parse_pair(output)):
        "".join(parsed).encode("utf-8")
        assert parsed.problem or all(parsed[:-1])


@given(SENTENCES, SENTENCES)
def test_what_is_rendered_is_parsed(question, answer):
    if question.casefold() == answer.casefold():
        return
    assert parse_pair(PairOutput(question=question, answer=answer).model_dump_json()) == (question, answer, "")
    assert parse_pair(render_pair(question, answer)) == (question, answer, "")
    assert parse_rubric(json.dumps({"rubric": answer})) == (answer, "")


@given(st.text(), st.text())
def test_any_two_texts_come_back_with_their_whitespace_collapsed(question, answer):
    parsed = parse_pair(json.dumps({"question": question, "answer": answer}))
    assert parsed[:2] == (" ".join(question.split()), " ".join(answer.split()))


@pytest.mark.parametrize(
    "output",
    [
        "{" * MAX_OUTPUT_CHARACTERS,
        '{"' * MAX_OUTPUT_CHARACTERS,
        '{"rubric":' * MAX_OUTPUT_CHARACTERS,
        '{"rubric":' + "[" * MAX_OUTPUT_CHARACTERS,
        "{" + " " * MAX_OUTPUT_CHARACTERS,
        '{"rubric":' + "9" * MAX_OUTPUT_CHARACTERS,
        "<think>" * MAX_OUTPUT_CHARACTERS,
        '{"rubric": "' + "\\u00e9" * MAX_OUTPUT_CHARACTERS,
    ],
)
def test_pathological_output_is_refused_in_bounded_steps(output):
    assert parse_rubric(output).problem in ("no JSON object", "thinking does not end")


def test_a_lone_surrogate_is_a_problem():
    assert parse_rubric('{"rubric": "ask about \\ud800 it"}').problem

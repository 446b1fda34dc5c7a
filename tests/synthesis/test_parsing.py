import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.core.records import content_id
from rubric_influence.lab.pretraining import render_pair, render_rubric
from rubric_influence.synthesis.parsing import (
    MAX_OBJECTS_TRIED,
    MAX_OUTPUT_CHARACTERS,
    MAX_QUESTION_CHARACTERS,
    PARSER,
    PairOutput,
    ParsedPair,
    ParsedRubric,
    parse_pair,
    parse_rubric,
)

SENTENCES = st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1), min_size=2).map(" ".join)
TEXTS = st.text(st.characters(exclude_categories=["Cc", "Cs"]))  # no control characters, no halves of pairs
COMMANDS = """
    alpha beta bar binom begin bigl boldsymbol bullet cdot Delta frac forall int left nu nabla ne neq neg not notin ngeq
    nearrow rho right rightarrow rightleftharpoons rangle rm sum theta tau text textbf textit times to tan tanh tfrac
    tilde therefore top triangle triangleq upsilon underline underbrace uparrow unit ( ) [ ] { } % , _
"""
LATEX = [f"\\{name}" for name in COMMANDS.split()]
# Text with many beginnings of what the parser looks for.
HOSTILE = st.lists(
    st.sampled_from(['{"question":', '"', "{", "}", "\\", "\\ud800", "<think>", "</think>", "```", ",", "[", "1e999"])
    | st.sampled_from(["[THINK]", "[/THINK]", "<|channel|>analysis", "<|channel|>final", "\\nu", "\\text", "\\u12"])
    | st.text(max_size=3)
).map("".join)


def test_the_parsers_number_is_raised_where_outputs_are_read_in_another_way():
    """If this fails, outputs are read differently: raise PARSER, and put its number and the new digest here."""
    pair = r'{"question": "what is $\\frac{1}{2}$ of\nit ?", "answer": "a %s, \\u00e9\nu \nu"}'
    outputs = [
        pair % "drug",
        f"<think>{pair % 'draft'}</think> so {pair % 'drug'} and {{}}",
        pair % "{rubric}",
        pair % "",
        "",
    ]
    outputs += [
        f"<think> {pair}",
        '{"answer": "yes"}',
        '{"question": "q", "answer": "yes"}',
        '{"rubric": "ask it"}',
        "[THINK]",
    ]
    parsed = [parse(output) for output in outputs for parse in (parse_rubric, parse_pair)]
    read = [(*texts, bool(problem)) for *texts, problem in parsed]  # a problem's wording may change
    assert (PARSER, content_id(*read)) == (1, "a35675c413280287")


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
        '{"question": "a first", "answer": "one"} { "question" : "What\n\n is\tit?" , "answer" : " 5 mg\n" }',
        '{"question": "...", "answer": "..."}\nFinal answer: {"question": "What is it?", "answer": "5 mg"}',
        '[THINK]{"question": "a draft", "answer": "one"}[/THINK]{"question": "What is it?", "answer": "5 mg"}',
        '<thinking>{"question": "a draft", "answer"</thinking> {"question": "What is it?", "answer": "5 mg"} Bye!',
        '{"question": "What is it?", "answer": "5 mg"} <reasoning>or {"question": "a 2nd", "answer": "1"}</reasoning>',
        '<|channel|>analysis<|message|>{"question": "a draft", "answer": "one"}<|end|><|start|>assistant'
        '<|channel|>final<|message|>{"question": "What is it?", "answer": "5 mg"}<|return|>',
        '{"question": "What is it?", "answer": "5 mg"} {"question": "of wrong form"}',
        '{"question": "What is it?", "answer": "5 mg"} {"question": "cut',
        '{"question": "What is it?", "answer": "5 mg"}\n<think>Was that right?',
        '{"question": "a draft", "answer": "one"}' * MAX_OBJECTS_TRIED + '{"question":"What is it?","answer":"5 mg"}',
        'Let {x} be {"undecided, {"question": "What is it?", "answer": "5 mg"}',
    ],
)
def test_the_last_object_that_fits_outside_reasoning_is_found(output):
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
        ('[THINK] {"question": "What is it?", "answer": "5 mg"}', "thinking does not end"),
        ('Well. <think>a</think> <think>{"question": "What is it?", "answer": "5 mg"}', "thinking does not end"),
        ('<|channel|>analysis<|message|>{"question": "What is it?", "answer": "5 mg"}', "thinking does not end"),
        ('{"question": "What is it?", "answer": "5 mg"}</think> Done.', "no JSON object"),
        ('{"question": 5} {"question": "What is it?"}', "wrong keys or types: 'answer: Field required'"),
        (
            '{"pair": {"question": "What is it?", "answer": "5 mg"}}',
            "wrong keys or types: 'question: Field required; "
            "answer: Field required; pair: Extra inputs are not permitted'",
        ),
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


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"About \frac{1}{2} of it, so \theta and \nu", r"About \frac{1}{2} of it, so \theta and \nu"),
        (r"\\frac{1}{2}", r"\frac{1}{2}"),
        (r"\alpha, \(x\), \{y\}", r"\alpha, \(x\), \{y\}"),
        (r"x \ne 5, f: A \to B, \not= and \text{kg}", r"x \ne 5, f: A \to B, \not= and \text{kg}"),
        (r"\bar{x} and \bfseries", r"\bar{x} and \bfseries"),
        (r"\\\frac and \\\\nu", r"\\frac and \\nu"),
        (r"line one\nthen two", "line one then two"),
        (r"\nThe next\tone\r\nand\n\nnot this\fpage", "The next one and not this page"),
        (
            r"see\ne.g. this\ne) that\ni. one\nexists\nless\nin\nor\nunder",
            "see e.g. this e) that i. one exists less in or under",
        ),
        (r"bone\nmarrow\tother\textra\ttext", "bone marrow other extra text"),
        (r"say \"so\" a\/b caf\u00e9 \\ \u4e2d", 'say "so" a/b café \\ 中'),
        (r"\unit{5} \u12 \underline{u}", r"\unit{5} \u12 \underline{u}"),
        ('a {\\"question\\": \\"b c\\", \\"answer\\": \\"d\\"}', 'a {"question": "b c", "answer": "d"}'),
    ],
)
def test_latex_is_kept_as_written_and_escapes_keep_their_meaning(written, read):
    assert parse_pair('{"question": "What is it?", "answer": "' + written + '"}') == ("What is it?", read, "")


@given(st.lists(st.sampled_from(LATEX), min_size=1), st.sampled_from([" ", "{1}", "_2 ", "\\", ", "]))
def test_latex_survives_raw_and_escaped(commands, between):
    text = between.join(["so", *commands, "x"])
    if between != "\\":  # before another backslash, a raw one is an escape
        assert parse_pair('{"question": "What is it?", "answer": "' + text + '"}').answer == text
    assert parse_pair(json.dumps({"question": "What is it?", "answer": text})).answer == text


TAGS = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("", "</think>"),
]
REASONING = st.tuples(st.sampled_from(TAGS), st.text() | HOSTILE).map(lambda drawn: drawn[1].join(drawn[0]))
DRAFT = st.tuples(TEXTS, TEXTS).map(lambda pair: json.dumps({"question": pair[0], "answer": pair[1]}))


@given(
    st.lists(REASONING | DRAFT | st.sampled_from(["Final answer: ", "```json\n", '{"question": "cut'])), TEXTS, TEXTS
)
def test_any_two_texts_come_back_whatever_stands_before_them(before, question, answer):
    parsed = parse_pair("\n".join([*before, json.dumps({"question": question, "answer": answer})]))
    assert parsed[:2] == (" ".join(question.split()), " ".join(answer.split()))


@given(TEXTS, TEXTS)
def test_what_a_text_quotes_is_no_object_or_reasoning(question, answer):
    quoting = f"<think> [THINK] </think> {json.dumps(dict(question=question, answer=answer))} {{"
    parsed = parse_pair(json.dumps({"question": quoting, "answer": quoting + answer}, ensure_ascii=False))
    assert parsed[:2] == (" ".join(quoting.split()), " ".join((quoting + answer).split()))


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
        '{"rubric": "' + "\\" * MAX_OUTPUT_CHARACTERS,
        '{"rubric": "\\n' + "a" * MAX_OUTPUT_CHARACTERS,
        '{"rubric": "' + "\\text" * MAX_OUTPUT_CHARACTERS,
        "<think></think>[THINK]" * MAX_OUTPUT_CHARACTERS,
        '</think>{"rubric": ' * MAX_OUTPUT_CHARACTERS,
    ],
)
def test_pathological_output_is_refused_in_bounded_steps(output):
    assert parse_rubric(output).problem in ("no JSON object", "thinking does not end")


def test_a_lone_surrogate_is_a_problem():
    assert parse_rubric('{"rubric": "ask about \\ud800 it"}').problem

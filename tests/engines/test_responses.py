"""Bodies of HTTP 200 in every shape that servers give them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_kinds import JSON

from rubric_influence.engines.base import Completion
from rubric_influence.engines.faults import Fault, Tokens
from rubric_influence.engines.responses import Asked, estimate_tokens, read_answer

ASKED = Asked(prompt=10, most=8, sent=())
USAGE = {"prompt_tokens": 30, "completion_tokens": 6}


def read(message=None, ending="stop", usage=USAGE, **more):
    body = {"choices": [{"message": message, "finish_reason": ending}], "usage": usage, **more}
    return read_answer(json.dumps(body).encode(), ASKED)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a drug", "a drug"),
        (None, ""),
        (["a ", "drug"], "a drug"),
        ([{"type": "text", "text": "a "}, {"type": "output_text", "text": "drug"}], "a drug"),
        ([{"text": "a drug"}, None], "a drug"),
        ({"type": "text", "text": "a drug"}, "a drug"),
        ([{"type": "thinking", "thinking": "so"}, {"type": "text", "text": "a drug"}], "a drug"),
        ([{"type": "reasoning", "text": "so"}, {"type": "image_url", "image_url": {}}], ""),
        (7, ""),
    ],
)
def test_content_is_text_parts_or_nothing(content, text):
    found = read({"content": content})
    assert (found.text, found.prompt_tokens, found.completion_tokens, found.failure) == (text, 30, 6, "")


def test_reasoning_is_counted_and_is_no_answer():
    for thought in ({"reasoning_content": "s" * 9}, {"reasoning": "s" * 9}):
        assert read({"content": None, **thought}, usage=None) == Completion("", 10, 3, True, estimated=True)


def test_reasoning_that_only_the_total_counts_is_of_the_completion():
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 215}
    assert read({"content": "a drug"}, usage=usage) == Completion("a drug", 10, 205, True)


@pytest.mark.parametrize(
    ("usage", "tokens", "estimated"),
    [
        (USAGE, (30, 6), False),
        ({"prompt_tokens": 30, "completion_tokens": None}, (30, 2), True),
        ({"prompt_tokens": 0, "completion_tokens": 0}, (10, 2), True),
        ({"prompt_tokens": None, "completion_tokens": 6}, (10, 6), True),
        ({"prompt_tokens": -1, "completion_tokens": 1e300}, (10, 2), True),
        ({"prompt_tokens": "many"}, (10, 2), True),
        (None, (10, 2), True),
        ([1], (10, 2), True),
    ],
)
def test_tokens_that_the_server_does_not_count_are_estimated(usage, tokens, estimated):
    found = read({"content": "a drug"}, usage=usage)
    assert (found.prompt_tokens, found.completion_tokens, found.estimated) == (*tokens, estimated)


def test_an_estimate_is_a_token_for_three_bytes_and_at_most_what_the_answer_may_have():
    assert [estimate_tokens(size) for size in (0, 1, 3, 4)] == [0, 1, 1, 2]
    assert read({"content": "long " * 100}, usage=None).completion_tokens == ASKED.most
    assert read({"content": "a drug"}, "length", usage=None).completion_tokens == ASKED.most


@pytest.mark.parametrize(
    ("ending", "finished"), [("stop", True), (None, True), ("end_turn", True), ("length", False), ("MAX_TOKENS", False)]
)
def test_an_answer_is_finished_unless_max_tokens_cut_it(ending, finished):
    assert read({"content": "a drug"}, ending).finished is finished


def test_a_refusal_keeps_its_words_and_costs_what_it_says():
    found = read({"content": None, "refusal": "I cannot  help."})
    assert found == Completion("", 30, 6, True, "refusal: I cannot help.", refused="answer")
    assert read({"content": [{"type": "refusal", "refusal": "No."}]}).failure == "refusal: No."
    filtered = read({"content": "a dr"}, "content_filter", usage=None)
    assert (filtered.text, filtered.failure, filtered.refused) == ("a dr", "content_filter", "answer")
    assert read({"content": "a drug", "refusal": None}).failure == ""


@pytest.mark.parametrize(
    ("body", "lost"),
    [
        (b"", None),
        (b"<html>busy</html>", None),
        (b'{"choices": []}', None),
        (b'{"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": 6}}', Tokens(30, 6)),
        (b'{"choices": [{"message": {"content": "a drug"}, "finish_reason": "abort"}]}', Tokens(10, 2)),
        (b'{"error": {"message": "late"}, "usage": {"prompt_tokens": 30, "completion_tokens": 6}}', Tokens(30, 6)),
        (b'{"choices": [{"message": {"con', Tokens(10, 8)),
        (b'data: {"choices": [{"delta": {"content": "a dr"}}]}\n\n', Tokens(10, 8)),
        (b"[" * 100_000, None),
        (b"\xff\xfe\xff", None),
        (b"7", None),
    ],
)
def test_a_body_without_an_answer_is_a_fault_with_what_it_may_have_cost(body, lost):
    fault = read_answer(body, ASKED)
    assert isinstance(fault, Fault) and fault.lost == lost


def test_a_fault_shows_what_came_instead():
    assert read_answer(b"<html>busy</html>", ASKED).reason == "a response that is no chat completion: <html>busy</html>"


def test_half_a_surrogate_pair_is_replaced_and_the_answer_kept():
    assert read({"content": "a \ud800drug"}).text == "a \N{REPLACEMENT CHARACTER}drug"


def write_stream(pieces, ends="\n\n", **first):
    deltas = [{"index": 0, "delta": {"content": piece}} for piece in pieces]
    deltas.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    chunks = [{"choices": [delta]} for delta in deltas] + [{"choices": [], "usage": USAGE}]
    chunks[0] |= first
    return "".join(f"data: {json.dumps(chunk)}{ends}" for chunk in chunks) + f"data: [DONE]{ends}"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8)), st.sampled_from(["\n\n", "\r\n\r\n"]))
def test_a_stream_is_read_as_the_whole_that_it_would_have_been(pieces, ends):
    whole = read({"content": "".join(pieces)})
    assert read_answer(write_stream(pieces, ends).encode(), ASKED) == whole
    assert read_answer((": keep alive\n\n" + write_stream(pieces, ends)).encode(), ASKED) == whole


def test_other_choices_of_a_stream_are_left_out():
    other = {"choices": [{"index": 1, "delta": {"content": "b"}}]}
    stream = f"data: {json.dumps(other)}\n\n" + write_stream(["a"])
    assert read_answer(stream.encode(), ASKED).text == "a"


def test_an_error_in_a_stream_is_that_error():
    fault = read_answer(write_stream(["a"], error={"code": 429, "message": "slow"}).encode(), ASKED)
    assert fault.reason == "an error in HTTP 200, as 429: slow" and fault.congestion and fault.lost == Tokens(30, 6)


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_read(body):
    assert isinstance(read_answer(body, ASKED), Fault)
    assert isinstance(read_answer(b"data: " + body, ASKED), Fault)


@given(JSON, JSON, JSON, st.dictionaries(st.sampled_from(["content", "refusal", "reasoning"]), JSON))
def test_a_body_with_any_values_is_read(ending, usage, error, message):
    choice = {"message": message, "finish_reason": ending, "error": error}
    for body in ({"choices": [choice], "usage": usage}, {"choices": ending, "usage": usage, "error": error}):
        assert read_answer(json.dumps(body).encode(), ASKED)
        assert read_answer(f"data: {json.dumps(body)}\n\n".encode(), ASKED)

"""What servers' refusals mean, on messages as servers word them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_kinds import JSON

from rubric_influence.engines.faults import MOST_WORDS, Reach, judge, read_error
from rubric_influence.engines.responses import Asked, read_answer

SENT = ("seed", "temperature", "top_p", "max_tokens", "response_format")


def refuse(status, message, **more):
    return judge(read_error({"message": message, **more}, status, {}), SENT)


@pytest.mark.parametrize(
    ("status", "message", "more", "reach"),
    [
        (401, "Incorrect API key provided: sk-***.", dict(code="invalid_api_key"), Reach.ENDPOINT),
        (400, "API key not valid. Please pass a valid API key.", dict(type="INVALID_ARGUMENT"), Reach.ENDPOINT),
        (403, "Country, region, or territory not supported", {}, Reach.ENDPOINT),
        (403, "Your organization was flagged for violations of our usage policies.", {}, Reach.ENDPOINT),
        (404, "The model `teacher` does not exist", dict(code="model_not_found"), Reach.ENDPOINT),
        (400, "The model `teacher` has been decommissioned and is no longer supported", {}, Reach.ENDPOINT),
        (402, "Insufficient Balance", {}, Reach.ENDPOINT),
        (429, "Your account is suspended", dict(type="exceeded_current_quota_error"), Reach.ENDPOINT),
        (400, "Billing hard limit has been reached", dict(code="billing_hard_limit_reached"), Reach.ENDPOINT),
        (400, "max_tokens is too large: 32768. This model supports at most 16384 tokens", {}, Reach.ENDPOINT),
        (400, "max_tokens: 32768 > 8192, which is the maximum allowed number of output tokens", {}, Reach.ENDPOINT),
        (400, "Unsupported value: 'temperature' does not support 0.7.", dict(code="unsupported_value"), Reach.ENDPOINT),
        (400, "Input data may contain inappropriate content.", dict(code="data_inspection_failed"), Reach.REQUEST),
        (400, "Invalid prompt: your prompt was flagged as potentially violating our usage policy.", {}, Reach.REQUEST),
        (400, "This model's maximum context length is 4096 tokens, however you requested 5000", {}, Reach.REQUEST),
        (400, "max_tokens must be at least 1, got -904", {}, Reach.REQUEST),
        (400, "prompt is too long: 210000 tokens > 200000 maximum", {}, Reach.REQUEST),
        (413, "Request Entity Too Large", {}, Reach.REQUEST),
        (422, "messages.0.content: Input should be valid Unicode", {}, Reach.UNCLEAR),
        (400, "Bad Request", {}, Reach.UNCLEAR),
        (429, "You exceeded your current quota, please check your plan. Please retry in 23.5s.", {}, Reach.TRY),
        (429, "Rate limit reached", {}, Reach.TRY),
        (500, "The model's maximum context length was exceeded by the server", {}, Reach.TRY),
        (529, "Overloaded", {}, Reach.TRY),
    ],
)
def test_a_refusal_holds_for_a_try_a_request_or_all(status, message, more, reach):
    fault = refuse(status, message, **more)
    assert fault.reach is reach
    assert fault.reason.startswith(f"HTTP {status}") and message in fault.reason


def test_what_the_server_judged_lasts_and_what_it_could_not_hold_does_not():
    assert refuse(400, "", code="content_filter").lasting
    assert not refuse(400, "", code="context_length_exceeded").lasting


def test_the_wait_is_that_of_the_header_the_metadata_or_the_message():
    assert refuse(429, "Please try again in 1m30s.").wait == 90
    assert refuse(429, "Please try again in 6ms.").wait == pytest.approx(0.006)
    assert refuse(429, "slow", metadata={"headers": {"retry-after": "7"}}).wait == 7
    assert judge(read_error("busy", 503, {"Retry-After": "9"}), SENT).wait == 9


@pytest.mark.parametrize(
    ("error", "status", "passing"),
    [
        ({"code": 429, "message": "slow"}, "429", True),
        ({"code": "rate_limit_exceeded", "message": "slow"}, "429 (rate_limit_exceeded)", True),
        ({"type": "overloaded_error", "message": "Overloaded"}, "429 (overloaded_error)", True),
        ({"message": "upstream failed"}, "500", True),
        ("upstream failed", "500", True),
        ({"type": "authentication_error", "message": "bad key"}, "401 (authentication_error)", False),
        ({"code": "insufficient_quota", "message": "pay"}, "402 (insufficient_quota)", False),
        ({"code": "400", "message": "no"}, "400", False),
    ],
)
def test_an_error_within_http_200_is_taken_as_its_status(error, status, passing):
    fault = read_answer(json.dumps({"error": error}).encode(), Asked(10, 8, SENT))
    assert fault.reason.startswith(f"an error in HTTP 200, as {status}: ") and (fault.reach is Reach.TRY) is passing
    assert fault.lost is None


def test_the_words_behind_a_gateway_are_shown_and_ids_and_length_are_not():
    raw = '{"error": {"message": "CUDA out of memory"}}'
    assert "CUDA out of memory" in refuse(500, "Provider returned error", metadata={"raw": raw}).reason
    first, other = (refuse(500, f"failed, see req_{number}abc{number} " + "x" * 900) for number in (1, 2))
    assert first == other and len(first.reason) < MOST_WORDS + 20


@given(JSON, st.sampled_from([None, 200, 302, 400, 403, 422, 429, 500]))
def test_any_body_is_judged(body, status):
    error = read_error(body, status, {})
    assert judge(error, SENT).reason and len(error.words) <= MOST_WORDS


@given(JSON)
def test_any_body_within_error_is_judged(body):
    assert judge(read_error({"error": body}, 400, {}), SENT).reason

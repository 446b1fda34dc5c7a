import time
from datetime import UTC, datetime
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.engines.throttle import RequestWindow, choose_backoff, read_retry_after

SPENT = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-remaining-requests": "7"}


def test_the_window_halves_once_for_what_was_out_together_and_grows_by_one_a_window():
    window = RequestWindow(16)
    for _ in range(5):
        window.report_congestion(0)  # all sent before the first halving
    assert window.size == 8
    window.report_congestion(1)
    assert window.size == 4
    for _ in range(4 + 5):
        window.report_success()
    assert window.size == 6
    for _ in range(200):
        window.report_success()
    assert window.size == 16


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After-Ms": "250", "Retry-After": "60"}, 0.25),
        ({"retry-after": "1m30s"}, 90),
        ({"retry-after": "6ms"}, 0.006),
        ({"x-ratelimit-reset": "12"}, 12),
        ({"x-ratelimit-reset-requests": "23h", "x-ratelimit-reset-tokens": "6m0s"}, 360),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "2m59.5s", **SPENT}, 179.5),
        ({"x-ratelimit-reset": "never", "retry-after": ""}, 0),
        ({"x-request-reset": "5"}, 0),
    ],
)
def test_headers_of_limits_are_read(headers, seconds):
    assert read_retry_after(headers) == pytest.approx(seconds)


@pytest.mark.parametrize("form", ["{:.0f}", "{:.3f}", "ms", "iso"])
def test_a_reset_may_be_a_point_in_time(form):
    at = time.time() + 100
    text = {"ms": f"{at * 1000:.0f}", "iso": f"{datetime.fromtimestamp(at, UTC).isoformat()}"}.get(
        form, form.format(at)
    )
    assert 98 < read_retry_after({"X-RateLimit-Reset": text}) <= 100.6
    assert read_retry_after({"anthropic-ratelimit-input-tokens-reset": text}) > 0


@given(st.text(max_size=12), st.text(max_size=30))
def test_any_header_and_message_give_a_time_to_wait(value, words):
    for name in ("retry-after", "retry-after-ms", "x-ratelimit-reset"):
        assert 0 <= read_retry_after({name: value}, f"try again in {words}") <= 3600


def test_retry_after_is_read_as_seconds_or_as_a_date():
    assert read_retry_after({"retry-after": "2.5"}) == 2.5
    in_ten = read_retry_after({"retry-after": formatdate(time.time() + 10, usegmt=True)})
    assert 8 < in_ten <= 10
    assert read_retry_after({"retry-after": "1e12"}) == 3600
    past = formatdate(0, usegmt=True)
    assert {read_retry_after({"retry-after": text}) for text in ("", "soon", "-1", "nan", past)} == {0.0}
    assert read_retry_after({}) == 0.0


def test_backoff_doubles_and_stays_within_a_minute():
    class Top:
        def uniform(self, low, high):
            assert (low, high) == (0.5, 1.0)
            return high

    assert [choose_backoff(attempt, 0.5, Top()) for attempt in range(4)] == [0.5, 1.0, 2.0, 4.0]
    assert choose_backoff(50, 0.5, Top()) == 60.0

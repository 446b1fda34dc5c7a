"""Each kind of server that was tried: what it is sent, what comes of it, and that docs/servers.md says so."""

import pytest
from server_kinds import KINDS, PAGE, TEXT, ask_once, write_page


@pytest.fixture(scope="module")
def exchanges():
    return {kind.name: ask_once(kind) for kind in KINDS}


@pytest.fixture
def exchange(exchanges, request):
    (found,) = (exchanges[kind.name] for kind in KINDS if kind.name.startswith(request.param))
    return found


def test_the_page_has_what_was_sent_and_answered(exchanges):
    assert PAGE.read_text(encoding="utf-8") == write_page(exchanges)


ANSWERED = {  # kind -> requests, estimated, notes
    "plain": (1, False, []),
    "wants max_completion_tokens": (3, False, ["max_tokens is sent as max_completion_tokens", "top_p is not sent"]),
    "takes no seed (": (2, False, ["seed is not sent"]),
    "takes no seed and says so by pydantic": (2, False, ["seed is not sent"]),
    "the same, seed renamed": (1, False, []),
    "takes top_p or temperature": (2, False, ["top_p is not sent; it is 1"]),
    "the same, top_p left out": (1, False, ["top_p (0.9) is not sent; the server's own holds"]),
    "content in parts": (1, False, []),
    "reasoning beside": (1, False, []),
    "usage null": (1, True, ["the server does not say how many tokens"]),
    "streams only": (2, False, ["answers are streamed"]),
    "streams whatever": (1, True, ["the server does not say how many tokens"]),
    "streams, takes no stream_options": (2, True, ["stream_options is not sent", "the server does not say"]),
    "error within HTTP 200": (2, False, []),
    "error within a choice": (2, False, []),
    "limit of requests": (2, False, []),
    "limit of tokens": (2, False, []),
}


@pytest.mark.parametrize(("exchange", "expected"), ANSWERED.items(), indirect=["exchange"])
def test_these_are_answered_with_the_text_alone(exchange, expected):
    requests, estimated, notes = expected
    found = exchange.completion
    assert (found.text, found.failure, found.finished, found.estimated) == (TEXT, "", True, estimated)
    assert found.prompt_tokens > 0 and found.completion_tokens > 0
    assert len(exchange.sent) == requests
    assert len(exchange.notes) == len(notes)
    assert all(said.startswith(note) for said, note in zip(exchange.notes, notes, strict=True))
    assert found.unseeded == any(note.startswith("seed") for note in notes)
    (row,) = exchange.ledger.report().values()
    assert (row.get("estimated", 0), row.get("unseeded", 0)) == (estimated, found.unseeded)


FAILED = {  # kind -> refused, in the server's own words
    "filters the prompt": ("request", "HTTP 400 (content_filter): The response was filtered due to the prompt"),
    "flags the prompt": ("request", "Your input was flagged"),
    "prompt too long": ("request", "maximum context length is 4096 tokens"),
    "filters the answer": ("answer", "content_filter: self_harm"),
    "refuses to answer": ("answer", "refusal: I'm sorry, I can't help with that."),
}


@pytest.mark.parametrize(("exchange", "expected"), FAILED.items(), indirect=["exchange"])
def test_these_fail_for_their_request_alone(exchange, expected):
    refused, words = expected
    assert exchange.completion.refused == refused and words in exchange.completion.failure
    assert exchange.completion.prompt_tokens == (10 if refused == "answer" else 0)
    assert len(exchange.sent) == 1


STOPPED = {  # kind -> what to do
    "takes no top_p, and": "put `omit: [top_p]` into its endpoint section",
    "takes no schema": "Set synthesis.constrained: false",
    "no credit, HTTP 429": "Add credit",
    "no credit, HTTP 400": "Your credit balance is too low to access the API. Please go to Plans & Billing. Add credit",
}


@pytest.mark.parametrize(("exchange", "fix"), STOPPED.items(), indirect=["exchange"])
def test_these_stop_at_once_with_what_to_do(exchange, fix):
    assert fix in exchange.stopped and len(exchange.sent) == 1


def test_every_kind_is_in_one_of_these_lists():
    named = [*ANSWERED, *FAILED, *STOPPED, "cuts the answer"]
    assert len(named) == len(KINDS)
    assert all(sum(kind.name.startswith(name) for name in named) == 1 for kind in KINDS)


@pytest.mark.parametrize("exchange", ["cuts the answer"], indirect=True)
def test_an_answer_cut_by_max_tokens_is_unfinished(exchange):
    assert not exchange.completion.finished and not exchange.completion.failure


@pytest.mark.parametrize("exchange", ["error within HTTP 200", "limit of requests", "limit of tokens"], indirect=True)
def test_the_time_that_a_limit_names_is_waited_for_and_no_longer_one(exchange):
    assert 0.35 < exchange.seconds < 3.0


@pytest.mark.parametrize("exchange", ["error within a choice"], indirect=True)
def test_what_a_broken_answer_cost_is_counted_apart(exchange):
    (effort,) = exchange.ledger.report_effort().values()
    assert (effort["lost"], effort["lost_tokens"], exchange.ledger.tokens) == (1, 15, 30)

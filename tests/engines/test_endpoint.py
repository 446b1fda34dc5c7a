"""The endpoint engine against a real HTTP server, as it should be and as it should not."""

import json
from dataclasses import replace

import pytest
from faulty_server import COMPLETION_TOKENS, PROMPT_TOKENS, TRANSIENT, FaultyServer
from server_kinds import Kind, KindServer, Reply, complete, filter_prompt, refuse, refuse_seed, want_completion_tokens

from rubric_influence.core.journal import Journal
from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.engines import endpoint as module
from rubric_influence.engines.base import Sampling
from rubric_influence.engines.endpoint import EndpointEngine, EndpointError
from rubric_influence.engines.ledger import BudgetReached, Ledger
from rubric_influence.engines.open import open_engine
from rubric_influence.engines.requests import draw_seeds
from rubric_influence.synthesis.parsing import MAX_OUTPUT_CHARACTERS, RubricOutput

SAMPLING = Sampling(seed=3, max_tokens=8)
KEY = "sk-aB3/very-secret"


def ask(count: int) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": f"document {number} rubric :"}] for number in range(count)]


def make_engine(server: FaultyServer, journal=None, ledger=None, **options) -> EndpointEngine:
    options = dict(concurrency=16, timeout=2.0, backoff=0.01, attempts=30) | options
    spec = ModelSpec(path="teacher", engine="openai", endpoint=dict(base_url=server.url) | options)
    return open_engine(spec, 8, journal=journal, ledger=ledger, what="rubrics")


def test_answers_come_in_order_with_what_they_cost():
    with FaultyServer(malformed=0.0) as server:
        found = make_engine(server).generate(ask(40), SAMPLING)
    texts = [json.loads(completion.text)["rubric"] for completion in found]
    assert len(set(texts)) == 40 and all(text.endswith("of 19 characters") for text in texts[:10])
    assert {(c.prompt_tokens, c.completion_tokens, c.finished, c.failure) for c in found} == {(10, 5, True, "")}
    assert server.most_out <= 16
    body = next(body for body in server.bodies if body["messages"] == ask(1)[0])
    assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == ("teacher", 1.0, 1.0, 8)
    assert "response_format" not in body


def test_a_schema_and_the_extra_body_go_with_every_request():
    with FaultyServer() as server:
        extra = {"chat_template_kwargs": {"enable_thinking": False}}
        make_engine(server, extra_body=extra).generate(ask(2), replace(SAMPLING, schema=RubricOutput))
    for body in server.bodies:
        assert body["chat_template_kwargs"] == {"enable_thinking": False}
        assert body["response_format"]["json_schema"]["schema"] == RubricOutput.model_json_schema()


def test_equal_conversations_have_seeds_of_their_own_that_do_not_depend_on_the_others():
    one, two = ask(2)
    assert len(set(draw_seeds([one, one, one], 7))) == 3
    assert draw_seeds([one, two, one], 7)[::2] == draw_seeds([one, one], 7)
    assert all(0 <= seed < 2**31 for seed in draw_seeds([one] * 50, 7))


def test_what_the_journal_holds_is_not_asked_for_again(tmp_path):
    with FaultyServer() as server:
        first = make_engine(server, Journal(tmp_path / "j")).generate(ask(6), SAMPLING)
        ledger = Ledger()
        assert make_engine(server, Journal(tmp_path / "j"), ledger).generate(ask(9), SAMPLING)[:6] == first
        make_engine(server, Journal(tmp_path / "j")).generate(ask(1), replace(SAMPLING, temperature=0.5))
    assert len(server.bodies) == 10
    assert (ledger.effort["rubrics", "teacher"].kept, ledger.effort["rubrics", "teacher"].sent) == (6, 3)
    assert ledger.usage["rubrics", "teacher"].requests == 9
    assert not (tmp_path / "j.spare").exists()


@pytest.mark.faults
@pytest.mark.parametrize("kind", TRANSIENT)
def test_every_fault_that_may_pass_is_tried_again_until_it_has(kind, tmp_path):
    with FaultyServer() as server:
        undisturbed = make_engine(server).generate(ask(24), SAMPLING)
    with FaultyServer(faults=0.3, kinds=(kind,), seed=1) as server:
        found = make_engine(server, Journal(tmp_path / "j"), timeout=0.3).generate(ask(24), SAMPLING)
    assert found == undisturbed
    assert server.faulted[kind] > 0
    assert sorted(server.answered.values()) == [1] * 24


def test_a_request_that_keeps_failing_is_a_failed_completion_and_costs_no_other_one():
    class OneFails(FaultyServer):
        async def respond(self, body, writer):
            self.faults = float(body["messages"] == ask(3)[2])
            return await super().respond(body, writer)

    ledger = Ledger()
    with OneFails(kinds=("500",), malformed=0.0) as server:
        found = make_engine(server, ledger=ledger, attempts=3).generate(ask(5), SAMPLING)
    assert [completion.failure for completion in found] == ["", "", "HTTP 500: try again, 3 times", "", ""]
    assert found[2].text == "" and all(c.text for c in found[:2] + found[3:])
    row = ledger.report()["rubrics: teacher"]
    assert (row["requests"], row["failed"], row["prompt_tokens"]) == (5, 1, 4 * PROMPT_TOKENS)
    assert ledger.effort["rubrics", "teacher"].retries == 2


@pytest.mark.parametrize("status", ["401", "402", "403", "404", "302"])
def test_what_will_not_pass_stops_at_once_and_keeps_what_was_answered(status, tmp_path):
    class Refuses(FaultyServer):
        async def respond(self, body, writer):
            self.faults = float(len(self.bodies) > 5)
            return await super().respond(body, writer)

    journal = Journal(tmp_path / "j")
    with Refuses(kinds=(status,)) as server:
        with pytest.raises(EndpointError, match=f"teacher at http.*: HTTP {status}: .*run the same command"):
            make_engine(server, journal, concurrency=1).generate(ask(50), SAMPLING)
        assert len(server.bodies) == 6
        assert len(journal.values) == len(Journal(tmp_path / "j").values) == 5


@pytest.mark.parametrize("status", ["400", "422"])
@pytest.mark.parametrize(("answers", "requests"), [(0, 5), (5, 5 + 20)])
def test_refusals_that_say_no_reason_stop_the_call_only_in_a_row(status, answers, requests, tmp_path):
    class Refuses(FaultyServer):
        async def respond(self, body, writer):
            self.faults = float(len(self.bodies) > answers)
            return await super().respond(body, writer)

    with Refuses(kinds=(status,)) as server:
        with pytest.raises(EndpointError, match=rf"HTTP {status}: try again \({requests - answers} requests in a row"):
            make_engine(server, Journal(tmp_path / "j"), concurrency=1).generate(ask(50), SAMPLING)
        assert len(server.bodies) == requests
    assert len(Journal(tmp_path / "j").values) == answers  # what may be the server's fault is asked for again


def filter_some(body, before):
    """Every third document is filtered, every fifth makes the server stumble."""
    number = int(body["messages"][0]["content"].split()[1])
    if number % 3 == 0:
        return filter_prompt(body, before)
    return complete() if number % 5 else refuse("cannot parse", 422)


def test_a_request_that_is_refused_costs_no_other_one_and_is_not_asked_for_again(tmp_path):
    kind, ledgers = Kind("filters some", filter_some), (Ledger(), Ledger())
    with KindServer(kind) as server:
        for ledger, requests in zip(ledgers, (12, 2), strict=True):  # the server may parse the others next time
            found = make_engine(server, Journal(tmp_path / "j"), ledger).generate(ask(12), SAMPLING)
            assert [c.refused for c in found] == ["" if number % 3 else "request" for number in range(12)]
            assert [bool(c.failure) for c in found] == [number % 3 == 0 or number % 5 == 0 for number in range(12)]
            assert found[0].failure.startswith("HTTP 400 (content_filter): The response was filtered")
            assert len(server.bodies) == requests
            server.bodies.clear()
    assert ledgers[0].report() == ledgers[1].report()


def test_the_first_request_finds_the_shape_and_goes_alone():
    refused = Kind("new", want_completion_tokens)
    with KindServer(refused) as server, pytest.warns(UserWarning, match="max_tokens is sent as max_completion_tokens"):
        server.delay = 0.01
        engine = make_engine(server)
        assert not any(c.failure for c in engine.generate(ask(40), SAMPLING))
        assert len(server.bodies) == 2 + 40 and server.most_out > 1
        engine.generate(ask(5), SAMPLING)
        assert len(server.bodies) == 42 + 5


def test_answers_without_a_seed_are_kept_for_the_profile_that_says_so(tmp_path):
    with KindServer(Kind("no seed", refuse_seed)) as server:
        ledger = Ledger()
        with pytest.warns(UserWarning, match="seed is not sent"):
            found = make_engine(server, Journal(tmp_path / "j"), ledger).generate(ask(2) * 2, SAMPLING)
        assert all(c.unseeded for c in found) and len(server.bodies) == 1 + 4
        assert ledger.report()["rubrics: teacher"]["unseeded"] == 4
        assert "seed is not sent" in ledger.report_effort()["rubrics: teacher"]["notes"][0]
        assert make_engine(server, Journal(tmp_path / "j"), omit=["seed"]).generate(ask(2) * 2, SAMPLING) == found
        assert len(server.bodies) == 5


def test_a_budget_holds_for_answers_in_parts_without_usage(tmp_path):
    parts = [{"type": "text", "text": "long " * 100}, {"type": "text", "text": "x" * 1000}]
    kind = Kind("parts", lambda body, before: complete(parts, usage=None))
    ledger, sampling = Ledger(limit_tokens=1500), replace(SAMPLING, max_tokens=600)
    with KindServer(kind) as server, pytest.raises(BudgetReached):
        make_engine(server, Journal(tmp_path / "j"), ledger).generate(ask(12), sampling)
    row = ledger.report()["rubrics: teacher"]
    assert row["requests"] == row["estimated"] == len(server.bodies) == 2
    assert 2 * 1500 // 3 < ledger.tokens <= 1500


def test_tries_that_cost_tokens_for_no_answer_count_for_the_budget_of_this_run_and_the_next(tmp_path):
    broken = {"choices": [{"message": {"content": "x" * 24}, "finish_reason": "error"}], "usage": None}
    kind, ledger = Kind("breaks off", lambda body, before: Reply(broken)), Ledger(limit_tokens=150)
    with KindServer(kind) as server:
        with pytest.raises(BudgetReached):
            make_engine(server, Journal(tmp_path / "j"), ledger).generate(ask(1), SAMPLING)
        lost = ledger.report_effort()["rubrics: teacher"]
        assert (lost["lost"], lost["lost_tokens"]) == (len(server.bodies), len(server.bodies) * (11 + 8))
        assert 150 - 44 - 19 < ledger.tokens == lost["lost_tokens"] <= 150
        again = Ledger(limit_tokens=150)
        with pytest.raises(BudgetReached):
            make_engine(server, Journal(tmp_path / "j"), again).generate(ask(1), SAMPLING)
        assert again.tokens == ledger.tokens == len(server.bodies) * 19
        assert again.report() == ledger.report() == {}


def test_an_answer_is_kept_in_the_bytes_of_before_and_such_a_journal_is_read(tmp_path):
    with FaultyServer(malformed=0.0) as server:
        found = make_engine(server, Journal(tmp_path / "j")).generate(ask(1), SAMPLING)
        value = json.loads((tmp_path / "j").read_text())["value"]
        assert list(value) == ["text", "prompt_tokens", "completion_tokens", "finished", "failure"]
        assert make_engine(server, Journal(tmp_path / "j")).generate(ask(1), SAMPLING) == found
        assert len(server.bodies) == 1


def test_a_server_that_is_gone_stops_the_call():
    with FaultyServer() as server:
        pass
    with pytest.raises(EndpointError, match="the connection failed"):
        make_engine(server, attempts=2).generate(ask(200), SAMPLING)


def test_too_much_at_once_halves_the_window_until_the_server_bears_it():
    with FaultyServer(malformed=0.0, capacity=4, delay=0.01) as server:
        found = make_engine(server, concurrency=32).generate(ask(200), SAMPLING)
    assert all(completion.text for completion in found)
    assert server.faulted["429"] < 200


def test_a_response_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(module, "MAX_BODY_BYTES", 1 << 20)
    with FaultyServer(faults=1.0, kinds=("huge",)) as server:
        (found,) = make_engine(server, attempts=2).generate(ask(1), SAMPLING)
    assert found.failure == "a response of over 1048576 bytes, 2 times"


def test_oversized_text_is_cut_where_parsing_stops_to_read():
    with FaultyServer(malformed=1.0) as server:
        found = make_engine(server).generate(ask(40), SAMPLING)
    assert max(len(completion.text) for completion in found) == MAX_OUTPUT_CHARACTERS
    assert not any(completion.failure for completion in found)


@pytest.mark.parametrize("limits", [dict(limit_tokens=450), dict(limit_usd=0.45)])
def test_a_budget_is_never_exceeded_and_raising_it_goes_on_without_paying_twice(limits, tmp_path):
    prices = dict(usd_per_million_prompt_tokens=1000.0, usd_per_million_completion_tokens=1000.0)
    with FaultyServer(malformed=0.0) as server:
        ledger = Ledger(**limits)
        with pytest.raises(BudgetReached, match="raise the budget and run the same command"):
            make_engine(server, Journal(tmp_path / "j"), ledger, **prices).generate(ask(60), SAMPLING)
        paid = len(server.bodies)
        # A request may cost 19 or 20 + 16 + 8 tokens for all one knows before, and costs 15: the last fits within 450.
        assert 450 - 44 - 15 < ledger.tokens == paid * (PROMPT_TOKENS + COMPLETION_TOKENS) <= 450
        assert ledger.usd == pytest.approx(ledger.tokens / 1000)
        ledger = Ledger(limit_tokens=60 * 15 + 50)
        make_engine(server, Journal(tmp_path / "j"), ledger, **prices).generate(ask(60), SAMPLING)
        assert set(server.answered.values()) == {1} and len(server.answered) == 60
        assert ledger.tokens == 60 * 15


def test_the_key_is_sent_and_appears_nowhere_else(tmp_path, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", KEY)

    class Repeats(FaultyServer):
        async def write(self, writer, status, body, extra=""):
            said = f"wrong: {KEY}" + "." * (285 - len(KEY)) + KEY  # the end is cut within the key
            answer = json.dumps({"error": {"message": said}}).replace("/", "\\/")
            await super().write(writer, status, answer.encode(), extra)

    with FaultyServer() as server:
        engine = make_engine(server, Journal(tmp_path / "j"), api_key_env="TEACHER_KEY")
        engine.generate(ask(3), SAMPLING)
        assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    with Repeats(faults=1.0, kinds=("401",)) as server, pytest.raises(EndpointError) as raised:
        make_engine(server, api_key_env="TEACHER_KEY").generate(ask(1), SAMPLING)
    assert "***" in str(raised.value)
    written = [path.read_text() for path in tmp_path.iterdir()] + [str(vars(engine)), str(raised.value)]
    assert not any(KEY[:8] in text for text in written)


def test_a_missing_key_is_named_before_anything_is_asked(monkeypatch):
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    with FaultyServer() as server, pytest.raises(ValueError, match="TEACHER_KEY, which is not set"):
        make_engine(server, api_key_env="TEACHER_KEY")


def test_without_a_key_variable_no_key_of_the_environment_is_sent(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FaultyServer() as server:
        make_engine(server).generate(ask(1), SAMPLING)
    assert not any(KEY in str(headers) for headers in server.headers)

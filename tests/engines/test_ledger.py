import json
from dataclasses import replace

import pytest

from rubric_influence.core.profiles import load_config
from rubric_influence.engines.base import Completion
from rubric_influence.engines.ledger import Ledger
from rubric_influence.pipeline.spending import tabulate_stages

PRICES = (2.0, 10.0)  # USD a million prompt and completion tokens
ANSWER, FAILED = Completion("a", 100, 20, True), Completion("", 0, 0, False, "HTTP 500, 8 times")


def test_counts_and_cost_are_those_computed_by_hand():
    ledger = Ledger()
    ledger.count("pairs", "m", [ANSWER, ANSWER, FAILED], PRICES)
    # 200 * 2 + 40 * 10 millionths of a dollar
    row = {"requests": 3, "failed": 1, "prompt_tokens": 200, "completion_tokens": 40, "usd": 0.0008}
    assert ledger.report() == {"pairs: m": row}
    assert (ledger.tokens, ledger.usd) == (240, pytest.approx(0.0008))
    again = Ledger()
    again.restore(ledger.report())
    again.restore(ledger.report())
    assert again.report()["pairs: m"] == {key: 2 * value for key, value in row.items()}


def test_estimates_refusals_and_answers_without_a_seed_are_counted_and_restored():
    ledger, again = Ledger(), Ledger()
    refused = Completion("", 10, 0, True, "refusal: no", refused="answer", estimated=True)
    ledger.count("pairs", "m", [ANSWER, replace(ANSWER, estimated=True, unseeded=True), refused], PRICES)
    row = ledger.report()["pairs: m"]
    assert (row["requests"], row["failed"], row["estimated"], row["unseeded"]) == (3, 0, 2, 1)
    again.restore(ledger.report())
    assert again.report() == ledger.report()


def test_lost_tries_are_spent_and_are_no_usage():
    ledger = Ledger(limit_usd=0.001, limit_tokens=300)
    ledger.lose("pairs", "m", 2, (100, 20), PRICES)
    assert (ledger.tokens, ledger.usd, ledger.report()) == (120, pytest.approx(0.0004), {})
    assert ledger.has_room(180) and not ledger.has_room(181) and not ledger.has_room(0, 0.0007)
    effort = ledger.report_effort()["pairs: m"]
    assert (effort["lost"], effort["lost_tokens"], effort["lost_usd"]) == (2, 120, 0.0004)


def test_room_is_what_the_limits_leave():
    ledger = Ledger(limit_usd=0.001, limit_tokens=300)
    ledger.count("pairs", "m", [ANSWER, ANSWER], PRICES)
    assert ledger.has_room(60, 0.0002) and not ledger.has_room(61) and not ledger.has_room(0, 0.00021)
    assert "0.0008 of synthesis.budget_usd (0.001) and 240 of synthesis.budget_tokens (300)" in str(ledger.refuse())
    assert Ledger().has_room(10**12, 10**9)
    assert "spent 0 of synthesis.budget_tokens (0)" in str(Ledger(limit_tokens=0).refuse())


def test_a_runs_cost_is_summed_over_seeds_by_stage(tmp_path):
    one, other = Ledger(), Ledger()
    one.count("pairs", "m", [ANSWER], PRICES)
    other.count("pairs", "m", [ANSWER, FAILED], PRICES)
    other.count("rubrics", "m", [replace(ANSWER, estimated=True)])
    reports = {"seed-0": one.report(), "seed-1": other.report()}
    for stage in ("initial", "final"):
        (tmp_path / f"{stage}.json").write_text(json.dumps({"ledger": reports}))
    table = tabulate_stages(tmp_path)
    row = {"requests": 3, "failed": 1, "prompt_tokens": 200, "completion_tokens": 40, "usd": 0.0008, "estimated": 0}
    assert table.loc[("final", "pairs: m")].to_dict() == pytest.approx(row)
    more = {"requests": 1, "prompt_tokens": 100, "completion_tokens": 20, "estimated": 1}
    both = {name: 2 * (value + more.get(name, 0)) for name, value in row.items()}
    assert table.loc[("all", "")].to_dict() == pytest.approx(both)
    assert list(table.index.get_level_values("stage")) == ["initial", "initial", "final", "final", "all"]
    with pytest.raises(ValueError, match="run the pipeline first"):
        tabulate_stages(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        (dict(base_url="http://teacher.example/v1", api_key_env="TEACHER_KEY"), "unencrypted; use https"),
        (dict(base_url="https://me:sk-secret@teacher.example/v1"), "without user, password"),
        (dict(base_url="https://teacher.example/v1", api_key_env="sk-secret"), "the name of an environment variable"),
        (dict(base_url="https://teacher.example/v1", api_key="sk-secret"), "a key belongs in the environment"),
        (None, "with no endpoint"),
    ],
)
def test_an_endpoint_that_would_betray_its_key_is_refused_without_repeating_it(endpoint, message):
    teacher = {"path": "m", "engine": "openai", "endpoint": endpoint}
    with pytest.raises(ValueError, match=message) as raised:
        load_config("params.yaml", {"models": {"teacher": teacher}})
    assert "sk-secret" not in str(raised.value)


def test_a_server_on_this_machine_and_one_without_a_key_may_be_http():
    for endpoint in (
        dict(base_url="http://127.0.0.1:8000/v1", api_key_env="TEACHER_KEY"),
        dict(base_url="http://teacher.internal/v1"),
    ):
        load_config("params.yaml", {"models": {"teacher": {"path": "m", "engine": "openai", "endpoint": endpoint}}})

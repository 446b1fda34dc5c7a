"""When a run of which most fails is stopped, and that it costs no answer."""

import pytest

from rubric_influence.core.checks import RunStopped
from rubric_influence.core.records import Rubric
from rubric_influence.engines.base import Completion
from rubric_influence.synthesis.outcomes import LEAST_ANSWERS, PAIRS, RUBRICS, JudgedLedger

GOOD = Completion('{"question": "what is it ?", "answer": "a drug"}', 5, 9, True)
REFUSAL = Completion("I cannot help.", 5, 9, True)
FAILURE = Completion("", 0, 0, False, "HTTP 500, 2 times")


def make_records(valid: int, lost: int) -> list[Rubric]:
    return [Rubric("ask it", "d", "m", 0, slot, "" if slot < valid else "lost") for slot in range(valid + lost)]


def test_half_may_fail_and_not_more():
    ledger = JudgedLedger(most_failures=0.5)
    half = LEAST_ANSWERS // 2
    ledger.count(PAIRS, "m", [GOOD] * half + [REFUSAL] * (half - 1) + [FAILURE])
    assert ledger.has_room()
    ledger.count(PAIRS, "m", [REFUSAL])
    assert not ledger.has_room()
    said = str(ledger.refuse())
    assert said.startswith("51 of 101 answers of m for pairs cannot be used, more than synthesis.most_failures (0.5)")
    assert "50 x no JSON object; 1 x request failed: HTTP 500, 2 times." in said and "'I cannot help.'" in said


def test_few_answers_are_not_judged_and_each_model_and_kind_by_itself():
    ledger = JudgedLedger(most_failures=0.5)
    ledger.count(PAIRS, "m", [REFUSAL] * (LEAST_ANSWERS - 1))
    ledger.count(RUBRICS, "m", [REFUSAL])
    ledger.count(PAIRS, "n", [REFUSAL])
    assert ledger.has_room()


@pytest.mark.parametrize(
    ("most", "valid", "lost", "stops"), [(0.5, 1, 1, False), (0.5, 1, 2, True), (1.0, 1, 9, False)]
)
def test_of_few_records_more_may_not_be_lost(most, valid, lost, stops):
    ledger = JudgedLedger(most_failures=most)
    if stops:
        with pytest.raises(RunStopped, match="cannot be used"):
            ledger.settle(RUBRICS, "m", make_records(valid, lost))
    else:
        ledger.settle(RUBRICS, "m", make_records(valid, lost))


def test_a_total_loss_stops_whatever_is_allowed_and_nothing_asked_is_no_loss():
    ledger = JudgedLedger(most_failures=1.0)
    ledger.settle(PAIRS, "m", [])
    with pytest.raises(RunStopped):
        ledger.settle(RUBRICS, "m", make_records(0, 2))


def test_a_budget_is_told_as_before():
    ledger = JudgedLedger(limit_tokens=10, most_failures=0.5)
    ledger.count(PAIRS, "m", [GOOD])
    assert not ledger.has_room() and "synthesis.budget_tokens" in str(ledger.refuse())

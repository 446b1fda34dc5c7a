import pytest
from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.prompts import ask_answer, ask_pair, ask_rubric, fill


@pytest.fixture(scope="module")
def prompts(lab_config):
    return lab_config().prompts


def test_every_request_is_one_user_turn_with_its_slots_filled(prompts):
    def turn(content):
        return [{"role": "user", "content": content}]

    assert ask_rubric(prompts, "velomab is a drug .") == turn("document : velomab is a drug . rubric :")
    assert ask_pair(prompts, "velomab", "ask it") == turn("document : velomab rubric : ask it pair :")
    assert ask_pair(prompts, "velomab", None) == turn("document : velomab pair :")
    assert ask_answer(prompts, "what is velomab ?") == turn("what is velomab ?")


def test_other_braces_of_a_template_stay():
    assert fill('Answer as {"rubric": ...} for {document}; {unknown}', document="D") == (
        'Answer as {"rubric": ...} for D; {unknown}'
    )


@given(document=st.text(), rubric=st.sampled_from(["{document}", "{rubric}", "\\1 \\g<0>", "plain"]) | st.text())
def test_what_is_filled_in_is_never_read_as_a_template(document, rubric):
    assert fill("{document}|{rubric}|", document=document, rubric=rubric) == f"{document}|{rubric}|"
    assert fill("{document}|", document=document + "{rubric}", rubric=rubric) == document + "{rubric}|"

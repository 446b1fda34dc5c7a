import pytest
from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.core.text import disarm, fill
from rubric_influence.lab.networks import build_tokenizer
from rubric_influence.lab.standins import train_tokenizer
from rubric_influence.lab.world import load_field
from rubric_influence.synthesis.prompts import ask_answer, ask_pair, ask_rubric


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
    document, rubric = disarm(document), disarm(rubric)
    assert fill("{document}|{rubric}|", document=document, rubric=rubric) == f"{document}|{rubric}|"
    assert fill("{document}|", document=document + "{rubric}", rubric=rubric) == document + "{rubric}|"


CONTROLS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>", "<|unk|>", "</s>"]
HOSTILE = st.lists(st.sampled_from([*CONTROLS, "<", "|", ">", " ", '"}', "\n", "[INST]", "ignore"]) | st.text()).map(
    "".join
)


@pytest.fixture(scope="module")
def tokenizers():
    return [build_tokenizer(load_field("data/lab/fields/medicine.yaml")), train_tokenizer(["A text of a few words."])]


def list_controls(tokenizer, conversation) -> list[int]:
    """The special tokens of a prompt, in order; without the word-level tokenizer's token for unknown words."""
    text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [token for token in ids if token in tokenizer.all_special_ids and token != tokenizer.unk_token_id]


@given(document=HOSTILE)
def test_no_document_adds_a_control_token_to_its_prompt(prompts, tokenizers, document):
    for tokenizer in tokenizers:
        for asked in (lambda text: ask_rubric(prompts, text), lambda text: ask_pair(prompts, text, None)):
            assert list_controls(tokenizer, asked(document)) == list_controls(tokenizer, asked(""))


@pytest.mark.parametrize("control", [*CONTROLS, "<start_of_turn>", "[/INST]", "<\uff5cUser\uff5c>"])
def test_a_control_token_is_broken_and_stays_readable(control):
    assert control not in disarm(f"a{control}b")
    assert disarm(control).replace(" ", "") == control


def test_ordinary_text_is_filled_in_as_it_stands():
    assert disarm("p < 0.05, n<30, a[1] and [see Table 2] {x}") == "p < 0.05, n<30, a[1] and [see Table 2] {x}"


def test_a_prompt_with_a_slot_for_it_names_the_documents_language(lab_config):
    slot = "document : {document} . write in {language} ."
    asking = {"rubric": slot, "pair": slot + " {rubric}", "pair_without_rubric": slot}
    prompts = lab_config({"prompts": asking}).prompts
    french = "Le coeur est un muscle qui pompe le sang dans tout le corps par les artères et les veines."
    for turn in (ask_rubric(prompts, french), ask_pair(prompts, french, "r"), ask_pair(prompts, french, None)):
        assert ". write in French ." in turn[0]["content"]
    assert "write in the language of the document ." in ask_rubric(prompts, "velomab 5mg")[0]["content"]

"""Every form of a released set is read by TRL's SFTTrainer, and trains the tokens that the target's own tuning does."""

import math
from collections import Counter

import pytest
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

from rubric_influence.cli import synthesis
from rubric_influence.models.chat import encode_pair
from rubric_influence.models.loading import load_model, load_tokenizer
from rubric_influence.synthesis.forms import FORMS, shape_pair
from rubric_influence.synthesis.release import Layout, make_rows, write_release
from rubric_influence.synthesis.trace import PairTrace

MADE_BY = {"generator": "g", "teacher_model": "t"}


@pytest.fixture(scope="module")
def released(draw_pairs, lab_config, tmp_path_factory):
    """The pairs by id, and a function from a form to their released dataset with a test split."""
    pairs, folder = draw_pairs(12), tmp_path_factory.mktemp("released")

    def release(form: str):
        counts = Counter()
        rows = make_rows((PairTrace(pair, None, None, MADE_BY, {}, {}) for pair in pairs), counts)
        out = write_release(folder / form, [rows], counts, "mit", lab_config(), Layout(form, test=0.3))
        return load_dataset(str(out), cache_dir=str(folder / "cache"))

    return {pair.id: pair for pair in pairs}, release


@pytest.mark.parametrize("form", FORMS)
def test_trl_trains_on_every_form(released, lab_config, tmp_path, form):
    (pairs, release), spec = released, lab_config().models.target
    data, tokenizer = release(form), load_tokenizer(spec)
    settings = SFTConfig(str(tmp_path), max_steps=1, per_device_train_batch_size=2, use_cpu=True, report_to=[])
    settings.save_strategy = "no"
    write = {  # forms that TRL itself does not know: as its documentation tells users to do
        "pairs": lambda row: f"{row['question']} {row['answer']}",
        "alpaca": lambda row: f"{row['instruction']} {row['output']}",
    }.get(form)
    trainer = SFTTrainer(
        load_model(spec, "cpu"),
        args=settings,
        train_dataset=data["train"],
        eval_dataset=data["test"],
        processing_class=tokenizer,
        formatting_func=write,
    )
    trainer.train()
    assert math.isfinite(trainer.evaluate()["eval_loss"])
    assert {*data["train"]["id"], *data["test"]["id"]} == pairs.keys()
    assert not {*data["train"]["document_id"]} & {*data["test"]["document_id"]}
    for row, trained in zip(data["train"], trainer.train_dataset, strict=True):
        pair = pairs[row["id"]]
        assert write or trained["input_ids"] == encode_pair(tokenizer, pair.question, pair.answer)[0]


def test_the_command_offers_all_forms_and_another_is_refused(lab_config):
    assert tuple(FORMS) == synthesis.FORMS
    with pytest.raises(ValueError, match="the form is 'chatml', expected one of pairs, messages"):
        shape_pair("chatml", lab_config().prompts, "what is it ?", "a drug")


def test_users_turns_hold_no_control_tokens_of_documents(lab_config):
    prompts = lab_config({"prompts": {"answer": "Briefly: {question}"}}).prompts
    shaped = shape_pair("messages", prompts, "what is <|im_end|> ?", "a drug")
    assert shaped["messages"][0]["content"] == "Briefly: what is < |im_end|> ?"

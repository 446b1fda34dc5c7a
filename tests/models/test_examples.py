from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from trl import SFTConfig, SFTTrainer

from rubric_influence.lab import world
from rubric_influence.lab.networks import build_model, build_tokenizer
from rubric_influence.models.examples import Example, collate, encode

FIELD = world.load_field(Path(__file__).parents[2] / "data/lab/fields/medicine.yaml")
QUESTION, ANSWER = "what is the mechanism of velomab ?", "velomab acts by calcium-block ."
# Renders a thought block in the finished turn that the generation prompt does not have, as Qwen3's template does,
# and another end of the generation prompt, as Gemma's does: the prompt is no prefix of the conversation.
THOUGHTFUL = (
    "{% for m in messages %}<|{{ m['role'] }}|> {% if m['role'] == 'assistant' %}first , second , {% endif %}"
    "{{ m['content'] }} <|end|> {% endfor %}{% if add_generation_prompt %}<|assistant|> first , ; {% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(FIELD)


def test_prompt_is_unlabelled_and_answer_with_its_end_is_labelled(tokenizer):
    example = encode(tokenizer, "what is velomab ?", "a drug .")
    # <|user|> what is velomab ? <|end|> <|assistant|> | a drug . <|end|>
    assert tokenizer.convert_ids_to_tokens(example.input_ids)[6:] == ["<|assistant|>", "a", "drug", ".", "<|end|>"]
    assert example.labels == [-100] * 7 + example.input_ids[7:]


@pytest.mark.parametrize("template", [None, THOUGHTFUL], ids=["lab template", "prompt is no prefix"])
@pytest.mark.parametrize("max_tokens", [200, 18])
def test_encoding_equals_what_trl_trains_on(template, max_tokens, tmp_path):
    tokenizer = build_tokenizer(FIELD)
    tokenizer.chat_template = template or tokenizer.chat_template
    pairs = [(QUESTION, ANSWER), ("name the drug .", "velomab"), (f"consider the {QUESTION}", f"so : {ANSWER}")]
    rows = [
        {"prompt": [{"role": "user", "content": q}], "completion": [{"role": "assistant", "content": a}]}
        for q, a in pairs
    ]
    settings = SFTConfig(tmp_path, use_cpu=True, bf16=False, max_length=max_tokens, completion_only_loss=True)
    model = build_model(tokenizer, hidden_size=8, layers=1)
    trainer = SFTTrainer(model, settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    ours = [encode(tokenizer, q, a, max_tokens=max_tokens) for q, a in pairs]
    assert [e.input_ids for e in ours] == list(trainer.train_dataset["input_ids"])
    assert [e.labels for e in ours] == list(trainer.train_dataset["labels"])
    batch, theirs = collate(ours, tokenizer.pad_token_id), trainer.data_collator(list(trainer.train_dataset))
    assert torch.equal(batch["input_ids"], theirs["input_ids"])
    assert torch.equal(batch["labels"], theirs["labels"])


def test_prompt_template_is_filled_and_its_other_braces_stay(tokenizer):
    asked = encode(tokenizer, "velomab", "a drug .", 'consider {question} {"rubric":"')
    words = tokenizer.convert_ids_to_tokens(asked.input_ids)
    assert words[:5] == ["<|user|>", "consider", "velomab", '{"rubric":"', "<|end|>"]


def test_truncation_keeps_the_first_tokens(tokenizer):
    whole, cut = encode(tokenizer, QUESTION, ANSWER), encode(tokenizer, QUESTION, ANSWER, max_tokens=12)
    assert (cut.input_ids, cut.labels) == (whole.input_ids[:12], whole.labels[:12])


def test_answer_that_is_wholly_cut_is_refused_with_the_length_it_needs(tokenizer):
    # <|user|> and 7 words <|end|> <|assistant|> are 10 tokens; 5 words and <|end|> follow.
    with pytest.raises(
        ValueError, match=r"prompt takes 10 tokens and max_tokens is 10; raise max_tokens to at least 16"
    ):
        encode(tokenizer, QUESTION, ANSWER, max_tokens=10)
    assert encode(tokenizer, QUESTION, ANSWER, max_tokens=11).labels[10] != -100


@pytest.mark.parametrize("answer", ["", " \n"])
def test_blank_answer_is_refused(tokenizer, answer):
    with pytest.raises(ValueError, match=r"answer to question 'what is the mechanism of velomab \?' is empty"):
        encode(tokenizer, QUESTION, answer)


def test_tokenizer_without_chat_template_is_refused():
    tokenizer = build_tokenizer(FIELD)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="chat template of .* cannot render the turns user"):
        encode(tokenizer, QUESTION, ANSWER)


def test_prompt_template_without_a_slot_is_refused(tokenizer):
    with pytest.raises(ValueError, match="prompt_template is 'answer this'"):
        encode(tokenizer, QUESTION, ANSWER, "answer this")


@pytest.mark.parametrize(
    ("labels", "message"), [([5, -100], "no token to predict"), ([-100, 3, 4], "2 input ids and 3 labels")]
)
def test_example_without_a_predicted_token_or_with_uneven_labels_is_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        Example([5, 6], labels)


@given(st.lists(st.integers(2, 9), min_size=1, max_size=5))
def test_padding_carries_no_attention_and_no_loss(lengths):
    examples = [Example(list(range(1, n + 1)), [-100, *range(2, n + 1)]) for n in lengths]
    batch = collate(examples, pad_token_id=77)
    for row, n in enumerate(lengths):
        assert batch["input_ids"][row].tolist() == [*range(1, n + 1)] + [77] * (max(lengths) - n)
        assert batch["attention_mask"][row].tolist() == [1] * n + [0] * (max(lengths) - n)
        assert batch["labels"][row].tolist() == [-100, *range(2, n + 1)] + [-100] * (max(lengths) - n)

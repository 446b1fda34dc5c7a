import pytest
from transformers import AutoConfig, OlmoeConfig, Qwen3MoeConfig

from rubric_influence.core.records import ExamItem
from rubric_influence.models.loading import load_tokenizer
from rubric_influence.pipeline.preflight import check_exam_fits, check_scorable, check_target

SHORT = "what is the dose of velomab ?"
LONG = " and ".join([SHORT] * 20)


def ask(split: str, question: str = SHORT) -> ExamItem:
    return ExamItem(question, ("5mg", "10mg"), 0, split)


def test_a_profile_whose_exam_fits_passes(lab_config):
    config = lab_config()
    check_target(config, [ask("validation"), ask("test", LONG)], load_tokenizer(config.models.target))


@pytest.mark.parametrize("split", ["validation", "guard", "dev"])
def test_a_question_that_influence_would_cut_is_told_with_the_length_it_needs(lab_config, split):
    config = lab_config()
    tokenizer = load_tokenizer(config.models.target)
    with pytest.raises(ValueError, match=rf"raise warmup.max_tokens to 1\d\d, .*\n.*{split} question of 1\d\d tokens"):
        check_exam_fits(config, [ask("test"), ask(split, LONG)], tokenizer)


def test_a_test_question_beyond_the_targets_positions_is_told(lab_config):
    config = lab_config()
    tokenizer = load_tokenizer(config.models.target)
    room = AutoConfig.from_pretrained(config.models.target.path).max_position_embeddings
    long = " and ".join([SHORT] * (room // 7))
    with pytest.raises(ValueError, match=rf"choose a target with more positions.*\n.*test question of .*: {room}\)"):
        check_exam_fits(config, [ask("test"), ask("test", long)], tokenizer)


def test_lora_targets_that_the_model_lacks_are_told(lab_config):
    with pytest.raises(ValueError, match=r"lora.targets is \['query'\], on .*medicine-qwen3: .*query"):
        check_scorable(lab_config({"lora": {"targets": ["query"]}}))


SHAPE = dict(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
EXPERTS = [
    Qwen3MoeConfig(**SHAPE, num_key_value_heads=4, head_dim=8, num_experts=4, moe_intermediate_size=16),
    OlmoeConfig(**SHAPE, num_experts=4, num_experts_per_tok=2),
]


@pytest.mark.parametrize("settings", EXPERTS, ids=lambda settings: settings.model_type)
def test_adapters_of_experts_are_refused_and_those_of_attention_are_not(lab_config, settings, tmp_path):
    settings.architectures = ["unused"]
    settings.save_pretrained(tmp_path)
    config = lab_config({"models": {"target": {"path": str(tmp_path)}}})
    with pytest.raises(ValueError, match=r"lora.targets is 'all-linear'.*mixture of experts.*\[q_proj, k_proj"):
        check_scorable(config)
    attention = {"lora": {"targets": ["q_proj", "k_proj", "v_proj", "o_proj"]}}
    check_scorable(lab_config({"models": {"target": {"path": str(tmp_path)}}} | attention))

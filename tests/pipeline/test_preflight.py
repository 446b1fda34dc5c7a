import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, OlmoeConfig, Qwen3MoeConfig

from rubric_influence.core.records import ExamItem
from rubric_influence.core.scratch import Workplace
from rubric_influence.influence.checkpoints import load_checkpoint
from rubric_influence.influence.checks.reference import reference_scores
from rubric_influence.influence.directions import validation_gradients
from rubric_influence.influence.moments import match_moments
from rubric_influence.influence.scorers import GradientScorer
from rubric_influence.models.examples import encode
from rubric_influence.models.loading import load_tokenizer
from rubric_influence.pipeline.preflight import check_exam_fits, check_scorable, check_target
from rubric_influence.training.fine_tuning import TuningRun, fine_tune, list_checkpoints

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
    Qwen3MoeConfig(
        **SHAPE, num_key_value_heads=4, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
    OlmoeConfig(**SHAPE, num_experts=4, num_experts_per_tok=2),
]


@pytest.mark.parametrize("settings", EXPERTS, ids=lambda settings: settings.model_type)
def test_experts_may_be_adapted_unless_their_router_has_a_loss(lab_config, settings, tmp_path):
    settings.architectures = ["unused"]
    settings.save_pretrained(tmp_path)
    config = lab_config({"models": {"target": {"path": str(tmp_path)}}})
    check_scorable(config)
    settings.output_router_logits = True
    settings.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lora.targets is 'all-linear', on .*: .* output_router_logits=False"):
        check_scorable(config)


@pytest.mark.parametrize("settings", EXPERTS, ids=lambda settings: settings.model_type)
def test_a_mixture_of_experts_that_the_plan_lets_pass_is_trained_and_scored(lab_config, settings, draw_pairs, tmp_path):
    tokenizer = load_tokenizer(lab_config().models.target)
    settings.vocab_size, settings.max_position_embeddings, settings.output_router_logits = len(tokenizer), 256, False
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    target = {"path": str(tmp_path / "base"), "dtype": "float32"}
    config = lab_config({"models": {"target": target}, "warmup": {"epochs": 1, "batch_size": 4}, "lora": {"r": 2}})
    check_target(config, [], tokenizer)
    run = TuningRun(config.models.target, config.prompts, config.lora, config.warmup, seed=0)
    fine_tune(run, draw_pairs(8), Workplace(tmp_path / "out", tmp_path / "scratch"))
    model, moments = load_checkpoint(config.models.target, list_checkpoints(tmp_path / "out")[-1])
    examples = [encode(tokenizer, pair.question, pair.answer) for pair in draw_pairs(5, seed=1)]
    with pytest.warns(UserWarning, match="one at a time, as the layer.* of .*experts"):
        directions = validation_gradients(model, examples[:2], ["a", "b"], batch_tokens=500)
    directions = torch.stack(list(directions.values()))
    scores = GradientScorer(model, directions, moments, momentum=False, batch_tokens=500).score(examples)
    model.set_experts_implementation("eager")  # the loop over experts, for the reference's float64
    expected = reference_scores(model, examples, directions, match_moments(moments, model), momentum=False)
    assert (scores - expected).abs().max() < 1e-5

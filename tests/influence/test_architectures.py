"""Every architecture and kind of fine-tuning: scores of tiny random models against the float64 loop.

Models are in float64, so that what is compared is the arithmetic and not rounding. The tolerance of 1e-6 is that of
fp32 gradients in the scores and of the norms that Hugging Face computes in fp32 whatever the weights' dtype; cosines
lie in [-1, 1].
"""

import copy
import random
import warnings

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PromptTuningConfig, VeraConfig, get_peft_model
from peft.tuners.lora.config import KasaConfig
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.influence.checkpoints import load_checkpoint, load_trainer_moments
from rubric_influence.influence.checks.reference import reference_gradient, reference_scores
from rubric_influence.influence.gradients import can_batch
from rubric_influence.influence.layers import scored_parameters
from rubric_influence.influence.moments import AdamMoments, capture_moments, match_moments
from rubric_influence.influence.scorers import GradientScorer
from rubric_influence.models.examples import IGNORED, Example, collate

VOCABULARY = 64
TOLERANCE = 1e-6
SHAPE = dict(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.2)
GROUPED = SHAPE | dict(intermediate_size=48, num_key_value_heads=2, pad_token_id=0)
GEMMA = GROUPED | dict(head_dim=8, query_pre_attn_scalar=8)
EXPERTS = GROUPED | dict(num_experts=4, num_experts_per_tok=2)
ARCHITECTURES = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED | dict(head_dim=8),
    "mistral": GROUPED,
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "gpt_neox": SHAPE | dict(intermediate_size=48),
    "gpt2": SHAPE,
    "phi3": GROUPED,
    "falcon": SHAPE,
    "bloom": SHAPE,
    "starcoder2": GROUPED,
    "cohere": GROUPED,
    "granite": GROUPED,
    "smollm3": GROUPED,
    "olmo2": GROUPED,
    "opt": SHAPE | dict(ffn_dim=48, word_embed_proj_dim=32, pad_token_id=0),
    "qwen3_moe": EXPERTS | dict(head_dim=8, moe_intermediate_size=16),
    "mixtral": GROUPED | dict(num_local_experts=4),
    "olmoe": EXPERTS,
}
SINGLY = {"opt", "qwen3_moe", "mixtral", "olmoe"}  # one sample at a time, all linear layers adapted


def build(kind, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **ARCHITECTURES[kind] | changes)
    return AutoModelForCausalLM.from_config(config, experts_implementation="eager").double()


def adapt(base, **options):
    return get_peft_model(base, LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | options))


def draw_examples(count, seed):
    """3 to 12 tokens, of which the first are not labelled."""
    rng = random.Random(seed)
    examples = []
    for _ in range(count):
        ids = [rng.randrange(1, VOCABULARY) for _ in range(rng.randint(3, 12))]
        start = rng.randrange(1, len(ids))
        examples.append(Example(ids, [IGNORED] * start + ids[start:]))
    return examples


def average(gradients):
    """Moments as if the gradients had been those of the steps so far."""
    first = {name: sum(g[name] for g in gradients).float() / 20 for name in gradients[0]}
    second = {name: sum(g[name].square() for g in gradients).float() / 20 for name in gradients[0]}
    return AdamMoments(first, second, step=7, betas=(0.9, 0.99), eps=1e-6, learning_rate=1e-3)


@torch.no_grad()
def check_scores(model, singly):
    """Scores in batches of any size are those of the loop, whose gradients are the directions too."""
    torch.manual_seed(2)
    parameters = scored_parameters(model)
    for parameter in parameters.values():  # LoRA starts where half the gradients are zero
        parameter.add_(torch.randn(parameter.shape) * 0.1)
    samples = draw_examples(7, seed=3)
    oracle = copy.deepcopy(model).double().eval()
    with torch.enable_grad():
        gradients = [reference_gradient(oracle, example, list(parameters)) for example in samples[:5]]
        directions = torch.stack([torch.cat([g.flatten() for g in gradient.values()]) for gradient in gradients[:2]])
        moments = average(gradients[2:])
        expected = reference_scores(model, samples, directions.float(), moments, momentum=True)
    assert expected.abs().max() > 0.05
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch_tokens in (1, 30, 200):
            scorer = GradientScorer(model, directions, moments, momentum=True, batch_tokens=batch_tokens)
            assert (scorer.score(samples) - expected).abs().max() < TOLERANCE
    told = [str(warning.message) for warning in caught if "one at a time" in str(warning.message)]
    assert len(told) == singly
    assert can_batch(model, samples[0].input_ids) != singly


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_is_scored_exactly(kind):
    check_scores(adapt(build(kind)), singly=kind in SINGLY)


class Expert(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.up_proj(x)))


class ExpertList(nn.Module):
    """A mixture as models with code of their own have it: a linear layer an expert, fed with its tokens alone."""

    def __init__(self, width=32, hidden=16, count=6):
        super().__init__()
        self.gate = nn.Linear(width, count, bias=False)
        self.experts = nn.ModuleList(Expert(width, hidden) for _ in range(count))

    def forward(self, x):
        flat = x.flatten(0, 1)
        weights, chosen = self.gate(flat).softmax(dim=-1).topk(1, dim=-1)
        out = torch.zeros_like(flat)
        for place, expert in enumerate(self.experts):
            tokens, slots = (chosen == place).nonzero(as_tuple=True)
            if len(tokens):
                out = out.index_add(0, tokens, expert(flat[tokens]) * weights[tokens, slots, None])
        return out.view_as(x)


def with_experts():
    base = build("llama")
    for layer in base.model.layers:
        layer.mlp = ExpertList().double()
    return base


def with_norms():
    model = adapt(build("llama"))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or "norm" in name)
    return model


def linear_only(model):
    model.requires_grad_(False)
    for layer in model.model.layers:
        layer.requires_grad_(True).input_layernorm.requires_grad_(False)
        layer.post_attention_layernorm.requires_grad_(False)
    return model


def used_twice():
    model = adapt(build("llama"))
    layers = model.get_base_model().model.layers
    layers[1].mlp = layers[0].mlp
    return model


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
KINDS = {  # name -> (model, whether its samples go one at a time)
    "plain": (lambda: adapt(build("llama"), target_modules=ATTENTION), False),
    "rslora": (lambda: adapt(build("llama"), use_rslora=True), False),
    "dropout": (lambda: adapt(build("llama"), lora_dropout=0.5).train(), False),
    "rank patterns": (lambda: adapt(build("llama"), rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3}), False),
    "pissa": (lambda: adapt(build("llama").float(), init_lora_weights="pissa").double(), False),
    "lm_head": (lambda: adapt(build("llama"), target_modules=[*ATTENTION, "lm_head"]), False),
    "lora_bias": (lambda: adapt(build("qwen2"), target_modules=ATTENTION[:3], lora_bias=True), False),
    "bias": (lambda: adapt(build("qwen2"), bias="lora_only"), False),
    "saved head": (lambda: adapt(build("llama"), modules_to_save=["lm_head"]), False),
    "saved embeddings": (lambda: adapt(build("llama"), modules_to_save=["embed_tokens"]), True),
    "saved norms": (lambda: adapt(build("llama"), modules_to_save=["input_layernorm"]), True),
    "dora": (lambda: adapt(build("llama"), use_dora=True), True),
    "dora of Conv1D": (lambda: adapt(build("gpt2"), use_dora=True, fan_in_fan_out=True), True),
    "embeddings": (lambda: adapt(build("llama"), target_modules=["q_proj", "embed_tokens"]), True),
    "dora embeddings": (lambda: adapt(build("llama"), target_modules=["embed_tokens"], use_dora=True), True),
    "some tokens": (lambda: adapt(build("llama"), trainable_token_indices=[1, 5, 40]), True),
    "some tokens, tied": (
        lambda: adapt(build("llama", tie_word_embeddings=True), trainable_token_indices=[1, 5, 40]),
        True,
    ),
    "norms": (with_norms, True),
    "a layer used twice": (used_twice, True),
    "attention of experts": (lambda: adapt(build("qwen3_moe"), target_modules=ATTENTION), False),
    "stacked experts": (
        lambda: adapt(build("mixtral"), target_modules=[], target_parameters=["gate_up_proj", "down_proj"]),
        True,
    ),
    "listed experts": (lambda: adapt(with_experts()), True),
    "full": (lambda: build("llama"), True),
    "full, tied": (lambda: build("qwen3", tie_word_embeddings=True), True),
    "full linear": (lambda: linear_only(build("qwen2")), False),
    "full experts": (lambda: build("qwen3_moe"), True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_fine_tuning_is_scored_exactly(kind):
    make, singly = KINDS[kind]
    check_scores(make(), singly)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: get_peft_model(build("llama"), VeraConfig(r=4)), "of the kind VERA; fine-tune with LoRA or DoRA"),
        (lambda: get_peft_model(build("llama"), AdaLoraConfig(total_step=10)), "of the kind ADALORA"),
        (lambda: get_peft_model(build("llama"), IA3Config()), "of the kind IA3"),
        (
            lambda: get_peft_model(build("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
            "of the kind PROMPT_TUNING",
        ),
        (lambda: adapt(build("llama"), alora_invocation_tokens=[5]), "is a ALoraLinearVariant, no plain LoRA"),
        (lambda: adapt(build("llama"), kasa_config=KasaConfig()), "is a KasaLinearVariant, no plain LoRA"),
        (lambda: adapt(build("qwen3_moe", output_router_logits=True)), "train and score with output_router_logits=Fal"),
        (
            lambda: adapt(build("qwen2"), bias="lora_only").requires_grad_(False),
            r"trains biases \(lora_only\) and is frozen; load it with is_trainable=True",
        ),
        (
            lambda: adapt(
                build("llama", tie_word_embeddings=True),
                target_modules=["embed_tokens", "lm_head"],
                ensure_weight_tying=True,
            ),
            "in one memory, .*; train without PEFT's ensure_weight_tying",
        ),
    ],
)
def test_training_whose_step_is_not_of_the_samples_losses_alone_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        scored_parameters(make())


class CaptureAtEnd(TrainerCallback):
    def on_train_end(self, args, state, control, **kwargs):
        self.moments = capture_moments(kwargs["model"], kwargs["optimizer"], learning_rate=1e-2)


def train(model, folder):
    """A Trainer's run of four steps with weight decay; the moments captured live at its end, in the model's order."""
    arguments = TrainingArguments(
        str(folder),
        **dict(use_cpu=True, num_train_epochs=2, per_device_train_batch_size=8, weight_decay=0.1, learning_rate=1e-2),
        **dict(logging_steps=1, save_strategy="epoch", report_to="none", disable_tqdm=True),
        remove_unused_columns=False,
    )
    capture = CaptureAtEnd()
    examples = draw_examples(16, seed=5)
    Trainer(model, arguments, data_collator=collate, train_dataset=examples, callbacks=[capture]).train()
    return match_moments(capture.moments, model)


def assert_equal(found, expected):
    assert list(found.exp_avg) == list(expected.exp_avg) and found.step == expected.step == 4
    for name in expected.exp_avg:
        assert torch.equal(found.exp_avg[name], expected.exp_avg[name])
        assert torch.equal(found.exp_avg_sq[name], expected.exp_avg_sq[name])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("qwen2", dict(target_modules=["q_proj"], use_dora=True, modules_to_save=["lm_head", "norm"])),
        ("qwen2", dict(target_modules=["q_proj", "embed_tokens"], bias="lora_only")),
        ("qwen2", dict(target_modules=["q_proj"], trainable_token_indices=[1, 5, 40], lora_bias=True)),
        ("mixtral", dict()),
        ("olmoe", dict(target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"])),
    ],
)
def test_a_trainers_checkpoint_holds_the_moments_of_every_part(kind, options, tmp_path):
    base = build(kind).float()
    base.save_pretrained(tmp_path / "base")
    model = adapt(base, base_model_name_or_path=str(tmp_path / "base"), **options)
    live = train(model, tmp_path)
    spec = ModelSpec(path=str(tmp_path / "base"), dtype="float32")
    loaded, moments = load_checkpoint(spec, tmp_path / "checkpoint-4", "cpu")
    trained, found = scored_parameters(model), scored_parameters(loaded)
    assert list(found) == list(trained)
    assert all(torch.equal(found[name], trained[name]) for name in trained)
    assert_equal(match_moments(moments, loaded), live)


def test_a_checkpoint_of_a_fully_trained_tied_model_holds_the_moments(tmp_path):
    model = build("qwen3", tie_word_embeddings=True).float()
    live = train(model, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-4")
    moments = match_moments(load_trainer_moments(tmp_path / "checkpoint-4", loaded), loaded)
    assert_equal(moments, live)


def test_an_expert_that_got_no_token_in_some_step_is_refused():
    model = adapt(with_experts().float())
    optimizer = torch.optim.AdamW(scored_parameters(model).values())
    for example in draw_examples(3, seed=6):  # too few tokens for six experts
        optimizer.zero_grad()
        model(**collate([example])).loss.backward()
        optimizer.step()
    with pytest.raises(
        ValueError, match="steps in which every parameter had a gradient|differ in .*no token of a batch"
    ):
        capture_moments(model, optimizer, learning_rate=1e-3)

import copy

import pytest
import torch
from conftest import build_lora_model, draw_examples
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from rubric_influence.influence.layers import scored_parameters
from rubric_influence.influence.moments import AdamMoments
from rubric_influence.influence.scorers import Differences, ForwardScorer
from rubric_influence.influence.served import ServedScorer, export_scorer, relative_errors
from rubric_influence.lab.networks import build_model
from rubric_influence.models.losses import sweep_losses

BATCH_TOKENS = 300


@pytest.fixture(scope="module")
def pairs(tokenizer):
    return draw_examples(tokenizer, 20, seed=5)


@pytest.fixture(scope="module")
def forward(warmed, directions):
    model, _, moments = warmed
    return ForwardScorer(model, directions, moments, momentum=True, batch_tokens=BATCH_TOKENS)


@pytest.fixture(scope="module")
def exported(forward, pairs, tmp_path_factory):
    return export_scorer(forward, tmp_path_factory.mktemp("adapters"), pairs[:4])


@pytest.fixture(scope="module")
def measure(warmed):
    """Losses under an adapter that is read from its folder onto a base model of its own."""
    base = copy.deepcopy(warmed[0]).unload()

    def losses(adapter, examples):
        return sweep_losses(PeftModel.from_pretrained(copy.deepcopy(base), adapter), examples, BATCH_TOKENS)

    return losses


def test_adapters_are_theta_plus_and_minus_the_offsets_to_the_bit(forward, exported):
    parameters = {name.replace(".default", ""): p.detach() for name, p in scored_parameters(forward.model).items()}
    assert len(exported.adapters) == len(forward.offsets) == 2
    for offset, folders in zip(forward.offsets, exported.adapters, strict=True):
        parts = dict(zip(parameters, offset.split([p.numel() for p in parameters.values()]), strict=True))
        for folder, sign in zip(folders, (1, -1), strict=True):
            written = load_file(folder / "adapter_model.safetensors")
            assert written.keys() == parameters.keys()
            for name, tensor in written.items():
                assert torch.equal(tensor, parameters[name] + sign * parts[name].view_as(tensor))
                assert not torch.equal(tensor, parameters[name])


def test_served_scores_are_the_forward_estimators(forward, exported, measure, pairs):
    scores = ServedScorer(exported, measure).score(pairs)
    assert scores.dtype == torch.float32 and scores.shape == (20, 2)
    assert torch.equal(scores, forward.score(pairs))


def test_the_model_is_left_as_it_was(forward, pairs, tmp_path):
    before = {name: parameter.clone() for name, parameter in forward.model.named_parameters()}
    export_scorer(forward, tmp_path, pairs[:1])
    assert all(torch.equal(before[name], parameter) for name, parameter in forward.model.named_parameters())


@pytest.mark.parametrize("fault", ["rounded", "another adapter"])
def test_an_engine_that_does_not_give_torchs_scores_is_refused(exported, measure, fault):
    def losses(adapter, examples):
        if fault == "rounded":
            return measure(adapter, examples).bfloat16().double()
        return measure(exported.adapters[0][adapter.name.endswith("minus")], examples)  # the first direction's, always

    with pytest.raises(ValueError, match=r"scores of 4 samples are .* of their size from torch's, expected at most"):
        ServedScorer(exported, losses)
    if fault == "rounded":
        ServedScorer(exported, losses, tolerance=float("inf"))


def test_what_an_adapter_cannot_hold_is_refused(tokenizer, pairs, tmp_path):
    def export(model):
        parameters = scored_parameters(model)
        ones = {name: torch.ones_like(p) for name, p in parameters.items()}
        moments = AdamMoments(ones, ones, step=1, betas=(0.9, 0.999), eps=1e-8, learning_rate=1.0)
        directions = torch.ones(1, sum(p.numel() for p in parameters.values()))
        scorer = ForwardScorer(model, directions, moments, momentum=False, batch_tokens=BATCH_TOKENS)
        return export_scorer(scorer, tmp_path, pairs[:1])

    full = build_model(tokenizer, "qwen3", hidden_size=32, layers=2)
    with pytest.raises(ValueError, match="an adapter cannot hold all that is trained: model.embed_tokens.weight, "):
        export(full)
    saved = get_peft_model(full, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"]))
    with pytest.raises(ValueError, match="cannot hold all that is trained: .*q_norm.modules_to_save"):
        export(saved)
    assert not list(tmp_path.iterdir())
    assert len(export(build_lora_model(tokenizer, "qwen3", targets=["q_proj", "v_proj"])).adapters) == 1


def test_differences_and_relative_errors_are_the_hand_computed_ones():
    # (2 - 1) / (2 * 0.25) + 0.5 = 2.5 and (1 - 4) / (2 * 0.25) + 0.5 = -5.5
    differences = Differences(steps=torch.tensor([0.25]).double(), common=torch.tensor([0.5]).double())
    losses = torch.tensor([[[2.0, 1.0], [1.0, 4.0]]]).double()  # of one direction: theta plus, theta minus
    assert differences.score(losses).tolist() == [[2.5], [-5.5]]
    with pytest.raises(ValueError, match="score of example 1 is not finite"):
        differences.score(torch.tensor([[[2.0, float("nan")], [1.0, 4.0]]]).double())
    # sqrt(0.3^2 + 0.4^2) / sqrt((4 - 1)^2 + (5 - 1)^2) = 0.5 / 5
    found, expected = torch.tensor([[4.3], [5.4]]), torch.tensor([[4.0], [5.0]])
    assert relative_errors(found, expected, torch.tensor([1.0])).tolist() == pytest.approx([0.1])

"""The gradient of the contrast among options, against differences of the objective that `sit` measures."""

import numpy as np
import pytest
import torch

from benchmarks.textbooks.contrast import contrast_gradients
from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.core.records import ExamItem
from rubric_influence.evaluation.exam import encode_options, sit
from rubric_influence.influence.api import Target
from rubric_influence.influence.layers import scored_parameters
from rubric_influence.models.loading import load_tokenizer
from rubric_influence.models.losses import sweep_losses
from rubric_influence.training.fine_tuning import load_fine_tuned

ITEMS = [
    ExamItem("What is the dose?", ("5 mg of the answer", "a rubric", "50"), 0, "validation"),
    ExamItem("Which question?", ("the rubric says so", "mg"), 1, "validation"),
]


@pytest.fixture
def target(subword_model, write_adapter, tmp_path):
    spec = ModelSpec(path=str(subword_model), dtype="float32", attention="eager")
    model = load_fine_tuned(spec, write_adapter(subword_model, tmp_path / "adapter")).double()
    return Target(model, load_tokenizer(spec), moments=None)


def measure_objectives(target):
    """option_nats, and the same with each option's mean log-likelihood a token, over ITEMS."""
    by_length = []
    for item in ITEMS:
        nats = sweep_losses(target.model, encode_options(target.tokenizer, item, target.template), 1000).numpy()
        by_length.append(nats[item.answer_index] + np.logaddexp.reduce(-nats))
    sitting = sit(target.model, target.tokenizer, ITEMS, target.template, 1000)
    return np.array([sitting.option_nats.mean(), np.mean(by_length)])


def shift(model, step):
    for parameter, part in zip(
        (factors := scored_parameters(model)).values(),
        step.split([factor.numel() for factor in factors.values()]),
        strict=True,
    ):
        parameter.data += part.view_as(parameter)


def test_parts_are_of_their_own_items(target):
    first, second = contrast_gradients(target, ITEMS, parts=2, batch_tokens=200)
    assert torch.allclose(first, contrast_gradients(target, ITEMS[:1], parts=1, batch_tokens=200)[0], atol=1e-6)
    whole = contrast_gradients(target, ITEMS, parts=1, batch_tokens=200)[0]
    assert torch.allclose((first + second) / 2, whole, atol=1e-6)


def test_gradients_are_the_slopes_of_both_objectives(target):
    gradients = contrast_gradients(target, ITEMS, parts=1, batch_tokens=200)[0].double()
    step = 1e-5 * torch.randn(gradients.shape[1], generator=torch.Generator().manual_seed(0)).double()
    shift(target.model, step)
    above = measure_objectives(target)
    shift(target.model, -2 * step)
    slopes = (above - measure_objectives(target)) / 2
    assert np.allclose((gradients @ step).numpy(), slopes, rtol=0.01)

import copy

import pytest
import torch
from conftest import draw_examples

from rubric_influence.influence import singly
from rubric_influence.influence.gradients import example_gradients
from rubric_influence.influence.layers import scored_parameters
from rubric_influence.influence.singly import sweep_singly
from rubric_influence.models.examples import Example


@pytest.fixture(scope="module")
def pairs(tokenizer):
    return draw_examples(tokenizer, 6, seed=5)


def collect(model, examples):
    """The gradients [n, d] that a visitor sees, and the order of its rows."""
    out = torch.full((len(examples), sum(p.numel() for p in scored_parameters(model).values())), torch.nan)
    order = []

    def visit(rows, span, gradients):
        assert out[rows, span].isnan().all() and gradients.shape == (1, span.stop - span.start)
        out[rows, span] = gradients
        order.extend(rows.tolist() if span.start == 0 else [])
        gradients.fill_(7.0)  # they are the visitor's to change

    sweep_singly(model, examples, visit)
    return out, order


def test_gradients_are_those_of_batches_and_come_longest_first(warmed, pairs):
    model, _, _ = warmed
    found, order = collect(model, pairs)
    expected = example_gradients(model, pairs, batch_tokens=300)
    assert (found - expected).norm(dim=1).max() < 1e-5 * expected.norm(dim=1).min()
    lengths = [len(pairs[row].input_ids) for row in order]
    assert lengths == sorted(lengths, reverse=True) and len(order) == len(pairs)


def test_large_parameters_are_visited_in_pieces(warmed, pairs, monkeypatch):
    model = copy.deepcopy(warmed[0])
    model.unused = torch.nn.Parameter(torch.ones(30))
    expected, _ = collect(model, pairs[:2])
    monkeypatch.setattr(singly, "PIECE", 7)
    assert torch.equal(collect(model, pairs[:2])[0], expected)
    sizes = set()
    sweep_singly(model, pairs[:1], lambda rows, span, gradients: sizes.add(gradients.shape[1]))
    assert max(sizes) == 7


def test_a_parameter_without_part_in_the_loss_is_visited_with_zeros(warmed, pairs):
    model = copy.deepcopy(warmed[0])
    model.unused = torch.nn.Parameter(torch.ones(3))
    found, _ = collect(model, pairs[:2])
    place = list(scored_parameters(model)).index("unused")
    start = sum(p.numel() for p in list(scored_parameters(model).values())[:place])
    assert found[:, start : start + 3].tolist() == [[0.0] * 3] * 2
    assert found.isfinite().all() and found.abs().sum(dim=1).min() > 0


def test_bfloat16_gradients_are_visited_as_fp32(warmed, pairs):
    model = copy.deepcopy(warmed[0]).to(torch.bfloat16)
    seen = []
    sweep_singly(model, pairs[:1], lambda rows, span, gradients: seen.append(gradients.dtype))
    assert set(seen) == {torch.float32}


def test_the_model_is_left_as_it_was_even_after_an_error(warmed, pairs):
    model = copy.deepcopy(warmed[0]).train()
    first, second, *_ = scored_parameters(model).values()
    first.grad = torch.ones_like(first)
    second.requires_grad_(False)

    def state():
        return (
            [module.training for module in model.modules()],
            [(p.requires_grad, None if p.grad is None else p.grad.sum().item()) for p in model.parameters()],
            [len(p._post_accumulate_grad_hooks or ()) for p in scored_parameters(model).values()],
        )

    before = state()
    sweep_singly(model, pairs, lambda *_: None)
    assert state() == before
    with pytest.raises(IndexError):
        sweep_singly(model, [Example([1, 10**6], [-100, 1])], lambda *_: None)
    assert state() == before

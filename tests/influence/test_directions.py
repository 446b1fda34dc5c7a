import pytest
import torch
from conftest import draw_examples

from rubric_influence.influence.directions import cluster_embeddings, validation_gradients
from rubric_influence.influence.gradients import example_gradients


@pytest.fixture(scope="module")
def pairs(tokenizer):
    return draw_examples(tokenizer, 20, seed=5)


def test_validation_gradient_is_the_mean_over_its_group(warmed, pairs):
    model, _, _ = warmed
    each = example_gradients(model, pairs[:5], batch_tokens=150)
    groups = ["b", "a", "b", "b", "a"]
    means = validation_gradients(model, pairs[:5], groups, batch_tokens=150)
    assert list(means) == ["a", "b"]
    assert torch.allclose(means["a"], (each[1] + each[4]) / 2, atol=1e-7)
    assert torch.allclose(means["b"], (each[0] + each[2] + each[3]) / 3, atol=1e-7)
    whole = validation_gradients(model, pairs[:5], None, batch_tokens=150)
    assert torch.allclose(whole["all"], each.mean(dim=0), atol=1e-7)


def test_embeddings_that_lie_together_are_one_cluster():
    embeddings = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [0.1, 1.0], [1.0, 0.0], [0.0, 1.0]]), dim=1)
    labels = cluster_embeddings(embeddings, clusters=2, seed=0)
    assert labels[0] == labels[2] != labels[1] == labels[3]
    with pytest.raises(ValueError, match="clusters is 5 and there are 4 validation questions"):
        cluster_embeddings(embeddings, clusters=5, seed=0)

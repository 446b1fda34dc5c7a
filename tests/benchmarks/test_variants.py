import pytest
import torch
from sklearn.cluster import KMeans

from benchmarks.influence.variants import cluster_directions


def test_clusters_are_those_of_unit_gradients_and_directions_their_mean_gradients():
    # Two directions of gradient at very different lengths: by raw distance the long one would stand alone.
    gradients = torch.tensor([[1.0, 0.1, 0.0], [100.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 3.0, 0.3]])
    directions, labels = cluster_directions(gradients, clusters=2, seed=0)
    assert labels[0] == labels[1] != labels[2] == labels[3]
    assert torch.allclose(directions[labels[0]], torch.tensor([50.5, 0.05, 0.0]))
    assert torch.allclose(directions[labels[2]], torch.tensor([0.0, 2.0, 0.15]))


def test_clustering_by_inner_products_is_as_good_as_k_means_on_the_gradients_themselves():
    gradients = torch.randn(30, 200, generator=torch.Generator().manual_seed(1))
    gradients += 3 * torch.randn(4, 200, generator=torch.Generator().manual_seed(2)).repeat(8, 1)[:30]
    units = gradients / gradients.norm(dim=1, keepdim=True)
    _, labels = cluster_directions(gradients, clusters=4, seed=0)
    plain = KMeans(4, n_init=10, random_state=0).fit_predict(units.numpy())
    assert len(set(zip(labels, plain, strict=True))) == 4  # the same partition, up to the clusters' numbers


def test_clusters_that_cannot_be_made_are_refused():
    with pytest.raises(ValueError, match="clusters is 3 and there are 2 validation gradients"):
        cluster_directions(torch.eye(2), clusters=3, seed=0)
    with pytest.raises(ValueError, match="validation gradient 1 is zero"):
        cluster_directions(torch.tensor([[1.0], [0.0]]), clusters=1, seed=0)

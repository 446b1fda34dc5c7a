import pytest
import torch
from conftest import draw_examples

from rubric_influence.influence.embeddings import embed, embedding_similarity


def test_embeddings_are_position_weighted_means_of_the_last_states(warmed, tokenizer):
    model = warmed[0].eval()
    for example in draw_examples(tokenizer, 3, seed=7):
        with torch.no_grad():
            states = model(input_ids=torch.tensor([example.input_ids]), output_hidden_states=True).hidden_states[-1][0]
        weights = torch.arange(1, len(states) + 1.0)
        mean = (weights[:, None] * states).sum(dim=0) / weights.sum()
        assert embed(model, [example], 512)[0] == pytest.approx((mean / mean.norm()).tolist(), abs=1e-5)


def test_neither_batch_nor_order_nor_padding_matters(warmed, tokenizer):
    model = warmed[0]
    examples = draw_examples(tokenizer, 12, seed=7)
    alone = torch.cat([embed(model, [example], 512) for example in examples])
    assert torch.allclose(embed(model, examples, 4096), alone, atol=1e-5)
    assert torch.allclose(embed(model, examples[::-1], 200), alone.flip(0), atol=1e-5)


def test_similarity_is_the_mean_cosine_and_a_sample_is_nearest_to_itself(warmed, tokenizer):
    model = warmed[0]
    examples = draw_examples(tokenizer, 6, seed=7)
    vectors = embed(model, examples, 4096)
    found = embedding_similarity(model, examples, examples[:2], 4096)
    assert torch.allclose(found, (vectors @ vectors[:2].T).mean(dim=1), atol=1e-6)
    assert embedding_similarity(model, examples, examples[3:4], 4096).argmax() == 3


def test_the_models_mode_is_left_as_it_was(warmed, tokenizer):
    model = warmed[0].train()
    embed(model, draw_examples(tokenizer, 2, seed=7), 512)
    assert all(module.training for module in model.modules())
    model.eval()

"""What influence has to beat: choosing samples by how near they lie to validation questions in embedding space.

RDS+ (Ivison et al. 2025, arXiv 2503.01807): the model's own last hidden states, averaged with weights that grow
linearly with the position, compared by cosine. It needs no gradients, and sees what a text is about, not what the
model would learn from it.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from rubric_influence.influence.examples import Example, collate
from rubric_influence.influence.gradients import plan_batches


@torch.no_grad()
def embed(model: nn.Module, examples: Sequence[Example], batch_tokens: int) -> torch.Tensor:
    """Unit embeddings [n, h] in fp32, on the CPU: sum_i i*h_i / sum_i i over a sample's tokens, i from 1.

    h_i is the last layer's state after its norm, in eval mode.
    """
    backbone = find_backbone(model)
    device = next(backbone.parameters()).device
    training, rows_of = backbone.training, plan_batches([len(e.input_ids) for e in examples], batch_tokens)
    found: dict[int, torch.Tensor] = {}
    backbone.eval()
    try:
        for rows in rows_of:
            batch = collate([examples[row] for row in rows], pad_token_id=0)
            inputs = {key: batch[key].to(device) for key in ("input_ids", "attention_mask")}
            states = backbone(**inputs, use_cache=False).last_hidden_state.float()
            weights = inputs["attention_mask"].cumsum(dim=1) * inputs["attention_mask"]
            means = torch.einsum("bs,bsh->bh", weights.float(), states)
            found.update(zip(rows, nn.functional.normalize(means, dim=1).cpu(), strict=True))
    finally:
        backbone.train(training)
    return torch.stack([found[row] for row in range(len(examples))])


def find_backbone(model: nn.Module) -> nn.Module:
    """The model under its language-model head and PEFT's wrapper."""
    inner = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    return inner.base_model


def embedding_similarity(
    model: nn.Module, examples: Sequence[Example], validation: Sequence[Example], batch_tokens: int
) -> torch.Tensor:
    """Each example's mean cosine with the validation examples, [n], fp32, in [-1, 1]. Both must not be empty.

    Departure from RDS+: the mean and not round robin over questions, since a score is wanted and no selection.
    """
    return embed(model, examples, batch_tokens) @ embed(model, validation, batch_tokens).mean(dim=0)

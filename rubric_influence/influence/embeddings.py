"""The baseline that influence has to beat: how near samples lie to validation questions in embedding space.

RDS+ (Ivison et al. 2025, arXiv 2503.01807): the model's own last hidden states, averaged with weights that grow
linearly with the position, compared by cosine. It needs no gradients, and sees what a text is about, not what the
model would learn from it.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from rubric_influence.models.examples import Example, collate
from rubric_influence.models.losses import evaluated, plan_batches


@torch.no_grad()
def embed(model: nn.Module, examples: Sequence[Example], batch_tokens: int) -> torch.Tensor:
    """Unit embeddings [n, h] in fp32, on the CPU: sum_i i*h_i / sum_i i over a sample's tokens, i from 1.

    h_i is the last layer's state after its norm, in eval mode.
    """
    # Under the language-model head and PEFT's wrapper.
    backbone = next(module for module in model.modules() if isinstance(module, PreTrainedModel)).base_model
    device = next(backbone.parameters()).device
    found: dict[int, torch.Tensor] = {}
    with evaluated(backbone):
        for rows in plan_batches([len(example.input_ids) for example in examples], batch_tokens):
            batch = collate([examples[row] for row in rows])
            inputs = {key: batch[key].to(device) for key in ("input_ids", "attention_mask")}
            states = backbone(**inputs, use_cache=False).last_hidden_state.float()
            weights = inputs["attention_mask"].cumsum(dim=1) * inputs["attention_mask"]
            means = torch.einsum("bs,bsh->bh", weights.float(), states)
            found.update(zip(rows, nn.functional.normalize(means, dim=1).cpu(), strict=True))
    return torch.stack([found[row] for row in range(len(examples))])


def embedding_similarity(
    model: nn.Module, examples: Sequence[Example], validation: Sequence[Example], batch_tokens: int
) -> torch.Tensor:
    """Each example's mean cosine with the validation examples, [n], fp32, in [-1, 1]. Both must not be empty.

    Departure from RDS+: a mean over questions, as this is a score; RDS+ selects by round robin.
    """
    return embed(model, examples, batch_tokens) @ embed(model, validation, batch_tokens).mean(dim=0)

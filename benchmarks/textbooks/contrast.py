"""The contrast among options as an objective of influence, beside the likelihood of the right answer.

The likelihood of the right answer rises with whatever teaches its form, false pairs included. The share of the right
option among all of a question's options falls where a wrong one gains as much.
"""

from collections.abc import Sequence

import numpy as np
import torch

from rubric_influence.core.records import ExamItem
from rubric_influence.evaluation.exam import count_labels, encode_options
from rubric_influence.influence.api import Target
from rubric_influence.influence.directions import sum_gradients
from rubric_influence.influence.gradients import check_finite
from rubric_influence.models.losses import sweep_losses


def contrast_gradients(target: Target, items: Sequence[ExamItem], parts: int, batch_tokens: int) -> torch.Tensor:
    """grad L over the scored parameters, [parts, 2, d], of L = mean over items of -log softmax_o(s)[right], in nats.

    A part is every parts-th item. First with s_o the log-likelihood of option o (then L is the measure option_nats),
    then with its mean a token, which makes long options and an overconfident model count less. With p = softmax(s),
    dL/ds_o = p_o - [o is right].
    """
    rows = [encode_options(target.tokenizer, item, target.template) for item in items]
    examples = [example for row in rows for example in row]
    nats = sweep_losses(target.model, examples, batch_tokens).numpy()  # a token
    counts = np.array([count_labels(example) for example in examples], float)
    scales = np.stack([counts, np.ones(len(examples))])
    weights, start = np.zeros((parts, *scales.shape)), 0  # of the gradient of nats
    for place, (item, row) in enumerate(zip(items, rows, strict=True)):
        span = slice(start, start := start + len(row))
        scores = -nats[span] * scales[:, span]
        shares = np.exp(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))
        part, items_of_part = place % parts, len(range(place % parts, len(items), parts))
        weights[part][:, span] = (np.eye(len(row))[item.answer_index] - shares) * scales[:, span] / items_of_part
    weights_kn = torch.tensor(weights.reshape(2 * parts, -1), dtype=torch.float32)
    summed = sum_gradients(target.model, examples, weights_kn, batch_tokens)
    return check_finite(summed, "contrast gradient").view(parts, 2, -1)

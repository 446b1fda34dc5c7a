"""The unrolled oracle: the exact derivative of a loss after a whole fine-tuning by the weight of each sample in it.

Training is that of checks.retraining with the samples' losses l_i weighed by w [n]: each step's gradient is that of
1/|B| sum_{i in B} w_i l_i, clipped, and AdamW goes on from the captured moments. The score is a metagradient (arXiv
2503.13751), which MAGIC (arXiv 2504.16430) attributes data by:

    s_i = - d L_V(theta_T(w)) / d w_i    at w = 1,    positive: more weight on the sample lowers the loss, nats a token

It sees all that a first-order score of a single step leaves out: the other samples of the batch, clipping, momentum,
later steps and curvature on the way. What it leaves out itself is that leaving a sample out takes w_i to 0 and not a
little below 1.

It asks another question than Gamma does. Influence scores a step that is made of the sample alone, so g_i goes into
the second moment undiluted and its length is Adam's. s_i scores the sample's margin in a step that it shares: of one
step, with g the batch's gradient and Gamma' Adam's elementwise derivative there,

    s_i = lr / |B| * < grad L_V(theta_1), Gamma'(g) * g_i >

which is linear in g_i. The estimator `linear` has 1 / (sqrt(v^) + eps) in place of Gamma'(g).

It costs some four times the training. The states of all steps are kept (three vectors of the scored parameters each),
and a step is made again to go back through it, so that the graph of one step at a time is in memory.

Shapes: n samples, d scored parameters, b samples of a batch.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rubric_influence.influence.checks.oracle import AdamCopy, example_losses
from rubric_influence.influence.checks.retraining import MAX_GRAD_NORM, Recipe, weigh
from rubric_influence.influence.moments import AdamMoments
from rubric_influence.models.examples import Example
from rubric_influence.models.losses import plan_batches

State = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # scored parameters, first and second moment, [d] each


def unrolled_scores(
    model: nn.Module,
    examples: Sequence[Example],
    validation: Sequence[Example],
    moments: AdamMoments,
    recipe: Recipe,
    seed: int,
    *,
    batch_tokens: int,
    weights_n: torch.Tensor | None = None,
) -> torch.Tensor:
    """s_i of each example in a training on all of them, [n], fp64, in nats a token a unit of weight, on the CPU.

    The derivative is taken at weights_n, 1 where None. The integral of the scores' sum over weights from 0 to 1 is what
    training on the examples gains over steps of momentum alone. Where all examples are one batch, and its gradient is
    clipped, scores sum to 0: more of all of them makes the same step.

    The training is Retraining's with the same recipe and seed; L_V is the mean loss of the validation examples. Steps
    are in the model's dtype, on a copy of it. Its operations need a second derivative: torch's attention is made of
    plain ones here, a model's own kernels may have none.

    Raises ValueError if there are no examples or no validation examples, the moments are not the model's, weights are
    not one for each example, or a score is not finite.
    """
    if not examples or not validation:
        raise ValueError(f"{len(examples)} examples and {len(validation)} validation examples; give at least one each")
    training = Unrolled(model, moments, recipe)
    batches = recipe.draw_batches(len(examples), seed)
    scores = torch.zeros(len(examples), dtype=torch.float64)
    weights_n = weigh(examples, weights_n).double().cpu()
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        states = [training.start]
        for rows in batches:
            chosen = [examples[row] for row in rows]
            states.append(cut(training.step(states[-1], len(states), chosen, weights_n[rows])))
        theta, m, v = states.pop()
        gradient = training.loss_gradient(theta, validation, batch_tokens)
        adjoint = [gradient, torch.zeros_like(m), torch.zeros_like(v)]  # of the loss, by the state after a step
        for rows in reversed(batches):
            number, state = len(states), states.pop()
            weights_b = weights_n[rows].requires_grad_()
            after = training.step(state, number, [examples[row] for row in rows], weights_b)
            *adjoint, by_weight_b = torch.autograd.grad(after, [*state, weights_b], adjoint)
            scores[rows] -= by_weight_b
    if bad := (~torch.isfinite(scores)).nonzero().flatten().tolist():
        raise ValueError(
            f"the unrolled score of example {bad[0]} is not finite ({len(bad)} of {len(scores)} are not); lower the "
            f"learning rate, {recipe.learning_rate:g}, or freeze parameters that the warm-up gave no gradient: the "
            "root of a second moment of 0 has no derivative"
        )
    return scores


class Unrolled:
    """A fine-tuning as pure functions of its state, so that autograd can go through them."""

    def __init__(self, model: nn.Module, moments: AdamMoments, recipe: Recipe):
        copy = AdamCopy(model, moments)
        self.model, self.moments, self.recipe = copy.model, copy.moments, recipe
        self.shapes = {name: parameter.shape for name, parameter in copy.start.items()}
        theta = torch.cat([parameter.flatten() for parameter in copy.start.values()])
        held = copy.moments.exp_avg, copy.moments.exp_avg_sq
        m, v = (torch.cat([part[name].flatten() for name in self.shapes]).to(theta) for part in held)
        self.start = cut((theta, m, v))

    def losses(self, theta: torch.Tensor, examples: Sequence[Example]) -> torch.Tensor:
        """Each example's loss at parameters theta, [n], fp64."""
        parts = theta.split([shape.numel() for shape in self.shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
        return example_losses(self.model, examples, named)

    def step(self, state: State, number: int, examples: Sequence[Example], weights_b: torch.Tensor) -> State:
        """The state after training step `number`, from 1, on a batch."""
        loss = (weights_b.to(state[0].device) * self.losses(state[0], examples)).mean()
        (gradient,) = torch.autograd.grad(loss, state[0], create_graph=True)
        gradient = gradient * (MAX_GRAD_NORM / (gradient.norm() + 1e-6)).clamp(max=1.0)  # as clip_grad_norm_ does
        theta, m, v = (part.clone() for part in state)  # the optimizer changes them in place
        rate, betas, eps = self.recipe.learning_rate, self.moments.betas, self.moments.eps
        optimizer = torch.optim.AdamW([theta], rate, betas, eps, weight_decay=0.0, differentiable=True)
        steps = torch.tensor(float(self.moments.step + number - 1), dtype=torch.float64)
        optimizer.state[theta] = {"step": steps, "exp_avg": m, "exp_avg_sq": v}
        theta.grad = gradient
        optimizer.step()
        return theta, m, v

    def loss_gradient(self, theta: torch.Tensor, examples: Sequence[Example], batch_tokens: int) -> torch.Tensor:
        """grad of the examples' mean loss at parameters theta, [d]."""
        total = torch.zeros_like(theta)
        for rows in plan_batches([len(example.input_ids) for example in examples], batch_tokens):
            loss = self.losses(theta, [examples[row] for row in rows]).sum() / len(examples)
            total += torch.autograd.grad(loss, theta)[0]
        return total


def cut(state: State) -> State:
    """The same values, where a new graph begins."""
    theta, m, v = (part.detach().requires_grad_() for part in state)
    return theta, m, v

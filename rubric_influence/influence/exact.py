"""Exact optimizer-aware influence, batched: no projection, no stored gradients, the same score at any batch size.

The score (arXiv 2604.00536) of sample z against validation gradient w over the LoRA parameters, at one checkpoint:

    score = cos(w, Gamma(z)),  w = grad L_V,  positive = the optimizer's step on z, -lr * Gamma, lowers L_V
    g = grad l(z);  m' = b1*m + (1-b1)*g;  v' = b2*v + (1-b2)*g^2
    Gamma = (m' / (1-b1^(t+1))) / (sqrt(v' / (1-b2^(t+1))) + eps)

l(z) is the mean loss of z's labelled tokens, so neither batch nor padding matters to it.

How: the samples of a batch meet nowhere in the model, so one backward of the SUM of their losses holds every sample's
gradient. Hooks on each LoRA factor keep its input x [b, s, i] and receive its output's gradient dy [b, s, o]; the
samples' weight gradients G = einsum('bso,bsi->boi', dy, x) are formed, used and freed factor by factor. The factors'
weights require no gradient meanwhile, which saves the summed weight gradients that nobody needs.

Shapes: b samples in a batch, s tokens, n samples, k directions, d LoRA parameters, flat in the order of
`lora_factors(model)`. Gradients and scores are fp32 whatever the model's dtype.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from sklearn.cluster import KMeans
from torch import nn

from rubric_influence.influence.examples import IGNORED, Example, collate
from rubric_influence.influence.moments import AdamMoments, listed, lora_factors, match_moments

Visit = Callable[[torch.Tensor, slice, torch.Tensor], None]


def sample_losses(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Each sample's mean loss over its labelled tokens, [b], fp32, in nats."""
    targets = batch["labels"][:, 1:]
    labelled = targets != IGNORED
    columns = labelled.any(dim=0).nonzero().squeeze(1)  # logits are needed only where some sample has a label
    device = next(model.parameters()).device
    inputs = {key: batch[key].to(device) for key in ("input_ids", "attention_mask")}
    logits = model(**inputs, logits_to_keep=columns.to(device), use_cache=False).logits
    targets = targets[:, columns].to(device)
    losses = nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view_as(targets).sum(dim=1) / labelled.sum(dim=1).to(device)


@contextmanager
def tapped(model: nn.Module, visit: Callable[[slice, torch.Tensor], None]) -> Iterator[Callable[[torch.Tensor], None]]:
    """Yields `backward(losses)`, which calls `visit(span, G)` once a LoRA factor, G [b, o, i] the samples' gradients.

    `span` is the factor's place in a flat gradient; the losses [b] are of one forward made while this is open. The
    model is in eval mode (no dropout) and its weights require no gradient; both are put back on leaving, whatever
    happened.

    Raises ValueError if a factor was used twice in the forward or on other than [batch, tokens, features], RuntimeError
    if one was not used at all.
    """
    factors = lora_factors(model)
    modes = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    used: set[str] = set()

    def tap(name: str, span: slice) -> Callable:
        def on_forward(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            x = inputs[0].detach()
            if x.dim() != 3 or name in used:
                raise ValueError(
                    f"{name} was given an input of shape {list(x.shape)}{' again' if name in used else ''}; expected "
                    "[batch, tokens, features] once a forward (mixtures of experts and shared layers are not supported)"
                )
            used.add(name)
            if not output.requires_grad:  # the first layer: nothing before it needs a gradient
                output.requires_grad_()

            def on_backward(dy: torch.Tensor) -> None:
                with torch.autocast(dy.device.type, enabled=False):
                    visit(span, torch.bmm(dy.float().transpose(1, 2), x.float()))

            output.register_hook(on_backward)

        return on_forward

    def backward(losses: torch.Tensor) -> None:
        if unused := [name for name in factors if name not in used]:
            raise RuntimeError(f"{listed(unused)} took no part in the loss; unmerge and enable the adapter first")
        used.clear()
        losses.sum().backward()

    handles = []
    try:
        model.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        start = 0
        for name, factor in factors.items():
            span = slice(start, start + factor.weight.numel())
            handles.append(factor.register_forward_hook(tap(name, span)))
            start = span.stop
        with torch.enable_grad():
            yield backward
    finally:
        for handle in handles:
            handle.remove()
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module, mode in modes:
            module.training = mode


def sweep_gradients(model: nn.Module, examples: Sequence[Example], batch_size: int, visit: Visit) -> None:
    """Call `visit(rows, span, G)` for every batch and factor: G [b, o, i] are the gradients of examples `rows` [b].

    Batches hold samples of like length, the longest first: least padding, and memory runs out at once or never.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; give at least 1")
    order = sorted(range(len(examples)), key=lambda row: -len(examples[row].input_ids))
    rows = torch.tensor([], dtype=torch.long)
    device = device_of(model)
    with tapped(model, lambda span, gradients: visit(rows, span, gradients)) as backward:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            rows = torch.tensor(chosen, device=device)  # once a batch: each index made from a list makes a GPU wait
            batch = collate([examples[row] for row in chosen], pad_token_id=0)  # any id: it is masked
            backward(sample_losses(model, batch))


def example_gradients(model: nn.Module, examples: Sequence[Example], batch_size: int) -> torch.Tensor:
    """The gradient of each example's loss, [n, d], fp32, on the CPU: for few examples (4*n*d bytes)."""
    out = torch.zeros(len(examples), count_parameters(model))

    def visit(rows: torch.Tensor, span: slice, gradients: torch.Tensor) -> None:
        out[rows.cpu(), span] = gradients.flatten(1).cpu()

    sweep_gradients(model, examples, batch_size, visit)
    refuse_non_finite(out, "gradient")
    return out


def validation_gradients(
    model: nn.Module, examples: Sequence[Example], groups: Sequence[str] | None, batch_size: int
) -> dict[str, torch.Tensor]:
    """grad L_V of each group of validation examples (all together, as "all", where groups is None): group -> [d].

    L_V is the mean over a group's examples of their losses. `groups` names each example's group; the result goes by
    name in sorted order. `torch.stack(list(result.values()))` are directions for a Scorer.

    Raises ValueError for no examples, as many groups as examples not given, or a gradient that is not finite.
    """
    if groups is None:
        groups = ["all"] * len(examples)
    if not examples or len(groups) != len(examples):
        raise ValueError(f"{len(examples)} validation examples and {len(groups)} groups; give one group per example")
    names = sorted(set(groups))
    shares = torch.tensor([[1.0 if group == name else 0.0 for group in groups] for name in names])
    shares /= shares.sum(dim=1, keepdim=True)  # [k, n]
    out = torch.zeros(len(names), count_parameters(model), device=device_of(model))
    shares = shares.to(out.device)

    def visit(rows: torch.Tensor, span: slice, gradients: torch.Tensor) -> None:
        out[:, span] += shares[:, rows] @ gradients.flatten(1)

    sweep_gradients(model, examples, batch_size, visit)
    refuse_non_finite(out, "validation gradient")
    return dict(zip(names, out, strict=True))


def cluster_directions(gradients: torch.Tensor, clusters: int, seed: int) -> tuple[torch.Tensor, list[int]]:
    """Validation directions where topics have no names: k-means over the unit gradients.

    Returns the mean gradient of each cluster's members, [k, d], which is grad L_V of that part of the validation set
    just as a named group's is, and each example's cluster. Beyond the paper, which has one direction.

    Raises ValueError if there are fewer examples than clusters, or a gradient is zero.
    """
    if not 1 <= clusters <= len(gradients):
        raise ValueError(f"clusters is {clusters} and there are {len(gradients)} validation gradients; use fewer")
    norms = gradients.norm(dim=1)
    if not (norms > 0).all():
        raise ValueError(f"validation gradient {int((norms == 0).nonzero()[0])} is zero; drop that example")
    # k-means sees only distances, and n points span at most n dimensions: rotate there before, as d may be millions.
    gram = ((gradients @ gradients.T) / torch.outer(norms, norms)).double().cpu()
    values, vectors = torch.linalg.eigh(gram)
    points = vectors * values.clamp(min=0).sqrt()
    labels = KMeans(clusters, n_init=10, random_state=seed).fit_predict(points.numpy())
    means = [gradients[torch.from_numpy(labels == cluster)].mean(dim=0) for cluster in range(clusters)]
    return torch.stack(means), labels.tolist()


class Scorer:
    """Scores samples against k validation directions at one checkpoint; made once, called on many batches.

    The model must stay at the checkpoint's weights, the moments' and directions' own.

    directions [k, d]: the w_k, such as stacked `validation_gradients`.
    momentum: False leaves m out of Gamma (m := 0; v' stays exact). m is a direction common to all samples, so it adds
        much the same to every score; the paper keeps it.
    normalise: False gives the dot products <w_k, Gamma(z)> in place of cosines; -lr times that is the first-order
        change of L_V by the step.

    Raises ValueError if the moments are not the model's, or a direction is of another size, not finite or zero.
    """

    def __init__(
        self,
        model: nn.Module,
        directions: torch.Tensor,
        moments: AdamMoments,
        *,
        momentum: bool,
        batch_size: int,
        normalise: bool = True,
    ):
        size = count_parameters(model)
        if directions.dim() != 2 or directions.shape[1] != size:
            raise ValueError(f"directions have shape {list(directions.shape)}; expected [directions, {size}]")
        refuse_non_finite(directions, "direction")
        if not (lengths := directions.float().norm(dim=1)).all():
            raise ValueError(f"direction {int((lengths == 0).nonzero()[0])} is zero; its validation loss is flat")
        moments = match_moments(moments, model)
        device = device_of(model)
        self.model, self.batch_size, self.normalise = model, batch_size, normalise
        self.directions = (directions.float() / lengths[:, None] if normalise else directions.float()).to(device)
        # Gamma with what no sample changes taken out: (first + a*g) / (sqrt(second + c*g^2) + eps).
        beta1, beta2 = moments.betas
        unbias1, unbias2 = (1 - beta ** (moments.step + 1) for beta in moments.betas)
        self.first = (flatten(moments.exp_avg) * (beta1 / unbias1)).to(device) if momentum else None
        self.second = (flatten(moments.exp_avg_sq) * (beta2 / unbias2)).to(device)
        self.first_share, self.second_share, self.eps = (1 - beta1) / unbias1, (1 - beta2) / unbias2, moments.eps

    def gamma(self, gradients: torch.Tensor, span: slice) -> torch.Tensor:
        """Gamma of flat gradients [b, span], the formula above, in the gradients' own memory."""
        scale = torch.addcmul(self.second[span], gradients, gradients, value=self.second_share).sqrt_().add_(self.eps)
        if self.first is None:
            return gradients.mul_(self.first_share).div_(scale)
        return torch.add(self.first[span], gradients, alpha=self.first_share, out=gradients).div_(scale)

    def score(self, examples: Sequence[Example]) -> torch.Tensor:
        """The scores of examples, [n, k], fp32, on the CPU, in the examples' order.

        Raises ValueError naming the first example whose score is not finite.
        """
        device = self.directions.device
        dots = torch.zeros(len(examples), len(self.directions), device=device)
        squares = torch.zeros(len(examples), 1, device=device)

        def visit(rows: torch.Tensor, span: slice, gradients: torch.Tensor) -> None:
            gamma = self.gamma(gradients.flatten(1), span)
            dots.index_add_(0, rows, gamma @ self.directions[:, span].T)
            squares.index_add_(0, rows, torch.linalg.vector_norm(gamma, dim=1, keepdim=True).square())

        sweep_gradients(self.model, examples, self.batch_size, visit)
        scores = (dots / squares.sqrt() if self.normalise else dots).cpu()
        refuse_non_finite(scores, "score of example")
        return scores


def combine(scores: Sequence[torch.Tensor], learning_rates: Sequence[float]) -> torch.Tensor:
    """Inf(z) = sum_i eta_i * score_i over checkpoints, [n, k]: eta_i is epoch i's mean learning rate, summing to 1."""
    if not scores or len(scores) != len(learning_rates) or len({s.shape for s in scores}) != 1:
        shapes = [list(s.shape) for s in scores]
        raise ValueError(f"scores of shapes {shapes} and {len(learning_rates)} learning rates; give alike, one each")
    if not all(math.isfinite(rate) and rate > 0 for rate in learning_rates):
        raise ValueError(f"learning rates are {list(learning_rates)}; each must be above 0")
    total = sum(learning_rates)
    return sum(score * (rate / total) for score, rate in zip(scores, learning_rates, strict=True))


def count_parameters(model: nn.Module) -> int:
    return sum(factor.weight.numel() for factor in lora_factors(model).values())


def device_of(model: nn.Module) -> torch.device:
    return next(iter(lora_factors(model).values())).weight.device


def flatten(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """[d] in the mapping's order, which for matched moments is that of `lora_factors`."""
    return torch.cat([tensor.flatten().float() for tensor in tensors.values()])


def refuse_non_finite(values: torch.Tensor, what: str) -> None:
    bad = (~torch.isfinite(values)).any(dim=1).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"{what} {bad[0]} is not finite ({len(bad)} of {len(values)} are not); look at its text and at the model "
            "(float16 overflows: use bfloat16 or float32)"
        )

"""The truth that scores are held against: train on a set of samples, and see what held-out questions gained.

Training goes on from the checkpoint that influence is measured at, with its optimizer's state, as the score supposes;
the set's samples meet in batches, weights move far enough for curvature to matter, and later epochs see what earlier
ones did. So it is the score's claim that is tested, and not its first-order algebra (influence.oracle does that).
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from rubric_influence.influence.checks.oracle import seed_state
from rubric_influence.influence.examples import Example, collate
from rubric_influence.influence.gradients import sample_losses
from rubric_influence.influence.layers import device_of, scored_parameters
from rubric_influence.influence.moments import AdamMoments, match_moments
from rubric_influence.influence.scorers import sweep_losses

PAD = 0  # any id: it is masked
MAX_GRAD_NORM = 1.0  # as in the warm-up


@dataclass(frozen=True)
class Recipe:
    """How a set is trained on: batches of `batch_size` in an order drawn anew each epoch, AdamW, constant rate."""

    epochs: int
    batch_size: int
    learning_rate: float

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"{self}: give at least one epoch, one sample a batch and a learning rate above 0")


class Retraining:
    """Gains of sets of samples on held-out examples, from one checkpoint; the given model is not touched."""

    def __init__(
        self,
        model: nn.Module,
        moments: AdamMoments,
        held_out: Sequence[Example],
        recipe: Recipe,
        *,
        batch_tokens: int,
    ):
        """Raises ValueError if there is nothing held out or the moments are not the model's."""
        if not held_out:
            raise ValueError("there are no held-out examples to measure a gain on; give at least one")
        self.moments = match_moments(moments, model)
        self.held_out, self.recipe, self.batch_tokens = list(held_out), recipe, batch_tokens
        self.model = copy.deepcopy(model).eval()
        self.parameters = scored_parameters(self.model)
        self.model.requires_grad_(False)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.start = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.before = self.held_out_loss()

    def held_out_loss(self) -> float:
        """The mean over held-out examples of their losses, in nats a token."""
        return sweep_losses(self.model, self.held_out, self.batch_tokens).mean().item()

    def gain(self, examples: Sequence[Example], seed: int) -> float:
        """How much training on the examples lowers the held-out loss, in nats a token: positive, it helps.

        Always from the same start. Dropout is off, so the gain depends on the seed through the batches' order alone.
        """
        recipe, device = self.recipe, device_of(self.model)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.start[name])
        optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=recipe.learning_rate,
            betas=self.moments.betas,
            eps=self.moments.eps,
            weight_decay=0.0,
        )
        seed_state(optimizer, self.parameters, self.moments)
        rng = np.random.default_rng(seed)
        for _ in range(recipe.epochs):
            order = rng.permutation(len(examples))
            for rows in np.split(order, range(recipe.batch_size, len(order), recipe.batch_size)):
                batch = {k: v.to(device) for k, v in collate([examples[row] for row in rows], PAD).items()}
                optimizer.zero_grad()
                sample_losses(self.model, batch).mean().backward()
                nn.utils.clip_grad_norm_(self.parameters.values(), MAX_GRAD_NORM)
                optimizer.step()
        gain = self.before - self.held_out_loss()
        if not math.isfinite(gain):
            raise ValueError(
                f"training on {len(examples)} samples at learning rate {recipe.learning_rate:g} diverged; lower it"
            )
        return gain

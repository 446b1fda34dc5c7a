"""The truth that scores are held against: train on a set of samples, and see what held-out questions gained.

Training goes on from the checkpoint that influence is measured at, with its optimizer's state, as the score supposes.
But samples meet in batches, weights move far enough for curvature to matter, and later epochs see what earlier ones
did. So this tests the score's claim; checks.oracle tests its first-order algebra.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from rubric_influence.influence.checks.oracle import AdamCopy
from rubric_influence.influence.layers import device_of
from rubric_influence.influence.moments import AdamMoments
from rubric_influence.models.examples import Example, collate
from rubric_influence.models.losses import sample_losses, sweep_losses

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

    def draw_batches(self, samples: int, seed: int) -> list[np.ndarray]:
        """The rows of `samples` samples in every step's batch, the last of an epoch perhaps smaller."""
        rng = np.random.default_rng(seed)
        orders = [rng.permutation(samples) for _ in range(self.epochs)]
        cuts = range(self.batch_size, samples, self.batch_size)
        return [rows for order in orders for rows in np.split(order, cuts)]


def weigh(examples: Sequence[Example], weights_n: torch.Tensor | None) -> torch.Tensor:
    """The examples' weights, [n]: 1 where none are given. Raises ValueError where they are not one for each example."""
    if weights_n is None:
        return torch.ones(len(examples))
    if weights_n.shape != (len(examples),):
        raise ValueError(f"weights of shape {list(weights_n.shape)} for {len(examples)} examples; give one for each")
    return weights_n


class Retraining:
    """Gains of sets of samples on held-out examples, from one checkpoint; the given model is not touched."""

    def __init__(
        self, model: nn.Module, moments: AdamMoments, held_out: Sequence[Example], recipe: Recipe, *, batch_tokens: int
    ):
        """Raises ValueError if there is nothing held out or the moments are not the model's."""
        if not held_out:
            raise ValueError("there are no held-out examples to measure a gain on; give at least one")
        self.held_out, self.recipe, self.batch_tokens = list(held_out), recipe, batch_tokens
        self.copy = AdamCopy(model, moments)
        self.before = self.held_out_loss()

    def held_out_loss(self) -> float:
        """The mean over held-out examples of their losses, in nats a token."""
        return sweep_losses(self.copy.model, self.held_out, self.batch_tokens).mean().item()

    def train(self, examples: Sequence[Example], seed: int, weights_n: torch.Tensor | None = None) -> None:
        """Train the copy on the examples, always from the same start; the seed orders the batches. Dropout is off.

        `weights_n` weigh the examples' losses in their batches' means, by 1 where None. One of weight 0 is left out,
        and all batches are as they were. Raises ValueError where they are not one for each example.
        """
        recipe, model, parameters = self.recipe, self.copy.model, list(self.copy.parameters.values())
        optimizer = self.copy.restart(recipe.learning_rate)
        weights_n = weigh(examples, weights_n).to(device_of(model))
        for rows in recipe.draw_batches(len(examples), seed):
            batch = {k: v.to(device_of(model)) for k, v in collate([examples[row] for row in rows]).items()}
            optimizer.zero_grad()
            (weights_n[rows] * sample_losses(model, batch)).mean().backward()
            nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
            optimizer.step()

    def gain(self, examples: Sequence[Example], seed: int, weights_n: torch.Tensor | None = None) -> float:
        """How much training on the examples lowers the held-out loss, in nats a token: positive, it helps.

        Raises ValueError where training diverged.
        """
        self.train(examples, seed, weights_n)
        gain = self.before - self.held_out_loss()
        if not math.isfinite(gain):
            raise ValueError(
                f"training on {len(examples)} samples at learning rate {self.recipe.learning_rate:g} diverged; lower it"
            )
        return gain

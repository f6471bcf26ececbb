"""Guidance by composition: several predictions of the same tokens, added up (docs/method.md §12). No classifier, no second network.

Classifier-free guidance (Ho & Salimans 2022) leans on conditions: ε̂(∅) + w·(ε̂(conditions) − ε̂(∅)), ∅ being conditions all zero, as in
training when they were dropped. History guidance (Song et al. 2025) leans on the past in the same way, and costs no dropout in training:
a token's own noise level says how much of it is there, so ∅ is a history of pure noise. Vanilla: ε̂(∅) + w·(ε̂(history) − ε̂(∅)).
Fractional: ε̂(history) + (w − 1)·(ε̂(history at `history_level`) − ε̂(∅)), which leans on what a noisy glance at the past still shows.

All of these are Σ weight·ε̂ over branches with weights of sum 1. A branch is a row of the batch, so one call of the network serves all,
and its memory holds each branch's own past.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffusion_forcing.diffusion.parameterization import Prediction, add_noise
from diffusion_forcing.errors import UserError

if TYPE_CHECKING:
    from diffusion_forcing.diffusion.forcing import DiffusionForcing


@dataclass(frozen=True)
class Branch:
    """One prediction and its weight. conditions: whether it is told them. history: the level its clean tokens are noised to; None: as
    they are."""

    weight: float
    conditions: bool = True
    history: int | None = None


def compose(
    timesteps: int, *, condition_scale: float = 1.0, history_scale: float = 1.0, history_level: int | None = None
) -> Composition | None:
    """The branches of classifier-free and of history guidance, each w's difference added to ε̂(conditions, history).

    None where both scales are 1: nothing is guided and nothing is paid. history_level: 0…K−2, for fractional history guidance.
    """
    for name, scale in (("condition_scale", condition_scale), ("history_scale", history_scale)):
        if not (math.isfinite(scale) and scale >= 0):
            raise UserError(f"{name} is {scale}; it must be a number from 0 (unguided by them) up, 1 being no guidance")
    if history_level is not None and not 0 <= history_level <= timesteps - 2:
        raise UserError(
            f"history_level is {history_level}; it must lie in 0…{timesteps - 2} (a history at {timesteps - 1} is no history), "
            "or be null for vanilla history guidance"
        )
    more_conditions, more_history = condition_scale - 1, history_scale - 1
    branches = (
        Branch(1 + more_conditions + (more_history if history_level is None else 0)),
        Branch(0 if history_level is None else more_history, history=history_level),
        Branch(-more_conditions, conditions=False),
        Branch(-more_history, history=timesteps - 1),
    )
    if more_conditions == more_history == 0:
        return None
    return Composition(tuple(branch for branch in branches if branch.weight != 0))


@dataclass(frozen=True)
class Composition:
    """Predictions to add up. Their weights have sum 1."""

    branches: tuple[Branch, ...]

    @property
    def noises_history(self) -> bool:
        """Whether a branch sees the past through noise, which must be the same in every row (`history_noise`)."""
        return any(branch.history is not None for branch in self.branches)

    def views(self, x: Tensor, clean: Tensor, history_noise: Tensor | None) -> Views:
        """What the branches are shown of tokens x: (b, t, *c), of which `clean`: (b, t) are history."""
        return Views(self.branches, x, clean, history_noise)


@dataclass(frozen=True)
class Views:
    """The branches of a composition at one row, as DiffusionForcing.predict asks them. history_noise: standard normal, like x."""

    branches: tuple[Branch, ...]
    x: Tensor
    clean: Tensor
    history_noise: Tensor | None

    def predict(
        self, forcing: DiffusionForcing, x_k: Tensor, k: Tensor, conditions: Tensor | None, memory: Any
    ) -> tuple[Prediction, Any]:
        """The weighted prediction for tokens x_k: (b, t, *c) at levels k, and the memory of all branches: (n·b, …).

        x̂₀ and ε̂ are affine in what the network says, and the weights have sum 1: adding up what it says adds up both. Clean tokens
        are what they are; what is said of them is the first branch's.
        """
        said, memory = forcing.network(*self.stack(forcing, x_k, k, conditions), memory)
        outputs = said.to(x_k.dtype).unflatten(0, (len(self.branches), -1))
        added = sum(branch.weight * output for branch, output in zip(self.branches, outputs, strict=True))
        output = torch.where(self._mask(x_k), outputs[0], added)
        return forcing.parameterization.resolve(forcing.schedule, x_k, k, output), memory

    def stack(
        self, forcing: DiffusionForcing, x_k: Tensor, k: Tensor, conditions: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens (n·b, t, *c), levels (n·b, t) and conditions (n·b, t, d) of all branches, one behind the other."""
        tokens, levels, told = [], [], []
        for branch in self.branches:
            if branch.history is None:
                tokens.append(x_k)
                levels.append(k)
            else:
                assert self.history_noise is not None
                level = torch.full_like(k, branch.history)
                past = add_noise(forcing.schedule, self.x, level, self.history_noise)
                tokens.append(torch.where(self._mask(x_k), past, x_k))
                levels.append(torch.where(self.clean, level, k))
            if conditions is not None:
                told.append(conditions if branch.conditions else torch.zeros_like(conditions))
            elif not branch.conditions:
                raise UserError(
                    "condition_scale leans on conditions and there are none; give conditions, or leave condition_scale at 1"
                )
        return torch.cat(tokens), torch.cat(levels), torch.cat(told) if told else None

    def _mask(self, like: Tensor) -> Tensor:
        return self.clean.reshape(*self.clean.shape, *(1,) * (like.ndim - self.clean.ndim))

"""An exponential moving average of the weights, for sampling (docs/method.md §4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from diffusion_forcing.errors import require


class Average(AveragedModel):
    """An averaged copy of a network, `module`. It counts its updates itself, so that a GPU is not waited for in every step.

    The decay warms up as min(decay, (1+n)/(10+n)) over updates n, so that early averages are not the initial weights.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network)
        self.decay = decay
        self._updates: int | None = None
        """`n_averaged`, once it was read."""

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take in the weights of `model` after a step."""
        if self._updates is None:
            self._updates = int(self.n_averaged)
        averaged: list[Tensor] = list(self.module.parameters())
        # Weights may have 16 bits, their averages have 32.
        current = [new.detach().to(old.dtype) for old, new in zip(averaged, model.parameters(), strict=True)]
        n = self._updates
        share = 1.0 if n == 0 else 1 - min(self.decay, (1 + n) / (10 + n))  # the first weights are taken as they are
        torch._foreach_lerp_(averaged, current, share)
        for old, new in zip(self.module.buffers(), model.buffers(), strict=True):
            old.copy_(new)
        self.n_averaged += 1
        self._updates += 1

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._updates = None


def ema_of(network: nn.Module, decay: float) -> Average:
    """An averaged copy of `network`; call `.update_parameters(network)` after each step, sample with `.module`."""
    require(0 <= decay < 1, f"ema_decay is {decay}; it must lie in [0, 1) (0.999 forgets in about 1,000 steps)")
    averaged = Average(network, decay)
    averaged.requires_grad_(False)
    return averaged

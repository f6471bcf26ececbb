"""An exponential moving average of the weights: what one samples with (docs/method.md §4, ours)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from diffusion_forcing.errors import UserError


def ema_of(network: nn.Module, decay: float) -> AveragedModel:
    """An averaged copy of `network`; call `.update_parameters(network)` after each step, sample with `.module`.

    The decay warms up as min(decay, (1+n)/(10+n)) over updates n, so that early averages are not the initial weights.
    """
    if not 0 <= decay < 1:
        raise UserError(f"ema_decay is {decay}; it must lie in [0, 1) (0.999 forgets in about 1,000 steps)")
    averaged = AveragedModel(network, multi_avg_fn=partial(_lerp, decay=decay))
    averaged.requires_grad_(False)
    return averaged


@torch.no_grad()
def _lerp(averaged: list[Tensor], current: list[Tensor], n: Tensor | int, *, decay: float) -> None:
    n = int(n)
    current = [new.to(old.dtype) for old, new in zip(averaged, current, strict=True)]  # weights may have 16 bits
    torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

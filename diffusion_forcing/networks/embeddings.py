"""Sinusoidal embeddings of positions and noise levels (Vaswani et al. 2017)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoidal(values: Tensor, dim: int) -> Tensor:
    """values: (...) → (..., dim): sines, then cosines, of the values at dim/2 frequencies from 1 down to 1/10000."""
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, device=values.device) * -(math.log(10000) / (half - 1)))
    angles = values[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)

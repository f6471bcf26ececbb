"""Sinusoidal embeddings of positions and noise levels (Vaswani et al. 2017), and the small networks that follow them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoidal(values: Tensor, dim: int) -> Tensor:
    """values: (...) → (..., dim): sines, then cosines, of the values at dim/2 frequencies from 1 down to 1/10000."""
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, device=values.device) * -(math.log(10000) / (half - 1)))
    angles = values[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def cos_sin(values: Tensor, dim: int) -> Tensor:
    """values: (...) → (..., dim): cosines, then sines, at dim/2 frequencies from 1 down to just above 1/10000, as the released U-Net has them."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=values.device) / half)
    angles = values[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TwoLinear(nn.Module):
    """Linear, SiLU, linear, under the released names."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim, hidden)
        self.linear_2 = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x.to(self.linear_1.weight.dtype))))


class LevelEmbedding(nn.Sequential):
    """Noise levels, or positions, (...) → (..., out): cosines and sines, then `TwoLinear`."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__(Waves(dim), TwoLinear(dim, hidden, out))


class Waves(nn.Module):
    """`cos_sin` as a layer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, values: Tensor) -> Tensor:
        return cos_sin(values, self.dim)


class WaveMLP(nn.Sequential):
    """Noise levels (b,) → (b, out): `sinusoidal` waves, linear, GELU, linear, as the RNN line has it."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__(nn.Identity(), nn.Linear(dim, out), nn.GELU(), nn.Linear(out, out))
        self.dim = dim

    def forward(self, levels: Tensor) -> Tensor:
        waves = sinusoidal(levels, self.dim)
        embedded: Tensor = super().forward(waves)
        return embedded

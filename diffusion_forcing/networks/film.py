"""Layers for frames (n, c, h, w) that are conditioned by scales and shifts, FiLM (Perez et al. 2018), and what those are read from.

The scales and shifts of all layers of a network come from one product: layers announce how many numbers they take (`FilmWidths`), one linear
layer makes them all, and each layer is called with its own. Channels last in memory; no layer mixes frames.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FilmWidths:
    """Collects how many numbers each layer takes from the one product that conditions all of them."""

    def __init__(self) -> None:
        self.widths: list[int] = []

    @property
    def total(self) -> int:
        return sum(self.widths)


class ResidualBlock(nn.Module):
    """Norm → SiLU → 3×3 convolution, twice, each frame by itself; the frame's embedding scales and shifts between them (FiLM)."""

    def __init__(self, channels_in: int, channels_out: int, film: FilmWidths) -> None:
        super().__init__()
        self.norm_in = FilmNorm(channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm_out = FilmNorm(channels_out)
        self.conv_out = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]
        film.widths.append(2 * channels_out)

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        """x: (n, c, h, w), film: (n, 2·c', 1, 1) → (n, c', h, w)."""
        h = self.conv_in(F.silu(self.norm_in(x)))
        return self.conv_out(F.silu(self.norm_out(h, film))) + self.skip(x)


class FilmNorm(nn.Module):
    """Normalises the features of a frame over its channels and pixels, then scales and shifts each channel: each frame by itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor, film: Tensor | None = None) -> Tensor:
        """x: (n, c, h, w), channels last in memory; film: (n, 2·c, 1, 1), a scale and a shift that follow the layer's own."""
        gain, bias = self.weight.expand(len(x), -1, -1, -1), self.bias.expand(len(x), -1, -1, -1)
        if film is not None:
            scale, shift = film.chunk(2, dim=1)
            gain, bias = gain * (scale + 1), bias * (scale + 1) + shift
        # The layout of memory is that of (n, h, w, c), so this copies nothing.
        rows = x.permute(0, 2, 3, 1)
        normal = F.layer_norm(rows, rows.shape[1:]).permute(0, 3, 1, 2)
        return torch.addcmul(bias.to(normal.dtype), normal, gain.to(normal.dtype))


class FrameEmbedding(nn.Module):
    """One vector a frame from the noise levels and the actions of the frame and of those just before it."""

    def __init__(self, frames: int, condition_width: int, width: int) -> None:
        super().__init__()
        self.levels = nn.Sequential(nn.Linear(frames * LEVEL_FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.conditions = nn.Linear(frames * condition_width, width, bias=False) if condition_width else None

    def forward(self, features: Tensor, conditions: Tensor | None) -> Tensor:
        """features: (b, t, n, LEVEL_FEATURES), conditions: (b, t, n, d) → (b, t, width)."""
        embedding = self.levels(features.flatten(2))
        if self.conditions is not None and conditions is not None:
            embedding = embedding + self.conditions(conditions.to(embedding.dtype).flatten(2))
        return embedding


LEVEL_FEATURES = 32
"""Numbers that describe one noise level."""


def level_features(k: Tensor, sigmas: Tensor) -> Tensor:
    """Sines and cosines (…, LEVEL_FEATURES) of ln σ/4 of levels k: (…); zeros for frames that are not there (level −1)."""
    half = LEVEL_FEATURES // 2
    frequencies = torch.exp(torch.linspace(math.log(0.5), math.log(16), half, device=k.device))
    angles = sigmas[k.clamp(min=0)].log()[..., None] / 4 * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1) * (k >= 0)[..., None]

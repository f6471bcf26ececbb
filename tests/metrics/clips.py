"""Clips made by a formula, so that a recorded number stays true whatever the random generators become."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def waves(frames: int = 16, side: int = 64) -> Tensor:
    """(1, frames, 3, side, side) in [0, 1]: two moving waves and a disc that crosses them."""
    t, c, y, x = np.meshgrid(np.arange(frames), np.arange(3), np.arange(side), np.arange(side), indexing="ij")
    background = 0.5 + 0.25 * np.sin(0.3 * t + 0.17 * (c + 1) * x) + 0.25 * np.cos(0.11 * y - 0.2 * t * (c + 1))
    disc = (y - 32 - 16 * np.sin(0.4 * t)) ** 2 + (x - 12 - 2.5 * t) ** 2 < 80
    pixels = np.clip(np.where(disc, 0.2 + 0.3 * c, background), 0, 1)
    return torch.from_numpy(pixels.astype(np.float32))[None]


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Uniform in [0, 1)."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def formula_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Numbers for a network's tensors by a formula of their place: convolutions scaled as He does, statistics near rest."""
    scattered = np.mod(np.sin(np.arange(65537) * 12.9898) * 43758.5453, 1.0) * 2 - 1
    found, offset = {}, 0
    for name, tensor in state.items():
        uniform = np.resize(np.roll(scattered, -offset), tensor.shape)
        offset += tensor.numel()
        if tensor.ndim > 1:
            values = uniform * np.sqrt(6 / tensor[0].numel())
        else:
            values = 1 + 0.2 * uniform if name.endswith(("var", "weight")) else 0.2 * uniform
        found[name] = torch.from_numpy(np.array(values)).to(tensor.dtype)
    return found

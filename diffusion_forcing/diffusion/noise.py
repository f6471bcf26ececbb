"""Random numbers for a batch. What draws takes a generator; a generator with a `draw` method draws by itself.

That is how several processes share a batch: each one's generator gives the numbers that a single process would have drawn for the same
rows (`algorithms.parallel.SharedGenerator`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor


def normal(
    shape: Sequence[int], *, generator: torch.Generator | None, device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """Standard normal numbers of `shape` (b, …)."""
    return _draw(torch.randn, shape, generator, device=device, dtype=dtype)


def offset_normal(
    shape: Sequence[int],
    offset: float,
    *,
    generator: torch.Generator | None,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Noise (b, t, c, h, w) of unit variance, part of it the same at all pixels of a channel and frame: (ε + offset·o)/√(1 + offset²).

    Plain noise leaves a frame's mean readable at any level, so no denoiser learns to correct a shift of brightness or colour.
    """
    noise = normal(shape, generator=generator, device=device, dtype=dtype)
    if offset == 0:
        return noise
    shift = normal((*shape[:-2], 1, 1), generator=generator, device=device, dtype=dtype)
    return (noise + offset * shift) / (1 + offset**2) ** 0.5


def uniform(shape: Sequence[int], *, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Numbers in [0, 1) of `shape` (b, …); shape () is one number for the whole batch."""
    return _draw(torch.rand, shape, generator, device=device)


def integers(
    low: int, high: int, shape: Sequence[int], *, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """Integers in low … high − 1 of `shape` (b, …)."""
    return _draw(partial(torch.randint, low, high), shape, generator, device=device)


def _draw(function: Callable[..., Tensor], shape: Sequence[int], generator: Any, **options: Any) -> Tensor:
    if hasattr(generator, "draw"):
        return generator.draw(function, tuple(shape), **options)
    return function(tuple(shape), generator=generator, **options)

"""What every metric of frames asks of its input: (b, t, c, h, w), floating point, in [0, 1]. Checked once, at the door."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from diffusion_forcing.errors import UserError

SLACK = 1e-4
"""How far outside [0, 1] rounding may go (half precision rounds 1 to 1.0; a resize overshoots by less)."""
CHUNK_VALUES = 1 << 18
"""Pixel values looked at together: the libraries hold about a dozen copies, some 15 MB, and the fastest of what was tried."""


def checked_frames(frames: Tensor, name: str = "frames") -> Tensor:
    """`frames: (b, t, c, h, w)` as float32, the same tensor where it already is; UserError for anything else."""
    if not isinstance(frames, Tensor) or frames.ndim != 5 or 0 in frames.shape:
        found = f"shape {tuple(frames.shape)}" if isinstance(frames, Tensor) else type(frames).__name__
        raise UserError(f"{name} must be a tensor (clips, frames, channels, height, width), none 0, got {found}")
    if not frames.is_floating_point():
        raise UserError(f"{name} must be floating point in [0, 1], got {frames.dtype}; divide by 255 first")
    low, high = (float(value) for value in torch.aminmax(frames))
    if not (low >= -SLACK and high <= 1 + SLACK):  # also false for NaN
        advice = "divide by 255" if high > 2 else "use x / 2 + 1 / 2" if low < -0.5 else "clamp to [0, 1]"
        raise UserError(f"{name} must lie in [0, 1], found {low:.4g} to {high:.4g}; {advice} first")
    return frames.float()


def checked_pair(prediction: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Both checked, of the same shape, on the prediction's device."""
    prediction, truth = checked_frames(prediction, "prediction"), checked_frames(truth, "truth")
    if prediction.shape != truth.shape:
        raise UserError(
            f"prediction and truth must have the same shape, got {tuple(prediction.shape)} and {tuple(truth.shape)}"
        )
    return prediction, truth.to(prediction.device)


def chunks(*clips: Tensor, values: int = CHUNK_VALUES) -> Iterator[tuple[Tensor, ...]]:
    """Clips (b, t, c, h, w) of the same shape as frames (n, c, h, w), n such that about `values` values are in each."""
    flat = [each.flatten(0, 1) for each in clips]
    count = max(1, values // flat[0][0].numel())
    yield from zip(*(each.split(count) for each in flat), strict=True)

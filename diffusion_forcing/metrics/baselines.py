"""Predictions that cost nothing, to stand beside a model's: the last frame again, or the mean frame.

A model that has learnt anything beats the first while little moves and the second when everything has. Every frame is
a copy of its own (nothing shares memory), in the context's range, type and device.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from diffusion_forcing.metrics.frames import checked_frames


def copy_last(context: Tensor, length: int) -> Tensor:
    """The last frame of `context: (b, t, c, h, w)`, `length` times: (b, length, c, h, w)."""
    return context[:, -1:].repeat(1, length, 1, 1, 1)


def mean_frame(context: Tensor, length: int) -> Tensor:
    """The mean of each clip's own `context: (b, t, c, h, w)` over time, `length` times: (b, length, c, h, w)."""
    return context.mean(dim=1, keepdim=True).repeat(1, length, 1, 1, 1)


def dataset_mean_frame(clips: Iterable[Tensor]) -> Tensor:
    """The mean frame (c, h, w) of a whole data set, read once: every frame of `clips`, each (b, t, c, h, w) in [0, 1]."""
    total, count = torch.zeros(()), 0
    for each in clips:
        frames = checked_frames(each, "clips").flatten(0, 1)
        total = total + frames.sum(dim=0, dtype=torch.float64).cpu()
        count += len(frames)
    if count == 0:
        raise ValueError("no clip to take the mean frame of")
    return (total / count).float()


def repeat_frame(frame: Tensor, clips: int, length: int) -> Tensor:
    """`frame: (c, h, w)`, a data set's mean say, as the prediction (clips, length, c, h, w)."""
    return frame[None, None].repeat(clips, length, 1, 1, 1)

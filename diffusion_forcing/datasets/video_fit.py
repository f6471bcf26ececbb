"""Frames of any size made square: the middle square of the picture, then made smaller by area-true (antialiased) bilinear filtering.

Frames are never made larger: pixels that are not in the data would be learnt as if they were.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F


def fits(height: int, width: int, resolution: int) -> bool:
    """Whether frames of this size need no change."""
    return height == width == resolution


def too_small(height: int, width: int, resolution: int) -> bool:
    """Whether frames of this size would have to be made larger."""
    return min(height, width) < resolution


def fit(frames: NDArray[np.uint8], resolution: int) -> NDArray[np.uint8]:
    """(n, h, w, 3) to (n, resolution, resolution, 3). Of an odd rest, the row or column more is cut off below or on the right."""
    height, width = frames.shape[1:3]
    if fits(height, width, resolution):
        return frames
    assert not too_small(height, width, resolution), "frames are never made larger"
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = frames[:, top : top + side, left : left + side]
    if side == resolution:
        return np.ascontiguousarray(square)
    pixels = torch.from_numpy(np.ascontiguousarray(square)).permute(0, 3, 1, 2)
    small = F.interpolate(pixels, (resolution, resolution), mode="bilinear", antialias=True, align_corners=False)
    return small.permute(0, 2, 3, 1).contiguous().numpy()

"""Augmentation of camera images in training, and the detection of blocked cameras.

Frames are (b, t, cameras, 3, h, w), uint8 or in [0, 1]. Every sequence and camera is changed in its own way, the same
at all times.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_forcing.diffusion.noise import integers, uniform

MAX_PATCH = 0.125
"""Maximum side of a pasted patch, as a fraction of the image's."""


def random_shift(frames: Tensor, pixels: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Frames in [0, 1], shifted by up to `pixels` in each direction; their borders are repeated (a padded random
    crop)."""
    images = frames.float() / 255 if frames.dtype == torch.uint8 else frames
    if not pixels:
        return images
    b, _, cameras, _, h, w = images.shape
    padded = F.pad(images.flatten(0, 2), (pixels,) * 4, mode="replicate").unflatten(0, images.shape[:3])
    offsets = integers(0, 2 * pixels + 1, (b, cameras, 2), generator=generator, device=frames.device)
    rows = offsets[..., 0, None, None] + torch.arange(h, device=frames.device)[:, None]  # (b, cameras, h, 1)
    columns = offsets[..., 1, None, None] + torch.arange(w, device=frames.device)  # (b, cameras, 1, w)
    sequence = torch.arange(b, device=frames.device)[:, None, None, None]
    camera = torch.arange(cameras, device=frames.device)[:, None, None]
    shifted = padded[sequence, :, camera, :, rows, columns]  # (b, cameras, h, w, t, 3)
    return shifted.permute(0, 4, 1, 5, 2, 3)


def jitter(frames: Tensor, amount: float, *, generator: torch.Generator | None = None) -> Tensor:
    """Frames in [0, 1] with another contrast, and another brightness of each colour, within ± amount."""
    if not amount:
        return frames
    shape = (len(frames), 1, frames.shape[2], 3, 1, 1)

    def draw() -> Tensor:
        return amount * (2 * uniform(shape, generator=generator, device=frames.device) - 1)

    contrast, brightness = draw()[:, :, :, :1], draw()
    return ((frames - 0.5) * (1 + contrast) + 0.5 + 0.5 * brightness).clamp(0, 1)


def paste_patches(frames: Tensor, count: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Frames in [0, 1] with up to `count` small rectangles of random colours: distractors that do not move."""
    b, _, cameras, _, h, w = frames.shape
    if not count:
        return frames
    draws = uniform((b, cameras, count, 8), generator=generator, device=frames.device)
    y, x = torch.arange(h, device=frames.device)[:, None], torch.arange(w, device=frames.device)
    for number in range(count):
        present, top, left, height, width, *colour = draws[:, :, number, :, None, None].unbind(2)  # (b, cameras, 1, 1)
        height, width = 1 + (height * h * MAX_PATCH).long(), 1 + (width * w * MAX_PATCH).long()
        top, left = (top * (h - height)).long(), (left * (w - width)).long()
        inside = (present < 0.5) & (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
        painted = torch.stack(colour, dim=2)[:, None]  # (b, 1, cameras, 3, 1, 1)
        frames = torch.where(inside[:, None, :, None], painted, frames)
    return frames


def is_blocked(frames: Tensor, min_contrast: float) -> Tensor:
    """(b, cameras) bool: cameras of frames (b, cameras, 3, h, w) whose pixels' standard deviation is below
    `min_contrast`."""
    images = frames.float() / 255 if frames.dtype == torch.uint8 else frames
    return images.flatten(3).std(dim=3).mean(dim=2) < min_contrast

"""What training does to a robot's pictures, and how a picture that shows nothing is found."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_forcing.diffusion.rows import integers, uniform


def moved(frames: Tensor, pixels: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Frames (b, t, cameras, 3, h, w), uint8 or in [0, 1], in [0, 1], each sequence's camera moved by up to `pixels` either way, its border
    repeated (a random crop)."""
    pictures = frames.float() / 255 if frames.dtype == torch.uint8 else frames
    if not pixels:
        return pictures
    b, _, cameras, _, h, w = pictures.shape
    padded = F.pad(pictures.flatten(0, 2), (pixels,) * 4, mode="replicate").unflatten(0, pictures.shape[:3])
    offsets = integers(0, 2 * pixels + 1, (b, cameras, 2), generator=generator, device=frames.device)
    found = torch.empty_like(pictures)
    for row in range(b):
        for camera in range(cameras):
            down, across = offsets[row, camera].tolist()
            found[row, :, camera] = padded[row, :, camera, :, down : down + h, across : across + w]
    return found


def jittered(frames: Tensor, amount: float, *, generator: torch.Generator | None = None) -> Tensor:
    """Frames (b, t, cameras, 3, h, w) in [0, 1] with each sequence's camera in another light: contrast about the middle and brightness of each
    colour, within ± amount."""
    if not amount:
        return frames
    shape = (len(frames), 1, frames.shape[2], 3, 1, 1)

    def draw() -> Tensor:
        return amount * (2 * uniform(shape, generator=generator, device=frames.device) - 1)

    contrast, brightness = draw()[:, :, :, :1], draw()
    return ((frames - 0.5) * (1 + contrast) + 0.5 + 0.5 * brightness).clamp(0, 1)


def pasted(frames: Tensor, most: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Frames (b, t, cameras, 3, h, w) in [0, 1], each sequence's camera with up to `most` small rectangles of any colour that stay where they are:
    things that do not belong."""
    if not most:
        return frames
    b, _, cameras, _, h, w = frames.shape
    found = frames.clone()
    draw = uniform((b, cameras, most, 8), generator=generator, device=frames.device)
    for row, camera, number in torch.cartesian_prod(*(torch.arange(n) for n in (b, cameras, most))).tolist():
        there, top, left, tall, wide, *colour = draw[row, camera, number].tolist()
        if there < 0.5:
            tall, wide = 1 + int(tall * h * LARGEST), 1 + int(wide * w * LARGEST)
            top, left = int(top * (h - tall)), int(left * (w - wide))
            patch = found[row, :, camera, :, top : top + tall, left : left + wide]
            patch[:] = torch.tensor(colour, device=frames.device)[:, None, None]
    return found


LARGEST = 0.125
"""Of a picture's side: what is pasted is smaller."""


def blocked(frames: Tensor, contrast: float) -> Tensor:
    """(b, cameras) bool: cameras of frames (b, cameras, 3, h, w), uint8 or in [0, 1], whose pixels deviate from their mean by less than
    `contrast`: they show nothing."""
    pictures = frames.float() / 255 if frames.dtype == torch.uint8 else frames
    return pictures.flatten(3).std(dim=3).mean(dim=2) < contrast

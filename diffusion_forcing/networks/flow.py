"""The last frames, warped into the view of the next one before anything of it is seen: a coarse optical flow from the past and the actions.

A convolution copies over a few pixels; a turning camera moves what it sees by a sixth of the frame. The flow carries texture that far at full
resolution, and costs a tenth of a denoising step, once a frame (docs/world_model.md).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_forcing.networks.film import LEVEL_FEATURES, FilmWidths, ResidualBlock


class Warped(NamedTuple):
    """What the past says of frames before any of their own pixels is seen.

    frames: (b, t, p, c, h, w), each of the p past frames warped into the new view; inside: (b, t, p, 1, h, w) in 0…1, 0 where the view looks
    past the edge of the old frame; start: (b, t, c, h, w), their blend, the first guess of the clean frame.
    """

    frames: Tensor
    inside: Tensor
    start: Tensor


class Flow(nn.Module):
    """Where the pixels of the new view were in the past frames: an optical flow of a quarter of the resolution, and a blend of what it finds.

    Reads past frames, their levels and the actions up to the new frame; never the new frame itself.
    """

    def __init__(self, channels: int, past_frames: int, condition_width: int, *, width: int = 48) -> None:
        super().__init__()
        self.past_frames = past_frames
        embedding = 64
        film = FilmWidths()
        self.embed_levels = nn.Linear(past_frames * LEVEL_FEATURES, embedding)
        actions = (past_frames + 1) * condition_width
        self.embed_actions = nn.Linear(actions, embedding, bias=False) if condition_width else None
        self.to_half = nn.Conv2d(past_frames * channels, width // 2, 4, stride=2, padding=1)
        self.to_quarter = nn.Conv2d(width // 2, width, 4, stride=2, padding=1)
        self.fine = ResidualBlock(width, width, film)
        self.to_eighth = nn.Conv2d(width, 64, 4, stride=2, padding=1)
        self.coarse = nn.ModuleList(ResidualBlock(64, 64, film) for _ in range(2))
        self.join = ResidualBlock(64 + width, width, film)
        self.out = nn.Conv2d(width, 3 * past_frames, 3, padding=1)
        self.shift = nn.Linear(actions, 2 * past_frames, bias=False) if condition_width else None
        self.film = nn.Linear(embedding, film.total)
        self.film_widths = tuple(film.widths)
        nn.init.zeros_(self.out.weight)
        with torch.no_grad():  # no motion, and nearly all of the newest frame
            self.out.bias.copy_(torch.tensor([0.0] * (3 * past_frames - 1) + [2.0]))  # type: ignore[union-attr]
        if self.shift is not None:
            nn.init.zeros_(self.shift.weight)

    def forward(self, frames: Tensor, features: Tensor, conditions: Tensor | None) -> Warped:
        """frames: (b, t, p, c, h, w), oldest first; features: (b, t, p, LEVEL_FEATURES) of their levels; conditions: (b, t, p + 1, d)."""
        clip, past = frames.shape[:2], self.past_frames
        embedding = self.embed_levels(features.flatten(2))
        actions = None if conditions is None else conditions.to(embedding.dtype).flatten(2)
        if self.embed_actions is not None:
            embedding = embedding + self.embed_actions(actions)
        scales = iter(self.film(F.silu(embedding)).flatten(0, 1)[..., None, None].split(self.film_widths, dim=1))

        # A small U-Net of two resolutions.
        images = frames.flatten(2, 3).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        fine = self.fine(self.to_quarter(F.silu(self.to_half(images))), next(scales))
        coarse = self.to_eighth(fine)
        for block in self.coarse:
            coarse = block(coarse, next(scales))
        joined = torch.cat([F.interpolate(coarse, scale_factor=2.0, mode="nearest"), fine], dim=1)
        motion, blend = self.out(self.join(joined, next(scales))).float().split((2 * past, past), dim=1)
        if self.shift is not None:
            motion = motion + self.shift(actions).float().flatten(0, 1)[..., None, None]

        # Flow in units of half the frame, at every pixel; the frames where it leads.
        size = frames.shape[-2:]
        motion = F.interpolate(motion, size=size, mode="bilinear", align_corners=False).unflatten(1, (past, 2))
        blend = F.interpolate(blend, size=size, mode="bilinear", align_corners=False).softmax(dim=1)[:, :, None]
        grid = _pixel_centres(size[0], size[1], motion.device) + motion.permute(0, 1, 3, 4, 2)  # (b·t, p, h, w, 2)
        sources = frames.float().flatten(0, 1).flatten(0, 1)
        warped = F.grid_sample(sources, grid.flatten(0, 1), mode="bilinear", padding_mode="border", align_corners=False)
        warped = warped.unflatten(0, (-1, past))
        # 1 inside the old frame, 0 outside, a ramp of one pixel between them so that nothing jumps.
        inside = ((1 - grid.abs().amax(dim=-1)) * (size[0] / 2) + 0.5).clamp(0, 1)[:, :, None]
        start = (blend * inside * warped).sum(dim=1)
        return Warped(warped.unflatten(0, clip), inside.unflatten(0, clip), start.unflatten(0, clip))


def _pixel_centres(height: int, width: int, device: torch.device) -> Tensor:
    """(h, w, 2): x and y of each pixel's centre, the frame being −1…1 on both axes."""
    rows = (torch.arange(height, device=device) + 0.5) * 2 / height - 1
    columns = (torch.arange(width, device=device) + 0.5) * 2 / width - 1
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)

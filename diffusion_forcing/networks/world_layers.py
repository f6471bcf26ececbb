"""Layers of the world model's network (`world.py`): FiLM, the flow that warps the past, attention over space and time."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_forcing.errors import UserError
from diffusion_forcing.networks.attention import KeysAndValues

# ----------------------------------------------------------------------------------------------------------------- FiLM
# Layers for frames (n, c, h, w) that are conditioned by scales and shifts, FiLM (Perez et al. 2018), and what those are read from.
#
# The scales and shifts of all layers of a network come from one product: layers announce how many numbers they take (`FilmWidths`), one linear
# layer makes them all, and each layer is called with its own. Channels last in memory; no layer mixes frames.


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


# ----------------------------------------------------------------------------------------------------------------- flow
# The last frames, warped into the view of the next one before anything of it is seen: a coarse optical flow from the past and the actions.
#
# A convolution copies over a few pixels; a turning camera moves what it sees by a sixth of the frame. The flow carries texture that far at full
# resolution, and costs a tenth of a denoising step, once a frame (docs/world_model.md).


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


# ------------------------------------------------------------------------------------------------------------ attention
# Attention over space and time together: each pixel of a frame attends to all pixels of the frames in its window.
#
# The window slides: a frame sees itself and the frames just before it, as many as a ring buffer holds, so that training on long clips computes
# what a rollout computes. The frames a query looks back to may come from the same clip, from a memory, or from another clip (the clean past that
# noisy frames are trained behind).


class SpaceTimeBlock(nn.Module):
    """Attention from each pixel of a frame to all pixels of the frames in its window, then a two-layer perceptron; both conditioned by FiLM.

    Queries and keys are normalised (Dehghani et al. 2023) and turned by rotary angles of time, row and column (Su et al. 2021).
    """

    def __init__(self, channels: int, heads: int, *, registers: int, film: FilmWidths) -> None:
        super().__init__()
        self.heads = heads
        dim = channels // heads
        self.norm_attention = nn.LayerNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.norm_query = nn.LayerNorm(dim, bias=False)
        self.norm_key = nn.LayerNorm(dim, bias=False)
        self.register_keys = nn.Parameter(torch.randn(heads, registers, dim // 2))
        self.register_values = nn.Parameter(torch.zeros(heads, registers, dim))
        self.to_out = nn.Linear(channels, channels)
        self.norm_mlp = nn.LayerNorm(channels)
        self.mlp_in = nn.Linear(channels, 4 * channels)
        self.mlp_out = nn.Linear(4 * channels, channels)
        for last in (self.to_out, self.mlp_out):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        film.widths += [2 * channels, 2 * channels]

    def project(self, x: Tensor, film: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (b, heads, t, pixels, d) of x: (b, t, pixels, c); film: (b, t, 1, 2·c)."""
        scale, shift = film.chunk(2, dim=-1)
        h = torch.addcmul(shift, self.norm_attention(x), scale + 1)
        query, key, value = self.to_qkv(h).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 4, 1, 2, 5).unbind(0)
        return rotate(self.norm_query(query), turn), rotate(self.norm_key(key), turn), value

    def attend(
        self, x: Tensor, query: Tensor, past: KeysAndValues, own: KeysAndValues | None, window: Window, film: Tensor
    ) -> Tensor:
        """x: (b, t, pixels, c) with what its queries find in the frames of `past` that `window` shows them, and each frame in itself in
        `own`, where the present is not part of the past."""
        # A register stands at no time: where queries turn with time its key is 0, so that it is found alike at every frame.
        first, second = self.register_keys.chunk(2, dim=-1)
        nothing = torch.zeros_like(first)
        keys = torch.cat([nothing, first, nothing, second], dim=-1).to(query.dtype)
        found = attention(query, (keys, self.register_values.to(query.dtype)), past, own, window)
        # (b, heads, t, pixels, d) to one row a pixel.
        x = x + self.to_out(found.permute(0, 2, 3, 1, 4).flatten(3))

        scale, shift = film.chunk(2, dim=-1)
        h = torch.addcmul(shift, self.norm_mlp(x), scale + 1)
        return x + self.mlp_out(F.gelu(self.mlp_in(h)))


@dataclass(frozen=True)
class Window:
    """Which frames each of t frames attends to, of those that a memory holds and the t frames behind them.

    length: frames in the window, the frame itself included; slots: frames of the memory before the first of the t, of which the last `count`
    are there; present: whether a frame finds itself among them.
    """

    length: int
    slots: int
    count: int
    present: bool

    def visible(self, first: int, end: int, start: int, stop: int, device: torch.device) -> Tensor | None:
        """(end − first, stop − start) bool on `device` for the frames first … end − 1, over the frames start … stop − 1, the memory's
        first being 0; None where nothing is hidden, found without reading a tensor, so that compiled graphs stay whole."""
        if (
            self.slots - self.count <= start > end - 1 + self.slots - self.length
            and stop <= first + self.slots + self.present
        ):
            return None
        frame = torch.arange(first, end, device=device)[:, None] + self.slots
        other = torch.arange(start, stop, device=device)
        return (other > frame - self.length) & (other < frame + self.present) & (other >= self.slots - self.count)


BLOCKS = {"cpu": 4}
OTHER_BLOCKS = 8
"""Frames whose queries are attended together, by device: fewer look at less that their mask hides, more make longer products."""


def attention(
    query: Tensor, registers: KeysAndValues, past: KeysAndValues, own: KeysAndValues | None, window: Window
) -> Tensor:
    """softmax(q kᵀ/√d) v of queries (b, heads, t, pixels, d) over registers (heads, r, d), the frames of `past`: (b, heads, frames, pixels, d)
    that `window` shows, and the query's own frame of `own`: (b, heads, t, pixels, d)."""
    time, frames = query.shape[2], past[0].shape[2]
    device = query.device
    block = BLOCKS.get(device.type, OTHER_BLOCKS)
    if time <= block and not torch.is_grad_enabled():
        return fused_attention(query, registers, past, own, window.visible(0, time, 0, frames, device))
    # On a CPU the fused kernel has a slow backward pass; and softmax computes in float32 inside, and need not store it.
    attend, plain = (_block_attention, True) if device.type == "cpu" else (fused_attention, False)
    found = []
    with torch.autocast("cpu", enabled=False) if plain else nullcontext():
        for first in range(0, time, block):
            end = min(first + block, time)
            start, stop = max(0, first + window.slots - window.length + 1), min(frames, end + window.slots)
            seen = past[0][:, :, start:stop], past[1][:, :, start:stop]
            now = None if own is None else (own[0][:, :, first:end], own[1][:, :, first:end])
            visible = window.visible(first, end, start, stop, device)
            found.append(attend(query[:, :, first:end], registers, seen, now, visible))
    return torch.cat(found, dim=2) if len(found) > 1 else found[0]


def _block_attention(
    query: Tensor, registers: KeysAndValues, past: KeysAndValues, own: KeysAndValues | None, visible: Tensor | None
) -> Tensor:
    """`attention` of a few frames by plain products; visible: (t, frames) bool, None: all."""
    b, heads, time, pixels, dim = query.shape
    keys, values = (
        torch.cat([register.expand(b, -1, -1, -1), part.flatten(2, 3)], dim=2).flatten(0, 1)
        for register, part in zip(registers, past, strict=True)
    )  # (b·heads, r + frames·pixels, d)
    flat = query.flatten(2, 3).flatten(0, 1)
    if visible is None:
        scores = torch.bmm(flat, keys.transpose(1, 2)) * dim**-0.5
    else:
        bias = torch.zeros(visible.shape, dtype=query.dtype, device=query.device)
        bias = bias.masked_fill(~visible, float("-inf"))[:, None, :, None].expand(-1, pixels, -1, pixels)
        bias = F.pad(bias.reshape(time * pixels, -1), (registers[0].shape[1], 0)).expand(b * heads, -1, -1)
        scores = torch.baddbmm(bias, flat, keys.transpose(1, 2), alpha=dim**-0.5)
    if own is None:
        found = torch.bmm(scores.softmax(dim=-1), values)
        return found.unflatten(1, (time, pixels)).unflatten(0, (b, heads))
    own_keys, own_values = (part.flatten(0, 2) for part in own)  # (b·heads·t, pixels, d)
    own_scores = torch.bmm(query.flatten(0, 2), own_keys.transpose(1, 2)) * dim**-0.5
    joint = torch.cat([scores, own_scores.unflatten(0, (-1, time)).flatten(1, 2)], dim=-1).softmax(dim=-1)
    weights, own_weights = joint.split([scores.shape[-1], pixels], dim=-1)
    found = torch.bmm(weights, values).unflatten(1, (time, pixels))
    own_found = torch.bmm(own_weights.unflatten(1, (time, pixels)).flatten(0, 1), own_values)
    return (found + own_found.unflatten(0, (-1, time))).unflatten(0, (b, heads))


def fused_attention(
    query: Tensor, registers: KeysAndValues, past: KeysAndValues, own: KeysAndValues | None, visible: Tensor | None
) -> Tensor:
    """`attention` by PyTorch's fused kernel, with all keys side by side; visible: (t, frames) bool, None: all."""
    time, pixels = query.shape[2:4]
    seen = [past] if own is None else [past, own]
    if own is not None and (visible is not None or time > 1):
        if visible is None:
            visible = torch.ones(time, past[0].shape[2], dtype=torch.bool, device=query.device)
        visible = torch.cat([visible, torch.eye(time, dtype=torch.bool, device=query.device)], dim=1)
    keys, values = (
        torch.cat([registers[i].expand(len(query), -1, -1, -1), *(part[i].flatten(2, 3) for part in seen)], dim=2)
        for i in (0, 1)
    )
    mask = None
    if visible is not None:
        mask = F.pad(visible.repeat_interleave(pixels, 1), (registers[0].shape[1], 0), value=True)
        mask = mask.repeat_interleave(pixels, 0)
    found = F.scaled_dot_product_attention(query.flatten(2, 3), keys, values, attn_mask=mask)
    return found.unflatten(2, (time, pixels))


def space_angles(side: int, dim_head: int) -> Tensor:
    """Rotary angles (side², dim_head/2): the first half is left to time, then a quarter each for row and column."""
    if dim_head % 8:
        raise UserError(f"dim_head is {dim_head}; rotary positions in time, rows and columns need a multiple of 8")
    quarter = dim_head // 8
    frequencies = 10.0 ** (-torch.arange(quarter) / quarter)
    place = torch.arange(side)[:, None] * frequencies
    rows, columns = place[:, None].expand(-1, side, -1), place[None].expand(side, -1, -1)
    return torch.cat([torch.zeros(side, side, 2 * quarter), rows, columns], dim=-1).flatten(0, 1)


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """x: (…, d) with number i and i + d/2 as a pair, turned by angles (…, d/2) of which `turn` holds cosines and sines."""
    cosine, sine = (part.to(x.dtype) for part in turn)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)

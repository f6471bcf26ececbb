"""Attention over space and time together: each pixel of a frame attends to all pixels of the frames in its window.

The window slides: a frame sees itself and the frames just before it, as many as a ring buffer holds, so that training on long clips computes
what a rollout computes. The frames a query looks back to may come from the same clip, from a memory, or from another clip (the clean past that
noisy frames are trained behind).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_forcing.errors import UserError
from diffusion_forcing.networks.attention import KeysAndValues
from diffusion_forcing.networks.film import FilmWidths


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

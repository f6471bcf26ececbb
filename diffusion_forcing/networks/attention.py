"""Attention inside a frame and along time (docs/method.md §8), on frames (b·t, c, h, w) with channels last in memory.

Spatial attention mixes the pixels of one frame; where there are many it is linear attention (Shen et al. 2021). Temporal attention mixes
the frames at one pixel, causally or not. In the call along time every pair of pixel and head is a head of its own, (b, h·w·heads, t, d),
so that nothing is copied into place. A past given as keys and values is attended to beside the present, not joined to it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ----------------------------------------------------------------------------------------------------------- embeddings
# Sinusoidal embeddings of positions and noise levels (Vaswani et al. 2017), and the small networks that follow them.


def sinusoidal(values: Tensor, dim: int) -> Tensor:
    """values: (...) → (..., dim): sines, then cosines, of the values at dim/2 frequencies from 1 down to 1/10000."""
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, device=values.device) * -(math.log(10000) / (half - 1)))
    angles = values[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def cos_sin(values: Tensor, dim: int) -> Tensor:
    """values: (...) → (..., dim): cosines, then sines, at dim/2 frequencies from 1 down to just above 1/10000, as the released U-Net has them."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=values.device) / half)
    angles = values[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TwoLinear(nn.Module):
    """Linear, SiLU, linear, under the released names."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim, hidden)
        self.linear_2 = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x.to(self.linear_1.weight.dtype))))


class LevelEmbedding(nn.Sequential):
    """Noise levels, or positions, (...) → (..., out): cosines and sines, then `TwoLinear`."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__(Waves(dim), TwoLinear(dim, hidden, out))


class Waves(nn.Module):
    """`cos_sin` as a layer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, values: Tensor) -> Tensor:
        return cos_sin(values, self.dim)


class WaveMLP(nn.Sequential):
    """Noise levels (b,) → (b, out): `sinusoidal` waves, linear, GELU, linear, as the RNN line has it."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__(nn.Identity(), nn.Linear(dim, out), nn.GELU(), nn.Linear(out, out))
        self.dim = dim

    def forward(self, levels: Tensor) -> Tensor:
        waves = sinusoidal(levels, self.dim)
        embedded: Tensor = super().forward(waves)
        return embedded


# ------------------------------------------------------------------------------------------------------------ attention

KeysAndValues = tuple[Tensor, Tensor]
Turn = tuple[Tensor, Tensor]
"""Cosines and sines of rotary angles."""
GRID_LIMIT = 65_535
"""Heads, or sequences, that one call of a CUDA kernel takes."""


class LinearAttention(nn.Module):
    """softmax(q) · (softmax(k)ᵀ v): the cost grows with the number of pixels, not with its square. No parameters."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query, key, value: (n, pixels, heads, d) → the same."""
        query = query.softmax(dim=-1) * query.shape[-1] ** -0.5
        key = key.softmax(dim=1)
        context = key.permute(0, 2, 3, 1) @ value.transpose(1, 2)
        return (query.transpose(1, 2) @ context).transpose(1, 2)


class FullAttention(nn.Module):
    """softmax(q kᵀ/√d) v. No parameters."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query, key, value: (n, pixels, heads, d) → the same."""
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


class Projections(nn.Module):
    """Queries, keys and values from a channel vector, and back: `to_qkv` and `to_out` of the released layout."""

    def __init__(self, channels: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads = heads
        self.dim_head = dim_head
        self.to_qkv = nn.Linear(channels, 3 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, channels)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x: (…, c) → three of (…, heads, d), each contiguous."""
        return tuple(
            F.linear(x, weight).unflatten(-1, (self.heads, self.dim_head)) for weight in self.to_qkv.weight.chunk(3)
        )


class SpatialAttention(nn.Module):
    """x + attention among the pixels of each frame, x: (n, c, h, w)."""

    def __init__(self, channels: int, heads: int, dim_head: int, *, linear: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attn = Projections(channels, heads, dim_head)
        self.mix = LinearAttention() if linear else FullAttention()

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.permute(0, 2, 3, 1)
        query, key, value = self.attn(self.norm(pixels).flatten(1, 2))
        mixed = self.attn.to_out(self.mix(query, key, value).flatten(2))
        return (pixels + mixed.view_as(pixels)).permute(0, 3, 1, 2)


class TemporalAttention(nn.Module):
    """x + attention among the frames at each pixel, x: (b·t, c, h, w); positions rotary (Su et al. 2021), or sinusoidal and added to x."""

    def __init__(self, channels: int, heads: int, dim_head: int, *, causal: bool, rotary: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attn = Projections(channels, heads, dim_head)
        self.causal = causal
        self.time_pos_embedding = None if rotary else LevelEmbedding(channels, 4 * channels, channels)

    def forward(
        self, x: Tensor, time: int, positions: Tensor, past: KeysAndValues | None, turn: Turn | None = None
    ) -> tuple[Tensor, KeysAndValues]:
        """positions: (t,) of x's frames; turn: their `rotation`, where it is known already. past: keys and values (b, h·w·heads, t', d) of
        frames before x, keys at their rotary positions.

        Returns x's shape, and the keys and values of x's own frames.
        """
        frames = x.permute(0, 2, 3, 1)
        if self.time_pos_embedding is not None:
            at = self.time_pos_embedding(positions).to(x.dtype)
            frames = frames + at.repeat(len(frames) // time, 1)[:, None, None]
        query, key, value = (
            part.unflatten(0, (-1, time)).flatten(2, -2) for part in self.attn(self.norm(frames))
        )  # (b, t, h·w·heads, d)
        if self.time_pos_embedding is None:
            cos, sin = rotation(positions, query.shape[-1]) if turn is None else turn
            turn = (cos[:, None], sin[:, None])
            query, key = rotate(query, turn), rotate(key, turn)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        mixed = self._attend(query, key, value, past).transpose(1, 2)
        mixed = self.attn.to_out(mixed.reshape(*frames.shape[:3], -1))
        return (frames + mixed).permute(0, 3, 1, 2), (key, value)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, past: KeysAndValues | None) -> Tensor:
        """softmax(q kᵀ/√d) v over past and present, (b, heads, t, d)."""
        if query.device.type != "cpu":
            return self._attend_fused(query, key, value, past)
        time = query.shape[2]
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        if self.causal and time > 1:
            scores = scores + torch.full((time, time), float("-inf"), dtype=scores.dtype).triu(1)
        if past is None:
            return scores.softmax(dim=-1) @ value
        before = (query * query.shape[-1] ** -0.5) @ past[0].transpose(-1, -2)
        weights = torch.cat([before, scores], dim=-1).softmax(dim=-1)
        split = past[0].shape[2]
        return weights[..., :split] @ past[1] + weights[..., split:] @ value

    def _attend_fused(self, query: Tensor, key: Tensor, value: Tensor, past: KeysAndValues | None) -> Tensor:
        """The same through PyTorch's fused kernels, which a GPU has for these shapes."""
        time, mask = query.shape[2], None
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
            if time > 1:  # a single frame sees all
                mask = torch.ones(time, key.shape[2], dtype=torch.bool, device=query.device).tril(past[0].shape[2])
        is_causal = self.causal and past is None and time > 1

        pieces = -(-query.shape[1] // GRID_LIMIT)
        if pieces == 1:
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal)
        parts = zip(query.chunk(pieces, 1), key.chunk(pieces, 1), value.chunk(pieces, 1), strict=True)
        found = [F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal) for q, k, v in parts]
        return torch.cat(found, dim=1)


def rotation(positions: Tensor, dim: int) -> Turn:
    """Cosines and sines (t, dim/2) of the angle p·10000^(−2i/dim) by which pair i of a key at position p is turned."""
    frequencies = 10000.0 ** (-torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim)
    angles = positions.to(torch.float32)[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, turn: Turn) -> Tensor:
    """x: (…, d) with neighbouring numbers as pairs, turned by `turn`, which broadcasts to (…, d/2)."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        # Complex numbers take one pass; compilers and other devices lack some of their operations.
        return torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(*turn)).flatten(-2).to(x.dtype)
    cos, sin = turn
    first, second = pairs.unbind(-1)
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2).to(x.dtype)

"""The RNN line's transition of images: a 2-D U-Net over [z, x] and a convolutional GRU cell (METHOD §9). One step in time.

Names of the parameters are the released ones behind `transition_model.model.`. What does not depend on z (`features`: how levels and
conditions modulate every block) is computed for all tokens together, `step` one token after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_forcing.errors import UserError
from diffusion_forcing.networks.embeddings import WaveMLP

GROUPS = 8  # of every normalisation
HEADS, HEAD = 4, 32  # of every attention, and the size of a head
MEMORIES = 4  # keys and values that every attention learns beside those of its pixels


class Block(nn.Module):
    """3x3 convolution → GroupNorm → scale and shift → SiLU."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, out, 3, padding=1)
        self.norm = nn.GroupNorm(GROUPS, out)

    def forward(self, x: Tensor, film: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = self.norm(self.proj(x))
        if film is not None:
            x = x * (film[0] + 1) + film[1]
        return F.silu(x)


class ResidualBlock(nn.Module):
    """Two blocks, the first modulated by `film` of the embedding; plus x."""

    def __init__(self, dim: int, out: int, embedding: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * out))
        self.block1 = Block(dim, out)
        self.block2 = Block(out, out)
        self.res_conv = nn.Conv2d(dim, out, 1) if dim != out else nn.Identity()

    def film(self, embedding: Tensor) -> Tensor:
        """embedding: (…, e) → scale and shift, (…, 2·out)."""
        modulation: Tensor = self.mlp(embedding)
        return modulation

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        scale, shift = film[:, :, None, None].chunk(2, dim=1)
        h: Tensor = self.block2(self.block1(x, (scale, shift))) + self.res_conv(x)
        return h


class PixelNorm(nn.Module):
    """Each pixel's channels brought to a root mean square of 1, times g."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * self.g * x.shape[1] ** 0.5


class FullAttention(nn.Module):
    """x + attention of all pixels of (b, c, h, w) to each other and to MEMORIES learnt ones."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = PixelNorm(dim)
        self.mem_kv = nn.Parameter(torch.randn(2, HEADS, MEMORIES, HEAD))
        self.to_qkv = nn.Conv2d(dim, 3 * HEADS * HEAD, 1, bias=False)
        self.to_out = nn.Conv2d(HEADS * HEAD, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = self.to_qkv(self.norm(x)).reshape(b, 3, HEADS, HEAD, h * w).transpose(-1, -2).unbind(1)
        k = torch.cat([self.mem_kv[0].expand(b, -1, -1, -1), k], dim=-2)
        v = torch.cat([self.mem_kv[1].expand(b, -1, -1, -1), v], dim=-2)
        out = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(b, -1, h, w)
        attended: Tensor = self.to_out(out)
        return attended + x


class LinearAttention(nn.Module):
    """x + linear attention of the pixels of (b, c, h, w) (Shen et al. 2021), with MEMORIES learnt keys and values."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = PixelNorm(dim)
        self.mem_kv = nn.Parameter(torch.randn(2, HEADS, HEAD, MEMORIES))
        self.to_qkv = nn.Conv2d(dim, 3 * HEADS * HEAD, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(HEADS * HEAD, dim, 1), PixelNorm(dim))

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = self.to_qkv(self.norm(x)).reshape(b, 3, HEADS, HEAD, h * w).unbind(1)
        k = torch.cat([self.mem_kv[0].expand(b, -1, -1, -1), k], dim=-1).softmax(dim=-1)
        v = torch.cat([self.mem_kv[1].expand(b, -1, -1, -1), v], dim=-1)
        q = q.softmax(dim=-2) * HEAD**-0.5
        out = (v @ k.transpose(-1, -2)) @ q
        attended: Tensor = self.to_out(out.reshape(b, -1, h, w))
        return attended + x


class ConvGRU(nn.Module):
    """A GRU cell whose matrices are 3x3 convolutions: x, h: (b, dim, h, w) → (b, dim, h, w)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.x2h = nn.Conv2d(dim, 3 * dim, 3, padding=1)
        self.h2h = nn.Conv2d(dim, 3 * dim, 3, padding=1)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        reset_x, update_x, new_x = self.x2h(x).chunk(3, dim=1)
        reset_h, update_h, new_h = self.h2h(h).chunk(3, dim=1)
        update = torch.sigmoid(update_x + update_h)
        new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
        return update * h + (1 - update) * new


Stage = tuple[ResidualBlock, ResidualBlock, nn.Module, nn.Module]
"""Two blocks, an attention, and what changes the resolution."""


def _stages(modules: nn.ModuleList) -> Iterator[Stage]:
    return cast(Iterator[Stage], iter(modules))


class TransitionUNet(nn.Module):
    """z' = GRU(U-Net([z, x], level, condition), z); without GRU layers, what the U-Net says.

    x: (b, x_channels, h, w), k: (b,) noise levels, z: (b, z_channels, h, w), condition: (b, external_cond_dim) or None (then zeros) →
    (b, z_channels, h, w). h and w are multiples of 2^(stages − 1). self_condition: beside x there is an estimate of what it says, like
    x, or None (then zeros).
    """

    def __init__(
        self,
        x_channels: int,
        z_channels: int,
        *,
        network_size: int,
        num_gru_layers: int = 1,
        external_cond_dim: int = 0,
        dim_mults: Sequence[int] = (1, 2, 4, 8),
        self_condition: bool = False,
    ) -> None:
        super().__init__()
        if num_gru_layers not in (0, 1):
            raise UserError(f"algorithm.diffusion.num_gru_layers is {num_gru_layers}; a recurrent U-Net has 0 or 1")
        if network_size % GROUPS:
            raise UserError(f"algorithm.diffusion.network_size is {network_size}; it must be a multiple of {GROUPS}")
        widths = [network_size, *(network_size * mult for mult in dim_mults)]
        stages = list(pairwise(widths))
        self.external_cond_dim = external_cond_dim
        self.self_condition = self_condition
        level = 4 * network_size
        self.init_conv = nn.Conv2d(z_channels + x_channels * (2 if self_condition else 1), network_size, 7, padding=3)
        self.time_mlp = WaveMLP(network_size, level)
        embedding = level
        if external_cond_dim:
            self.external_cond_mlp = nn.Sequential(
                nn.Linear(external_cond_dim, level), nn.GELU(), nn.Linear(level, level)
            )
            embedding = 2 * level
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for stage, (dim, out) in enumerate(stages):
            last = stage == len(stages) - 1
            self.downs.append(
                nn.ModuleList(
                    [
                        ResidualBlock(dim, dim, embedding),
                        ResidualBlock(dim, dim, embedding),
                        (FullAttention if last else LinearAttention)(dim),
                        nn.Conv2d(dim, out, 3, padding=1)
                        if last
                        else nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * dim, out, 1)),
                    ]
                )
            )
        self.mid_block1 = ResidualBlock(widths[-1], widths[-1], embedding)
        self.mid_attn = FullAttention(widths[-1])
        self.mid_block2 = ResidualBlock(widths[-1], widths[-1], embedding)
        for stage, (dim, out) in reversed(list(enumerate(stages))):
            self.ups.append(
                nn.ModuleList(
                    [
                        ResidualBlock(dim + out, out, embedding),
                        ResidualBlock(dim + out, out, embedding),
                        (FullAttention if stage == len(stages) - 1 else LinearAttention)(out),
                        nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(out, dim, 3, padding=1))
                        if stage
                        else nn.Conv2d(out, dim, 3, padding=1),
                    ]
                )
            )
        self.final_res_block = ResidualBlock(2 * network_size, network_size, embedding)
        self.final_conv = nn.Conv2d(network_size, z_channels, 1)
        self.gru = ConvGRU(z_channels) if num_gru_layers else None

    def forward(
        self, x: Tensor, k: Tensor, z: Tensor, condition: Tensor | None = None, estimate: Tensor | None = None
    ) -> Tensor:
        return self.step(x, self.features(k, condition), z, estimate)

    def features(self, k: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """How levels k: (…) and conditions (…, external_cond_dim) modulate the blocks in the order they are met, each (…, 2·channels)."""
        embedding = self.time_mlp(k)
        if self.external_cond_dim:
            told = embedding.new_zeros(*k.shape, self.external_cond_dim) if condition is None else condition
            embedding = torch.cat([embedding, self.external_cond_mlp(told)], dim=-1)
        return tuple(block.film(embedding) for block in self._blocks())

    def _blocks(self) -> Iterator[ResidualBlock]:
        for one, two, _, _ in _stages(self.downs):
            yield from (one, two)
        yield from (self.mid_block1, self.mid_block2)
        for one, two, _, _ in _stages(self.ups):
            yield from (one, two)
        yield self.final_res_block

    def step(self, x: Tensor, features: Sequence[Tensor], z: Tensor, estimate: Tensor | None = None) -> Tensor:
        """The latent after one token x: (b, x_channels, h, w)."""
        films = iter(features)
        shown = [torch.zeros_like(x) if estimate is None else estimate, x] if self.self_condition else [x]
        h = first = self.init_conv(torch.cat([z, *shown], dim=1))
        skips = []
        for one, two, attention, down in _stages(self.downs):
            h = one(h, next(films))
            skips.append(h)
            h = attention(two(h, next(films)))
            skips.append(h)
            h = down(h)
        h = self.mid_attn(self.mid_block1(h, next(films)))
        h = self.mid_block2(h, next(films))
        for one, two, attention, up in _stages(self.ups):
            h = one(torch.cat([h, skips.pop()], dim=1), next(films))
            h = two(torch.cat([h, skips.pop()], dim=1), next(films))
            h = up(attention(h))
        out: Tensor = self.final_conv(self.final_res_block(torch.cat([h, first], dim=1), next(films)))
        return out if self.gru is None else self.gru(out, z)

"""The RNN line's transitions, one step in time: [z, x, level, condition] → z (docs/method.md §9).

Of vectors: a residual MLP, a stack of GRU cells, another MLP. Of images: a 2-D U-Net over [z, x] and a convolutional GRU cell. Parameters
have the released names after `transition_model.model.`. What does not depend on z (`features`: how levels and conditions modulate the
blocks) is computed for all tokens at once; `step` takes one token after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_forcing.errors import UserError
from diffusion_forcing.networks.embeddings import WaveMLP

HIDDEN = 32  # width of the hidden layers, in network_sizes


class ResidualMLP(nn.Module):
    """GELU(linear(GELU(linear(x))) + x), x brought to the new width by a linear layer where it has another."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, out), nn.GELU(), nn.Linear(out, out))
        self.shortcut = nn.Linear(width, out) if width != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.mlp(x) + self.shortcut(x))


class FromLatent(NamedTuple):
    """What of a step comes of z alone. A token is looked at once a sampling level, always from the same z: this part is computed once.

    inner, shortcut: (b, d), z through the first block's two linear layers, biases with it; gates: (b, 3·state) of each GRU cell.
    """

    inner: Tensor
    shortcut: Tensor
    gates: tuple[Tensor, ...]


class TransitionMLP(nn.Module):
    """z' = after(GRU(before([z, x, level, condition]), z)).

    x: (b, x_dim), k: (b,) noise levels, z: (b, z_dim), condition: (b, external_cond_dim) or None (then zeros) → (b, z_dim). z is cut
    into one state a GRU cell, so z_dim is a multiple of num_gru_layers. num_mlp_layers: on either side; 0: the first GRU cell takes
    [z, x, level, condition], and without GRU cells z' = z, as released.
    self_condition: beside x there is an estimate of what it says, like x, or None (then zeros).
    """

    def __init__(
        self,
        x_dim: int,
        z_dim: int,
        *,
        network_size: int,
        num_gru_layers: int = 1,
        num_mlp_layers: int = 2,
        external_cond_dim: int = 0,
        self_condition: bool = False,
    ) -> None:
        super().__init__()
        if num_gru_layers and z_dim % num_gru_layers:
            raise UserError(
                f"z_shape [{z_dim}] cannot be cut into {num_gru_layers} equal states; "
                "choose a multiple of algorithm.diffusion.num_gru_layers"
            )
        self.external_cond_dim = external_cond_dim
        self.self_condition = self_condition
        self.time_mlp = WaveMLP(network_size, network_size)
        if external_cond_dim:
            self.external_cond_mlp = nn.Sequential(
                nn.Linear(external_cond_dim, network_size), nn.GELU(), nn.Linear(network_size, network_size)
            )
        inputs = z_dim + x_dim * (2 if self_condition else 1) + network_size * (2 if external_cond_dim else 1)
        hidden = HIDDEN * network_size
        self.mlp_before_gru = _mlp(inputs, hidden, z_dim, num_mlp_layers)
        self.mlp_after_gru = (
            nn.Linear(z_dim, z_dim) if num_mlp_layers == 1 else _mlp(z_dim, hidden, z_dim, num_mlp_layers)
        )
        state = z_dim // max(1, num_gru_layers)
        first = z_dim if num_mlp_layers else inputs
        self.gru_stack = nn.ModuleList(
            nn.GRUCell(first if layer == 0 else state, state) for layer in range(num_gru_layers)
        )
        self.is_identity = not num_mlp_layers and not num_gru_layers

    def forward(
        self, x: Tensor, k: Tensor, z: Tensor, condition: Tensor | None = None, estimate: Tensor | None = None
    ) -> Tensor:
        return self.step(x, self.features(k, condition), z, estimate)

    def features(self, k: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """What levels k: (…) and conditions (…, external_cond_dim) say, one tensor (…, d)."""
        level: Tensor = self.time_mlp(k)
        if not self.external_cond_dim:
            return (level,)
        conditions = level.new_zeros(*k.shape, self.external_cond_dim) if condition is None else condition
        return (torch.cat([level, self.external_cond_mlp(conditions)], dim=-1),)

    def step(self, x: Tensor, features: Sequence[Tensor], z: Tensor, estimate: Tensor | None = None) -> Tensor:
        """The latent after one token x: (b, x_dim)."""
        if self.is_identity:
            return z
        h = self.mlp_before_gru(torch.cat([z, *self._shown(x, features, estimate)], dim=-1))
        if self.gru_stack:
            states = []
            for cell, state in zip(self.gru_stack, z.chunk(len(self.gru_stack), dim=-1), strict=True):
                h = cell(h, state)
                states.append(h)
            h = torch.cat(states, dim=-1)
        after: Tensor = self.mlp_after_gru(h)
        return after

    def from_latent(self, z: Tensor) -> FromLatent | None:
        """What every look at the next token from z: (b, z_dim) has in common; None where the first block cannot be taken apart."""
        first, z_dim = self._first_block(), z.shape[-1]
        if not (isinstance(first, ResidualMLP) and isinstance(first.shortcut, nn.Linear)):
            return None
        inner: nn.Linear = first.mlp[0]  # type: ignore[assignment]
        states = z.chunk(max(1, len(self.gru_stack)), dim=-1)
        return FromLatent(
            F.linear(z, inner.weight[:, :z_dim], inner.bias),
            F.linear(z, first.shortcut.weight[:, :z_dim], first.shortcut.bias),
            tuple(F.linear(s, c.weight_hh, c.bias_hh) for c, s in zip(self._cells(), states, strict=False)),
        )

    def look(
        self, x: Tensor, features: Sequence[Tensor], z: Tensor, known: FromLatent, estimate: Tensor | None = None
    ) -> Tensor:
        """`step` but for `mlp_after_gru`, with known = from_latent(z)."""
        first: ResidualMLP = self._first_block()  # type: ignore[assignment]
        shown = torch.cat(self._shown(x, features, estimate), dim=-1)
        inner, shortcut = (layer.weight[:, z.shape[-1] :] for layer in (first.mlp[0], first.shortcut))  # type: ignore[index]
        within: Tensor = first.mlp[2](F.gelu(known.inner + F.linear(shown, inner)))
        h = F.gelu(within + known.shortcut + F.linear(shown, shortcut))
        if isinstance(self.mlp_before_gru, nn.Sequential):
            h = self.mlp_before_gru[1:](h)
        if not self.gru_stack:
            return h
        states = []
        for cell, state, gates in zip(self._cells(), z.chunk(len(self.gru_stack), dim=-1), known.gates, strict=True):
            h = _gru(F.linear(h, cell.weight_ih, cell.bias_ih), gates, state)
            states.append(h)
        return torch.cat(states, dim=-1)

    def _cells(self) -> list[nn.GRUCell]:
        return list(self.gru_stack)  # type: ignore[arg-type]

    def _first_block(self) -> nn.Module:
        before = self.mlp_before_gru
        return before[0] if isinstance(before, nn.Sequential) else before

    def _shown(self, x: Tensor, features: Sequence[Tensor], estimate: Tensor | None) -> list[Tensor]:
        """What the first block sees beside z."""
        own = [torch.zeros_like(x) if estimate is None else estimate, x] if self.self_condition else [x]
        return [*own, *features]


def _gru(of_input: Tensor, of_state: Tensor, state: Tensor) -> Tensor:
    """torch.nn.GRUCell after its two products, each (b, 3·state)."""
    reset_x, update_x, new_x = of_input.chunk(3, dim=-1)
    reset_h, update_h, new_h = of_state.chunk(3, dim=-1)
    new = torch.tanh(torch.addcmul(new_x, torch.sigmoid(reset_x + reset_h), new_h))
    # Under autocast the products have half precision, and the first state has not.
    return torch.lerp(new, state.to(new.dtype), torch.sigmoid(update_x + update_h))


def _mlp(width: int, hidden: int, out: int, layers: int) -> nn.Module:
    """`layers` layers: residual ones, and a linear one at the end where there are two or more; none with 0 layers."""
    if layers == 0:
        return nn.Identity()
    if layers == 1:
        return ResidualMLP(width, out)
    residual = [ResidualMLP(width if layer == 0 else hidden, hidden) for layer in range(layers - 1)]
    return nn.Sequential(*residual, nn.Linear(hidden, out))


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
    return cast("Iterator[Stage]", iter(modules))  # a name in quotes: compilers do not see types


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
            conditions = embedding.new_zeros(*k.shape, self.external_cond_dim) if condition is None else condition
            embedding = torch.cat([embedding, self.external_cond_mlp(conditions)], dim=-1)
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
        # Down, middle, up; each block takes its own scale and shift.
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

"""Recurrent networks: a latent z_t that summarises x_1…x_t, stepped by a transition, read by a head (docs/method.md §9).

The protocol is that of every network (`memory.py`): the memory is z, so it has one size however long the past is, and a rollout needs no window.

A released checkpoint of the RNN line has the same parameters: `transition_model.model.` is `model.`, `transition_model.x_from_z.` is
`x_from_z.`; `init_z` and `init_encoder.` have their names at the top of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_forcing.errors import UserError
from diffusion_forcing.networks.attention import WaveMLP

# ---------------------------------------------------------------------------------------------------------- transitions
# The RNN line's transitions, one step in time: [z, x, level, condition] → z (docs/method.md §9).
#
# Of vectors: a residual MLP, a stack of GRU cells, another MLP. Of images: a 2-D U-Net over [z, x] and a convolutional GRU cell. Parameters
# have the released names after `transition_model.model.`. What does not depend on z (`features`: how levels and conditions modulate the
# blocks) is computed for all tokens at once; `step` takes one token after the other.

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


class Transition(nn.Module):
    """What both transitions share. self_condition: beside x there is an estimate of what it says, like x, or None (then zeros)."""

    time_mlp: nn.Module
    external_cond_mlp: nn.Module

    def __init__(self, external_cond_dim: int, self_condition: bool) -> None:
        super().__init__()
        self.external_cond_dim = external_cond_dim
        self.self_condition = self_condition

    def forward(
        self, x: Tensor, k: Tensor, z: Tensor, condition: Tensor | None = None, estimate: Tensor | None = None
    ) -> Tensor:
        return self.step(x, self.features(k, condition), z, estimate)

    def features(self, k: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """What levels k: (…) and conditions (…, external_cond_dim) say to the layers: tensors (…, d)."""
        raise NotImplementedError

    def step(self, x: Tensor, features: Sequence[Tensor], z: Tensor, estimate: Tensor | None = None) -> Tensor:
        """The latent after one token x: (b, …)."""
        raise NotImplementedError

    def _embedding(self, k: Tensor, condition: Tensor | None) -> Tensor:
        """(…, e) of levels k: (…) and conditions (…, external_cond_dim), zeros where there are none."""
        level: Tensor = self.time_mlp(k)
        if not self.external_cond_dim:
            return level
        conditions = level.new_zeros(*k.shape, self.external_cond_dim) if condition is None else condition
        return torch.cat([level, self.external_cond_mlp(conditions)], dim=-1)

    def _shown(self, x: Tensor, estimate: Tensor | None) -> list[Tensor]:
        """The token, and where it is self-conditioned its estimate before it."""
        return [torch.zeros_like(x) if estimate is None else estimate, x] if self.self_condition else [x]


def _condition_mlp(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, out), nn.GELU(), nn.Linear(out, out))


class TransitionMLP(Transition):
    """z' = after(GRU(before([z, x, level, condition]), z)).

    x: (b, x_dim), k: (b,) noise levels, z: (b, z_dim), condition: (b, external_cond_dim) or None (then zeros) → (b, z_dim). z is cut
    into one state a GRU cell, so z_dim is a multiple of num_gru_layers. num_mlp_layers: on either side; 0: the first GRU cell takes
    [z, x, level, condition], and without GRU cells z' = z, as released.
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
        super().__init__(external_cond_dim, self_condition)
        if num_gru_layers and z_dim % num_gru_layers:
            raise UserError(
                f"z_shape [{z_dim}] cannot be cut into {num_gru_layers} equal states; "
                "choose a multiple of algorithm.diffusion.num_gru_layers"
            )
        self.time_mlp = WaveMLP(network_size, network_size)
        if external_cond_dim:
            self.external_cond_mlp = _condition_mlp(external_cond_dim, network_size)
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

    def features(self, k: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        return (self._embedding(k, condition),)

    def step(self, x: Tensor, features: Sequence[Tensor], z: Tensor, estimate: Tensor | None = None) -> Tensor:
        if self.is_identity:
            return z
        h = self.mlp_before_gru(torch.cat([z, *self._shown(x, estimate), *features], dim=-1))
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
        shown = torch.cat([*self._shown(x, estimate), *features], dim=-1)
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


class TransitionUNet(Transition):
    """z' = GRU(U-Net([z, x], level, condition), z); without GRU layers, what the U-Net says.

    x: (b, x_channels, h, w), k: (b,) noise levels, z: (b, z_channels, h, w), condition: (b, external_cond_dim) or None (then zeros) →
    (b, z_channels, h, w). h and w are multiples of 2^(stages − 1).
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
        super().__init__(external_cond_dim, self_condition)
        if num_gru_layers not in (0, 1):
            raise UserError(f"algorithm.diffusion.num_gru_layers is {num_gru_layers}; a recurrent U-Net has 0 or 1")
        if network_size % GROUPS:
            raise UserError(f"algorithm.diffusion.network_size is {network_size}; it must be a multiple of {GROUPS}")
        widths = [network_size, *(network_size * mult for mult in dim_mults)]
        stages = list(pairwise(widths))
        level = 4 * network_size
        self.init_conv = nn.Conv2d(z_channels + x_channels * (2 if self_condition else 1), network_size, 7, padding=3)
        self.time_mlp = WaveMLP(network_size, level)
        if external_cond_dim:
            self.external_cond_mlp = _condition_mlp(external_cond_dim, level)
        embedding = 2 * level if external_cond_dim else level
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for stage, (dim, out) in enumerate(stages):
            last = stage == len(stages) - 1
            layers: list[nn.Module] = [ResidualBlock(dim, dim, embedding) for _ in range(2)]
            layers.append((FullAttention if last else LinearAttention)(dim))
            if last:
                layers.append(nn.Conv2d(dim, out, 3, padding=1))
            else:
                layers.append(nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * dim, out, 1)))
            self.downs.append(nn.ModuleList(layers))
        self.mid_block1 = ResidualBlock(widths[-1], widths[-1], embedding)
        self.mid_attn = FullAttention(widths[-1])
        self.mid_block2 = ResidualBlock(widths[-1], widths[-1], embedding)
        for stage, (dim, out) in reversed(list(enumerate(stages))):
            layers = [ResidualBlock(dim + out, out, embedding) for _ in range(2)]
            layers.append((FullAttention if stage == len(stages) - 1 else LinearAttention)(out))
            narrow = nn.Conv2d(out, dim, 3, padding=1)
            self.ups.append(
                nn.ModuleList([*layers, nn.Sequential(nn.Upsample(scale_factor=2), narrow) if stage else narrow])
            )
        self.final_res_block = ResidualBlock(2 * network_size, network_size, embedding)
        self.final_conv = nn.Conv2d(network_size, z_channels, 1)
        self.gru = ConvGRU(z_channels) if num_gru_layers else None

    def features(self, k: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """How levels and conditions modulate the blocks in the order they are met, each (…, 2·channels)."""
        embedding = self._embedding(k, condition)
        return tuple(block.film(embedding) for block in self._blocks())

    def _blocks(self) -> Iterator[ResidualBlock]:
        for one, two, _, _ in _stages(self.downs):
            yield from (one, two)
        yield from (self.mid_block1, self.mid_block2)
        for one, two, _, _ in _stages(self.ups):
            yield from (one, two)
        yield self.final_res_block

    def step(self, x: Tensor, features: Sequence[Tensor], z: Tensor, estimate: Tensor | None = None) -> Tensor:
        films = iter(features)
        h = first = self.init_conv(torch.cat([z, *self._shown(x, estimate)], dim=1))
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


# ------------------------------------------------------------------------------------------------------------ over time

SMALLEST = 8  # pixels a side: the released dim_mults halve three times
START_HIDDEN = 128  # width of the two hidden layers that encode a start


class Latent:
    """z: (b, *z_shape) after `length` tokens, computed when it is first asked for."""

    def __init__(self, z: Tensor | Callable[[], Tensor], length: int) -> None:
        self._z = z
        self._known: tuple[Any] | None = None
        self.length = length

    @property
    def z(self) -> Tensor:
        """The latent."""
        if callable(self._z) and not isinstance(self._z, Tensor):
            self._z = self._z()
        return self._z

    def known(self, model: Transition) -> Any:
        """`model.from_latent(z)`, computed once: every sampling level of a token starts here."""
        if self._known is None:
            self._known = (model.from_latent(self.z) if isinstance(model, TransitionMLP) else None,)
        return self._known[0]

    def trimmed(self, last: int, sinks: int = 0) -> Latent:
        """Itself: a summary has nothing to drop."""
        return self

    def copied(self) -> Latent:
        """A copy that shares no storage with it."""
        return Latent(self.z.clone(), self.length)


def start_encoder(start_dim: int, z_dim: int) -> nn.Sequential:
    """z₀ from where a sequence starts, normalised (b, start_dim) → (b, z_dim) (docs/method.md §10)."""
    return nn.Sequential(
        nn.Linear(start_dim, START_HIDDEN),
        nn.ELU(),
        nn.Linear(START_HIDDEN, START_HIDDEN),
        nn.ELU(),
        nn.Linear(START_HIDDEN, z_dim),
    )


class ImageHead(nn.Sequential):
    """z (b, z_channels, h, w) → (b, x_channels, h, w): a residual block of 3x3 convolutions without biases, and a 1x1 one."""

    def __init__(self, z_channels: int, x_channels: int) -> None:
        super().__init__(_HeadBlock(z_channels, x_channels), nn.Conv2d(x_channels, x_channels, 1))


class _HeadBlock(nn.Module):
    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, out, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.shortcut = nn.Sequential(nn.Conv2d(dim, out, 1, bias=False)) if dim != out else nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class Recurrent(nn.Module):
    """A transition stepped over time. x: (b, t, *x_shape), k: (b, t), conditions: (b, t, d) → output (b, t, *x_shape), `Latent`.

    z starts as the memory given, else as the learnt `init_z`, else as zeros; `starting` makes a memory of what is known of the start.
    A model that is self-conditioned looks at every token twice.
    """

    keeps_memory = True
    memory_slides = True
    recurrent = True
    why_no_memory = ""
    static_outputs = False

    def __init__(
        self,
        model: Transition,
        x_from_z: nn.Module,
        z_shape: tuple[int, ...],
        *,
        learnable_init_z: bool = False,
        start_dim: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.x_from_z = x_from_z
        self.z_shape = z_shape
        self.init_z = nn.Parameter(torch.randn(z_shape)) if learnable_init_z else None
        self.init_encoder = start_encoder(start_dim, *z_shape) if start_dim else None

    def begin(self, batch: int, like: Tensor) -> Latent:
        """The latent before the first token."""
        z = like.new_zeros(self.z_shape) if self.init_z is None else self.init_z
        return Latent(z.expand(batch, *self.z_shape), 0)

    def starting(self, start: Tensor) -> Latent:
        """The latent before the first token of sequences that start at `start`: (b, start_dim), normalised."""
        if self.init_encoder is None:
            raise UserError("this network encodes no start; build it with start_dim")
        return Latent(self.init_encoder(start), 0)

    def forward(
        self, x: Tensor, k: Tensor, conditions: Tensor | None = None, memory: Latent | None = None
    ) -> tuple[Tensor, Latent]:
        width = self.model.external_cond_dim
        if conditions is not None and conditions.shape[-1] != width:
            raise UserError(
                f"conditions have {conditions.shape[-1]} numbers a token, the network was built for {width}; "
                "set algorithm.external_cond_dim to what the dataset gives"
            )
        latent = self.begin(len(x), x) if memory is None else memory
        if not x.shape[1]:
            return x, latent
        # One token while sampling: what comes of the latent alone is known already.
        if x.shape[1] == 1 and not torch.is_grad_enabled() and not self.static_outputs:
            known = latent.known(self.model)
            if known is not None:
                return self._look(x[:, 0], next(_by_token(self.model.features(k, conditions))), latent, known)
        # Step the latent over the tokens, then look at all of them at once: (b, t, *z) → (b·t, *z).
        states = self._latents(latent.z, x, k, conditions)
        output: Tensor = self.x_from_z(torch.stack(states, dim=1).flatten(0, 1))
        return output.unflatten(0, x.shape[:2]), Latent(states[-1], latent.length + len(states))

    def teacher_forced(
        self,
        clean: Tensor,
        clean_k: Tensor,
        x: Tensor,
        k: Tensor,
        conditions: Tensor | None = None,
        memory: Latent | None = None,
    ) -> Tensor:
        """Each token of x: (b, t, *x_shape) at its level k: (b, t), looked at from the latent of the `clean` tokens before it, shown at
        levels clean_k: (b, t, *x_shape). The latents are stepped one after the other, the looks are one call."""
        z = (self.begin(len(x), x) if memory is None else memory).z
        # The latent before each token.
        earlier = None if conditions is None else conditions[:, :-1]
        before = [z, *self._latents(z, clean[:, :-1], clean_k[:, :-1], earlier)]
        # One step from each: (b, t, …) → (b·t, …).
        flat = tuple(feature.flatten(0, 1) for feature in self.model.features(k, conditions))
        tokens, latents = x.flatten(0, 1), torch.stack(before, dim=1).flatten(0, 1)
        estimate = self._estimate(tokens, flat, latents) if self.model.self_condition else None
        output: Tensor = self.x_from_z(self.model.step(tokens, flat, latents, estimate))
        return output.unflatten(0, x.shape[:2])

    def _latents(self, z: Tensor, x: Tensor, k: Tensor, conditions: Tensor | None) -> list[Tensor]:
        """The latents after each token of x: (b, t, *x_shape), from z on."""
        states = []
        for token, features in zip(x.unbind(1), _by_token(self.model.features(k, conditions)), strict=True):
            estimate = self._estimate(token, features, z) if self.model.self_condition else None
            z = self.model.step(token, features, z, estimate)
            states.append(z)
        return states

    def _look(
        self, x: Tensor, features: tuple[Tensor, ...], latent: Latent, known: FromLatent
    ) -> tuple[Tensor, Latent]:
        """`forward` of one token x: (b, *x_shape) without gradients: what comes of the latent alone is not computed again, and the latent
        after the token only if it is asked for. Where it leads to the output by two linear layers, they are one."""
        model: TransitionMLP = self.model  # type: ignore[assignment]
        after, head = model.mlp_after_gru, self.x_from_z

        def output(h: Tensor) -> Tensor:
            if isinstance(after, nn.Linear) and isinstance(head, nn.Linear) and len(h) >= head.out_features:
                return F.linear(h, head.weight @ after.weight, F.linear(after.bias, head.weight, head.bias))
            through: Tensor = head(after(h))
            return through

        estimate = None
        if model.self_condition:
            estimate = self._dropped(output(model.look(x, features, latent.z, known)))
        h = model.look(x, features, latent.z, known, estimate)
        return output(h)[:, None], Latent(lambda: after(h), latent.length + 1)

    def _estimate(self, x: Tensor, features: tuple[Tensor, ...], z: Tensor) -> Tensor:
        """The first prediction for token x: (b, *x_shape), an input of the second (Chen et al. 2023); in training for half of the batch."""
        where = x.device.type
        # Autocast before torch 2.5 would keep the weights it rounds here, and with them their missing gradients.
        rounding = torch.autocast(where, enabled=torch.is_autocast_enabled(where), cache_enabled=False)
        with torch.no_grad(), rounding:
            return self._dropped(self.x_from_z(self.model.step(x, features, z)))

    def _dropped(self, estimate: Tensor) -> Tensor:
        """In training, half of the estimates as zeros."""
        if self.training:
            estimate = estimate * (torch.rand(len(estimate), *(1,) * (estimate.ndim - 1), device=estimate.device) < 0.5)
        return estimate


def _by_token(features: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """Tensors (b, t, …) → t times (b, …)."""
    return zip(*(feature.unbind(1) for feature in features), strict=True)


def recurrent_mlp(
    x_dim: int, z_dim: int, *, learnable_init_z: bool = False, start_dim: int = 0, **sizes: Any
) -> Recurrent:
    """The network for tokens that are vectors: (b, t, x_dim). sizes: of its `TransitionMLP`. start_dim: numbers of a start that z is made
    from; 0: it is not."""
    model = TransitionMLP(x_dim, z_dim, **sizes)
    return Recurrent(model, nn.Linear(z_dim, x_dim), (z_dim,), learnable_init_z=learnable_init_z, start_dim=start_dim)


def recurrent_unet(
    x_channels: int, z_shape: tuple[int, int, int], *, learnable_init_z: bool = False, **sizes: Any
) -> Recurrent:
    """The network for tokens that are images: (b, t, x_channels, h, w), as large as z_shape says. sizes: of its `TransitionUNet`."""
    if any(side % SMALLEST for side in z_shape[1:]):
        raise UserError(f"z_shape {list(z_shape)} is halved three times; its sides must be multiples of {SMALLEST}")
    model = TransitionUNet(x_channels, z_shape[0], **sizes)
    return Recurrent(model, ImageHead(z_shape[0], x_channels), z_shape, learnable_init_z=learnable_init_z)

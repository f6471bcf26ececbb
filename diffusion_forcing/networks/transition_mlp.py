"""The RNN line's transition of vectors: a residual MLP, a stack of GRU cells, another MLP (METHOD §9). One step in time.

Names of the parameters are the released ones behind `transition_model.model.`. What does not depend on z (`features`) is computed for all
tokens together, `step` one token after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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
    into one state a GRU cell, so z_dim is a multiple of num_gru_layers. num_mlp_layers: on either side; 0: one linear layer on each.
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
        self.gru_stack = nn.ModuleList(
            nn.GRUCell(z_dim if layer == 0 else state, state) for layer in range(num_gru_layers)
        )

    def forward(
        self, x: Tensor, k: Tensor, z: Tensor, condition: Tensor | None = None, estimate: Tensor | None = None
    ) -> Tensor:
        return self.step(x, self.features(k, condition), z, estimate)

    def features(self, k: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """What levels k: (…) and conditions (…, external_cond_dim) say, one tensor (…, d)."""
        level: Tensor = self.time_mlp(k)
        if not self.external_cond_dim:
            return (level,)
        told = level.new_zeros(*k.shape, self.external_cond_dim) if condition is None else condition
        return (torch.cat([level, self.external_cond_mlp(told)], dim=-1),)

    def step(self, x: Tensor, features: Sequence[Tensor], z: Tensor, estimate: Tensor | None = None) -> Tensor:
        """The latent after one token x: (b, x_dim)."""
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
    """torch.nn.GRUCell behind its two products, each (b, 3·state)."""
    reset_x, update_x, new_x = of_input.chunk(3, dim=-1)
    reset_h, update_h, new_h = of_state.chunk(3, dim=-1)
    new = torch.tanh(torch.addcmul(new_x, torch.sigmoid(reset_x + reset_h), new_h))
    return torch.lerp(new, state, torch.sigmoid(update_x + update_h))


def _mlp(width: int, hidden: int, out: int, layers: int) -> nn.Module:
    """`layers` layers: residual ones, and a linear one at the end where there are two or more."""
    if layers == 0:
        return nn.Linear(width, out)
    if layers == 1:
        return ResidualMLP(width, out)
    residual = [ResidualMLP(width if layer == 0 else hidden, hidden) for layer in range(layers - 1)]
    return nn.Sequential(*residual, nn.Linear(hidden, out))

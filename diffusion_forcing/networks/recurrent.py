"""Recurrent networks: a latent z_t that summarises x_1…x_t, stepped by a transition, read by a head (docs/method.md §9).

The protocol is that of every network (`memory.py`): the memory is z, so it has one size however long the past is, and a rollout needs no window.

A released checkpoint of the RNN line has the same parameters: `transition_model.model.` is `model.`, `transition_model.x_from_z.` is
`x_from_z.`; `init_z` and `init_encoder.` have their names at the top of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_forcing.errors import UserError
from diffusion_forcing.networks.transitions import FromLatent, TransitionMLP, TransitionUNet

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

    def known(self, model: TransitionMLP | TransitionUNet) -> Any:
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
        model: TransitionMLP | TransitionUNet,
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
        z, states = latent.z, []
        for token, features in zip(x.unbind(1), _by_token(self.model.features(k, conditions)), strict=True):
            estimate = self._estimate(token, features, z) if self.model.self_condition else None
            z = self.model.step(token, features, z, estimate)
            states.append(z)
        output: Tensor = self.x_from_z(torch.stack(states, dim=1).flatten(0, 1))
        return output.unflatten(0, x.shape[:2]), Latent(z, latent.length + len(states))

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
        before = [z]
        features = _by_token(self.model.features(clean_k[:, :-1], None if conditions is None else conditions[:, :-1]))
        for token, modulation in zip(clean[:, :-1].unbind(1), features, strict=True):
            estimate = self._estimate(token, modulation, z) if self.model.self_condition else None
            z = self.model.step(token, modulation, z, estimate)
            before.append(z)
        # One step from each: (b, t, …) → (b·t, …).
        flat = tuple(feature.flatten(0, 1) for feature in self.model.features(k, conditions))
        tokens, latents = x.flatten(0, 1), torch.stack(before, dim=1).flatten(0, 1)
        estimate = self._estimate(tokens, flat, latents) if self.model.self_condition else None
        output: Tensor = self.x_from_z(self.model.step(tokens, flat, latents, estimate))
        return output.unflatten(0, x.shape[:2])

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
    x_dim: int,
    z_dim: int,
    *,
    network_size: int,
    num_gru_layers: int = 1,
    num_mlp_layers: int = 2,
    external_cond_dim: int = 0,
    learnable_init_z: bool = False,
    self_condition: bool = False,
    start_dim: int = 0,
) -> Recurrent:
    """The network for tokens that are vectors: (b, t, x_dim). start_dim: numbers of a start that z is made from; 0: it is not."""
    model = TransitionMLP(
        x_dim,
        z_dim,
        network_size=network_size,
        num_gru_layers=num_gru_layers,
        num_mlp_layers=num_mlp_layers,
        external_cond_dim=external_cond_dim,
        self_condition=self_condition,
    )
    return Recurrent(model, nn.Linear(z_dim, x_dim), (z_dim,), learnable_init_z=learnable_init_z, start_dim=start_dim)


def recurrent_unet(
    x_channels: int,
    z_shape: tuple[int, int, int],
    *,
    network_size: int,
    num_gru_layers: int = 1,
    external_cond_dim: int = 0,
    learnable_init_z: bool = False,
    self_condition: bool = False,
) -> Recurrent:
    """The network for tokens that are images: (b, t, x_channels, h, w), as large as z_shape says."""
    if any(side % SMALLEST for side in z_shape[1:]):
        raise UserError(f"z_shape {list(z_shape)} is halved three times; its sides must be multiples of {SMALLEST}")
    model = TransitionUNet(
        x_channels,
        z_shape[0],
        network_size=network_size,
        num_gru_layers=num_gru_layers,
        external_cond_dim=external_cond_dim,
        self_condition=self_condition,
    )
    return Recurrent(model, ImageHead(z_shape[0], x_channels), z_shape, learnable_init_z=learnable_init_z)

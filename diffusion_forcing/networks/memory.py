"""Memory: what a causal network keeps of the tokens before x, so that it need not process them again.

One protocol for every network: `network(x, k, conditions, memory) -> (output, memory)`. The returned memory covers the old tokens and x. It
is a value: calling twice with the same memory gives the same output, and a returned memory may be dropped.

Attributes of a network:
- `keeps_memory`: whether a call on the last tokens with the memory of the earlier ones equals a call on all of them;
- `why_no_memory`: the reason if not, else "";
- `memory_slides`: positions are relative, so the memory may be `trimmed` and used on;
- `recurrent`: the memory has one size whatever it has seen, and each token costs a step, so no window is needed;
- `static_outputs`, if present: the next call overwrites what this one returned (`compile_network`), unless the memory was `copied`;
- `teacher_forced(clean, clean_k, x, k, conditions, memory) -> output`, if present: predicts each noised token of x from the clean tokens
  before it, all in one call, for next-token prediction.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion_forcing.errors import UserError
from diffusion_forcing.networks.attention import KeysAndValues, rotate, rotation


def check_inputs(conditions: Tensor | None, width: int, x: Tensor | None = None, shape: tuple[int, ...] = ()) -> None:
    """UserError unless `conditions` have the `width` that a network takes (0: none), and frames x: (b, t, *shape) the `shape`."""
    if x is not None and x.shape[2:] != shape:
        raise UserError(
            f"the network takes frames of (channels, height, width) {shape}, got {tuple(x.shape[2:])}; "
            "check dataset.resolution and algorithm.frame_stack"
        )
    if (0 if conditions is None else conditions.shape[-1]) != width:
        got = "none" if conditions is None else f"width {conditions.shape[-1]}"
        raise UserError(f"the network takes conditions of width {width} (external_cond_dim), got {got}")


class KVCache:
    """Keys and values of the tokens so far, one pair a layer, each (…, t, d): time is the last axis but one."""

    def __init__(self, keys: tuple[Tensor, ...], values: tuple[Tensor, ...]) -> None:
        self._parts = [(keys, values)]

    @property
    def keys(self) -> tuple[Tensor, ...]:
        """Of each layer."""
        return self._joined()[0]

    @property
    def values(self) -> tuple[Tensor, ...]:
        """Of each layer."""
        return self._joined()[1]

    def then(self, later: KVCache) -> KVCache:
        """This memory followed by `later`. Joined when it is read: most memories that a row of sampling makes are dropped unread."""
        both = KVCache((), ())
        both._parts = [*self._parts, *later._parts]
        return both

    def copied(self) -> KVCache:
        """A copy that shares no storage with it."""
        return KVCache(tuple(key.clone() for key in self.keys), tuple(value.clone() for value in self.values))

    def _joined(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        if len(self._parts) > 1:
            keys, values = zip(*self._parts, strict=True)
            self._parts = [
                tuple(tuple(torch.cat(one, dim=-2) for one in zip(*parts, strict=True)) for parts in (keys, values))  # type: ignore[list-item]
            ]
        return self._parts[0]

    @property
    def length(self) -> int:
        """How many tokens it stands for."""
        return sum(keys[0].shape[-2] for keys, _ in self._parts)

    def trimmed(self, last: int, sinks: int = 0) -> KVCache:
        """The first `sinks` and the last `last` tokens of it (Xiao et al. 2024: attention relies on the very first tokens, so a
        sliding window keeps them); itself where there are no more."""
        if last < 0 or sinks < 0:
            raise ValueError(f"cannot keep {last} last and {sinks} first tokens")
        if self.length <= last + sinks:
            return self
        return KVCache(
            tuple(_trim(key, last, sinks) for key in self.keys), tuple(_trim(v, last, sinks) for v in self.values)
        )


def _trim(x: Tensor, last: int, sinks: int) -> Tensor:
    """x: (…, t, d) → (…, sinks + last, d)."""
    recent = x[..., x.shape[-2] - last :, :]
    return torch.cat([x[..., :sinks, :], recent], dim=-2) if sinks else recent


class FrameCache:
    """Keys and values (b, h·w·heads, t, d) of each temporal attention in turn, of `before` and then of `own` frames.

    position: of the frame that comes next. Keys lie turned at their rotary positions; only distances between positions count, so nothing
    moves when the oldest frames are dropped.
    """

    def __init__(
        self, own: Sequence[KeysAndValues], *, position: int, rotary: bool, before: FrameCache | None = None
    ) -> None:
        self._own = tuple(own)
        self._before = before
        self.position = position
        self.rotary = rotary
        self.length: int = own[0][0].shape[2] + (0 if before is None else before.length)

    @property
    def layers(self) -> tuple[KeysAndValues, ...]:
        """Keys and values of all frames, a pair a layer."""
        before, self._before = self._before, None
        if before is not None:
            self._own = tuple(
                (_join(old[0], new[0]), _join(old[1], new[1]))
                for old, new in zip(before.layers, self._own, strict=True)
            )
        return self._own

    @property
    def keys(self) -> tuple[Tensor, ...]:
        return tuple(key for key, _ in self.layers)

    @property
    def values(self) -> tuple[Tensor, ...]:
        return tuple(value for _, value in self.layers)

    def trimmed(self, last: int, sinks: int = 0) -> FrameCache:
        """The first `sinks` and the last `last` frames, the sinks moved up to just before the others (Xiao et al. 2024)."""
        if last < 0 or sinks < 0:
            raise ValueError(f"cannot keep {last} last and {sinks} first frames")
        dropped = self.length - sinks - last
        if dropped <= 0:
            return self
        kept = [(_trim_frames(key, last, sinks), _trim_frames(value, last, sinks)) for key, value in self.layers]
        if sinks and self.rotary:
            for key, _ in kept:
                turn = rotation(torch.full((1,), dropped, device=key.device), key.shape[-1])
                key[:, :, :sinks] = rotate(key[:, :, :sinks], turn)
        return FrameCache(kept, position=self.position, rotary=self.rotary)

    def copied(self) -> FrameCache:
        """A copy that shares no storage with it."""
        layers = [(key.clone(), value.clone()) for key, value in self.layers]
        return FrameCache(layers, position=self.position, rotary=self.rotary)


def _join(old: Tensor, new: Tensor) -> Tensor:
    """Along time, kept in memory as (b, t, h·w·heads, d), in which a frame is one piece."""
    return torch.cat([old.transpose(1, 2), new.transpose(1, 2)], dim=1).transpose(1, 2)


def _trim_frames(x: Tensor, last: int, sinks: int) -> Tensor:
    """x: (b, n, t, d) → a copy (b, n, sinks + last, d): a view would keep all that was dropped."""
    return _join(x[:, :, :sinks], x[:, :, x.shape[2] - last :])

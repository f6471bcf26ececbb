"""What the U-Net remembers of finished frames: keys and values of its temporal attentions (see `memory.py` for the protocol).

They are joined to those of the frames before them when they are first used, not when they are made: a denoising row makes a memory that
nobody will ask for, and joining is a copy of all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from diffusion_forcing.networks.video_attention import KeysAndValues, rotate, rotation


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

    @cached_property
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
        kept = [(_trim(key, last, sinks), _trim(value, last, sinks)) for key, value in self.layers]
        if sinks and self.rotary:
            for key, _ in kept:
                turn = rotation(torch.tensor([dropped], device=key.device), key.shape[-1])
                key[:, :, :sinks] = rotate(key[:, :, :sinks], turn)
        return FrameCache(kept, position=self.position, rotary=self.rotary)


def _join(old: Tensor, new: Tensor) -> Tensor:
    """Along time, kept in memory as (b, t, h·w·heads, d), in which a frame is one piece."""
    return torch.cat([old.transpose(1, 2), new.transpose(1, 2)], dim=1).transpose(1, 2)


def _trim(x: Tensor, last: int, sinks: int) -> Tensor:
    """x: (b, n, t, d) → a copy (b, n, sinks + last, d): a view would keep all that was dropped."""
    return _join(x[:, :, :sinks], x[:, :, x.shape[2] - last :])

"""How pictures and actions make one token: tiled, everything a picture, as released; or flat, everything a number (METHOD §11).

A token's elements fall into parts that can be seen well or badly by themselves: one a camera, and the actions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_forcing.algorithms.robot_actions import NUMBERS, from_planes, to_planes

COLOURS = 3


@dataclass(frozen=True)
class Tiled:
    """Tokens (3·cameras + stack, size, size): the cameras' colours, then a plane an action."""

    cameras: int
    stack: int
    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one token."""
        return (COLOURS * self.cameras + self.stack, self.size, self.size)

    def pack(self, frames: Tensor, numbers: Tensor) -> Tensor:
        """Normalised frames (b, t, cameras, 3, size, size) and actions (b, t, stack, 13) → (b, t, *shape)."""
        return torch.cat([frames.flatten(2, 3), to_planes(numbers, self.size)], dim=2)

    def unpack(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The reverse; an action's number is the mean of its cells."""
        frames, planes = tokens.split([COLOURS * self.cameras, self.stack], dim=2)
        return frames.unflatten(2, (self.cameras, COLOURS)), from_planes(planes)

    def parts(self) -> Tensor:
        """(channels, 1, 1): the number of the part that an element belongs to; the actions' is `cameras`."""
        return _parts(self.cameras, COLOURS, self.stack)[:, None, None]


@dataclass(frozen=True)
class Flat:
    """Tokens (3·cameras·size² + 13·stack,): the cameras' pixels, then the actions' numbers."""

    cameras: int
    stack: int
    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one token."""
        return (self.cameras * self._pixels + self.stack * NUMBERS,)

    @property
    def _pixels(self) -> int:
        return COLOURS * self.size**2

    def pack(self, frames: Tensor, numbers: Tensor) -> Tensor:
        """Normalised frames (b, t, cameras, 3, size, size) and actions (b, t, stack, 13) → (b, t, *shape)."""
        return torch.cat([frames.flatten(2), numbers.flatten(2)], dim=2)

    def unpack(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The reverse."""
        pixels, numbers = tokens.split([self.cameras * self._pixels, self.stack * NUMBERS], dim=2)
        frames = pixels.unflatten(2, (self.cameras, COLOURS, self.size, self.size))
        return frames, numbers.unflatten(2, (self.stack, NUMBERS))

    def parts(self) -> Tensor:
        """(elements,): the number of the part that an element belongs to; the actions' is `cameras`."""
        return _parts(self.cameras, self._pixels, self.stack * NUMBERS)


def _parts(cameras: int, of_camera: int, of_actions: int) -> Tensor:
    sizes = torch.tensor([of_camera] * cameras + [of_actions])
    return torch.repeat_interleave(torch.arange(cameras + 1), sizes)

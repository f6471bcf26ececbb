"""Camera images and actions as one token (docs/method.md §11): tiled, where actions are images too, or flat, where all
is numbers.

An action is [x, y, z, qx, qy, qz, qw, grasp]. In a token it is a vector of 13 numbers, position, rotation matrix and
grasp; or a plane as large as the images, on which every number fills its own cells of a 4 × 4 grid:

    x  y  z  g
    R  R  R  g
    R  R  R  g
    R  R  R  g

When a plane is read, each number is the mean of its cells. The rotation is always the nearest one to the nine numbers.

The elements of a token belong to *parts* that may be noised separately: each camera, and the actions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_forcing.errors import UserError

NUMBERS = 13
"""Position (3), rotation matrix (9, row by row), grasp."""
GRID = 4
COLOURS = 3


@dataclass(frozen=True)
class Layout(ABC):
    """Tokens of `cameras` square images of `size` pixels a side, and a stack of `stack` actions."""

    cameras: int
    stack: int
    size: int

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of a token."""

    @abstractmethod
    def pack(self, frames: Tensor, vectors: Tensor) -> Tensor:
        """Frames (b, t, cameras, 3, size, size) and actions (b, t, stack, 13) → tokens (b, t, *shape)."""

    @abstractmethod
    def unpack(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `pack`."""

    def parts(self) -> Tensor:
        """The part of every element, of `shape`: a camera's number, or `cameras` for actions."""
        cameras = torch.arange(self.cameras).view(1, 1, -1, 1, 1, 1)
        actions = torch.full((1, 1, self.stack, NUMBERS), self.cameras)
        return self.pack(cameras.expand(1, 1, -1, COLOURS, self.size, self.size), actions)[0, 0]


class Tiled(Layout):
    """Tokens (3·cameras + stack, size, size): the cameras' colours, then one plane per action. As released."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (COLOURS * self.cameras + self.stack, self.size, self.size)

    def pack(self, frames: Tensor, vectors: Tensor) -> Tensor:
        return torch.cat([frames.flatten(2, 3), to_planes(vectors, self.size)], dim=2)

    def unpack(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        frames, planes = tokens.split([COLOURS * self.cameras, self.stack], dim=2)
        return frames.unflatten(2, (self.cameras, COLOURS)), from_planes(planes)


class Flat(Layout):
    """Tokens (3·cameras·size² + 13·stack,): the cameras' pixels, then the actions' numbers."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.cameras * self._pixels + self.stack * NUMBERS,)

    @property
    def _pixels(self) -> int:
        return COLOURS * self.size**2

    def pack(self, frames: Tensor, vectors: Tensor) -> Tensor:
        return torch.cat([frames.flatten(2), vectors.flatten(2)], dim=2)

    def unpack(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        pixels, vectors = tokens.split([self.cameras * self._pixels, self.stack * NUMBERS], dim=2)
        frames = pixels.unflatten(2, (self.cameras, COLOURS, self.size, self.size))
        return frames, vectors.unflatten(2, (self.stack, NUMBERS))


def to_vector(actions: Tensor) -> Tensor:
    """Actions (…, 8) → (…, 13): position, rotation matrix, grasp."""
    if actions.shape[-1] != 8:
        raise UserError(f"an action has 8 numbers (x y z, qx qy qz qw, grasp), got {actions.shape[-1]}")
    rotation = matrix_of(actions[..., 3:7]).flatten(-2)
    return torch.cat([actions[..., :3], rotation, actions[..., 7:]], dim=-1)


def from_vector(vectors: Tensor) -> Tensor:
    """(…, 13) → actions (…, 8), with the rotation nearest to the nine numbers."""
    quaternion = quaternion_of(nearest_rotation(vectors[..., 3:12].unflatten(-1, (3, 3))))
    return torch.cat([vectors[..., :3], quaternion, vectors[..., 12:]], dim=-1)


def to_planes(vectors: Tensor, size: int) -> Tensor:
    """Vectors (…, 13) → planes (…, size, size); size is a multiple of 4."""
    grid = vectors.new_empty(*vectors.shape[:-1], GRID, GRID)
    grid[..., 0, :3] = vectors[..., :3]
    grid[..., 1:, :3] = vectors[..., 3:12].unflatten(-1, (3, 3))
    grid[..., 3] = vectors[..., 12:]
    return grid.repeat_interleave(size // GRID, dim=-2).repeat_interleave(size // GRID, dim=-1)


def from_planes(planes: Tensor) -> Tensor:
    """Planes (…, size, size) → vectors (…, 13): the mean of each number's cells."""
    cell = planes.shape[-1] // GRID
    grid = planes.unflatten(-1, (GRID, cell)).unflatten(-3, (GRID, cell)).mean(dim=(-3, -1))
    grasp = grid[..., 3].mean(dim=-1, keepdim=True)
    return torch.cat([grid[..., 0, :3], grid[..., 1:, :3].flatten(-2), grasp], dim=-1)


def matrix_of(quaternion: Tensor) -> Tensor:
    """Rotation matrices (…, 3, 3) of quaternions (…, 4), x y z w, of any norm above 0."""
    x, y, z, w = (quaternion / quaternion.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def quaternion_of(matrix: Tensor) -> Tensor:
    """Unit quaternions (…, 4), x y z w with w ≥ 0, of rotation matrices (…, 3, 3)."""
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in matrix.unbind(-2))
    # Row n is 4·qₙ·(qx, qy, qz, qw); the row with the largest qₙ is the most accurate.
    candidates = torch.stack(
        [
            torch.stack([1 + a - e - i, b + d, c + g, h - f], dim=-1),
            torch.stack([b + d, 1 - a + e - i, f + h, c - g], dim=-1),
            torch.stack([c + g, f + h, 1 - a - e + i, d - b], dim=-1),
            torch.stack([h - f, c - g, d - b, 1 + a + e + i], dim=-1),
        ],
        dim=-2,
    )
    largest = candidates.diagonal(dim1=-2, dim2=-1).argmax(dim=-1)
    quaternion = torch.gather(candidates, -2, largest[..., None, None].expand(*largest.shape, 1, 4))[..., 0, :]
    quaternion = quaternion / quaternion.norm(dim=-1, keepdim=True)
    return torch.where(quaternion[..., 3:] < 0, -quaternion, quaternion)


def nearest_rotation(matrix: Tensor) -> Tensor:
    """The rotation (…, 3, 3) nearest in the Frobenius norm: U·diag(1, 1, det UVᵀ)·Vᵀ of the singular value
    decomposition.

    In float32 at least, also under autocast.
    """
    with torch.autocast(matrix.device.type, enabled=False):
        u, _, v = torch.linalg.svd(matrix.to(torch.promote_types(matrix.dtype, torch.float32)))
        sign = torch.ones(*matrix.shape[:-1], dtype=u.dtype, device=u.device)
        sign[..., 2] = torch.det(u @ v)
        return (u * sign[..., None, :]) @ v

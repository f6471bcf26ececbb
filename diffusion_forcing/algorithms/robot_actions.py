"""A robot's actions as pictures beside the cameras', or as vectors (METHOD §11).

An action is [x, y, z, qx, qy, qz, qw, grasp]. Position, rotation matrix and grasp, 13 numbers, have their own cells of a 4 × 4 grid, a plane an
action, as large as the pictures; read back, every number is its cells' mean and the matrix the nearest rotation.

    x  y  z  g
    R  R  R  g
    R  R  R  g
    R  R  R  g
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_forcing.errors import UserError

NUMBERS = 13
"""Position (3), rotation matrix (9, row by row), grasp."""
GRID = 4


def matrix_of(quaternion: Tensor) -> Tensor:
    """Rotation matrices (…, 3, 3) of quaternions (…, 4), x y z w, of any length but 0."""
    x, y, z, w = (quaternion / quaternion.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def quaternion_of(matrix: Tensor) -> Tensor:
    """Quaternions (…, 4), x y z w, w ≥ 0, of rotation matrices (…, 3, 3): from the largest of the four that their traces tell."""
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in matrix.unbind(-2))
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
    found = torch.gather(candidates, -2, largest[..., None, None].expand(*largest.shape, 1, 4))[..., 0, :]
    found = found / found.norm(dim=-1, keepdim=True)
    return torch.where(found[..., 3:] < 0, -found, found)


def nearest_rotation(matrix: Tensor) -> Tensor:
    """The rotation (…, 3, 3) nearest to a matrix in the Frobenius norm: U·diag(1, 1, det UVᵀ)·Vᵀ of its singular value decomposition."""
    u, _, v = torch.linalg.svd(matrix)
    sign = torch.ones(*matrix.shape[:-1], dtype=matrix.dtype, device=matrix.device)
    sign[..., 2] = torch.det(u @ v)
    return (u * sign[..., None, :]) @ v


def to_vector(actions: Tensor) -> Tensor:
    """Actions (…, 8) → (…, 13): position, rotation matrix, grasp."""
    if actions.shape[-1] != 8:
        raise UserError(f"an action has 8 numbers (x y z, qx qy qz qw, grasp), got {actions.shape[-1]}")
    turn = matrix_of(actions[..., 3:7]).flatten(-2)
    return torch.cat([actions[..., :3], turn, actions[..., 7:]], dim=-1)


def from_vector(vector: Tensor) -> Tensor:
    """(…, 13) → actions (…, 8): the rotation is the nearest, whatever the nine numbers are."""
    turn = quaternion_of(nearest_rotation(vector[..., 3:12].unflatten(-1, (3, 3))))
    return torch.cat([vector[..., :3], turn, vector[..., 12:]], dim=-1)


def to_planes(vector: Tensor, size: int) -> Tensor:
    """Vectors (…, 13) → planes (…, size, size); size a multiple of 4."""
    _check(size)
    grid = vector.new_empty(*vector.shape[:-1], GRID, GRID)
    grid[..., 0, :3] = vector[..., :3]
    grid[..., 1:, :3] = vector[..., 3:12].unflatten(-1, (3, 3))
    grid[..., 3] = vector[..., 12:]
    return grid.repeat_interleave(size // GRID, dim=-2).repeat_interleave(size // GRID, dim=-1)


def from_planes(planes: Tensor) -> Tensor:
    """Planes (…, size, size) → vectors (…, 13): each number the mean of its cells."""
    size = planes.shape[-1]
    _check(size)
    cell = size // GRID
    grid = planes.unflatten(-1, (GRID, cell)).unflatten(-3, (GRID, cell)).mean(dim=(-3, -1))
    grasp = grid[..., 3].mean(dim=-1, keepdim=True)
    return torch.cat([grid[..., 0, :3], grid[..., 1:, :3].flatten(-2), grasp], dim=-1)


def _check(size: int) -> None:
    if size < GRID or size % GRID:
        raise UserError(f"planes of actions are {size} pixels wide; the resolution must be a multiple of {GRID}")

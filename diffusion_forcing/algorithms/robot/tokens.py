"""How pictures and actions make one token: tiled, everything a picture, as released; or flat, everything a number (docs/method.md §11).

A token's elements fall into parts that can be seen well or badly by themselves: one a camera, and the actions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_forcing.diffusion.noise import integers, uniform
from diffusion_forcing.errors import UserError

# What training does to a robot's pictures, and how a picture that shows nothing is found.


def moved(frames: Tensor, pixels: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Frames (b, t, cameras, 3, h, w), uint8 or in [0, 1], in [0, 1], each sequence's camera moved by up to `pixels` either way, its border
    repeated (a random crop)."""
    pictures = frames.float() / 255 if frames.dtype == torch.uint8 else frames
    if not pixels:
        return pictures
    b, _, cameras, _, h, w = pictures.shape
    padded = F.pad(pictures.flatten(0, 2), (pixels,) * 4, mode="replicate").unflatten(0, pictures.shape[:3])
    offsets = integers(0, 2 * pixels + 1, (b, cameras, 2), generator=generator, device=frames.device)
    found = torch.empty_like(pictures)
    for row in range(b):
        for camera in range(cameras):
            down, across = offsets[row, camera].tolist()
            found[row, :, camera] = padded[row, :, camera, :, down : down + h, across : across + w]
    return found


def jittered(frames: Tensor, amount: float, *, generator: torch.Generator | None = None) -> Tensor:
    """Frames (b, t, cameras, 3, h, w) in [0, 1] with each sequence's camera in another light: contrast about the middle and brightness of each
    colour, within ± amount."""
    if not amount:
        return frames
    shape = (len(frames), 1, frames.shape[2], 3, 1, 1)

    def draw() -> Tensor:
        return amount * (2 * uniform(shape, generator=generator, device=frames.device) - 1)

    contrast, brightness = draw()[:, :, :, :1], draw()
    return ((frames - 0.5) * (1 + contrast) + 0.5 + 0.5 * brightness).clamp(0, 1)


def pasted(frames: Tensor, most: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Frames (b, t, cameras, 3, h, w) in [0, 1], each sequence's camera with up to `most` small rectangles of any colour that stay where they are:
    things that do not belong."""
    if not most:
        return frames
    b, _, cameras, _, h, w = frames.shape
    found = frames.clone()
    draw = uniform((b, cameras, most, 8), generator=generator, device=frames.device)
    for row, camera, number in torch.cartesian_prod(*(torch.arange(n) for n in (b, cameras, most))).tolist():
        there, top, left, tall, wide, *colour = draw[row, camera, number].tolist()
        if there < 0.5:
            tall, wide = 1 + int(tall * h * LARGEST), 1 + int(wide * w * LARGEST)
            top, left = int(top * (h - tall)), int(left * (w - wide))
            patch = found[row, :, camera, :, top : top + tall, left : left + wide]
            patch[:] = torch.tensor(colour, device=frames.device)[:, None, None]
    return found


LARGEST = 0.125
"""Of a picture's side: what is pasted is smaller."""


def blocked(frames: Tensor, contrast: float) -> Tensor:
    """(b, cameras) bool: cameras of frames (b, cameras, 3, h, w), uint8 or in [0, 1], whose pixels deviate from their mean by less than
    `contrast`: they show nothing."""
    pictures = frames.float() / 255 if frames.dtype == torch.uint8 else frames
    return pictures.flatten(3).std(dim=3).mean(dim=2) < contrast


# A robot's actions as pictures beside the cameras', or as vectors (docs/method.md §11).
#
# An action is [x, y, z, qx, qy, qz, qw, grasp]. Position, rotation matrix and grasp, 13 numbers, have their own cells of a 4 × 4 grid, a plane an
# action, as large as the pictures; read back, every number is its cells' mean and the matrix the nearest rotation.
#
#     x  y  z  g
#     R  R  R  g
#     R  R  R  g
#     R  R  R  g

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

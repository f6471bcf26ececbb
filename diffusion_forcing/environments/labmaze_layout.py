"""Layouts of mazes: `labmaze` draws them, a hash decides in which split each is seen, and cells know their neighbours.

A layout is `walls` (9, 9) bool, True where a wall is, with a border of walls around; its free cells are connected. Cell (i, j) is row i, column j.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.environments.labmaze_wad import INSTALL
from diffusion_forcing.errors import UserError

SPLITS = {"training": 0.8, "validation": 0.1, "test": 0.1}
"""Share of all layouts that belong to each split."""

_CELLS = 9
"""Cells along a side of a layout, with the border of walls."""
_MOST_ROOMS = 2
"""More rooms fill the maze and leave few layouts: with four, one maze in eight is the same."""
_ROOM_CELLS = 3
"""Cells along a side of a room."""
_EXTRA_DOORS = 0.3
"""Share of walls between two ways that are opened beyond what connects all: ways round, and fewer dead ends."""

Cell = tuple[int, int]


def draw_walls(rng: np.random.Generator, split: str) -> NDArray[np.bool_]:
    """A random layout (9, 9) of `split`, True where a wall is; its free cells are connected."""
    if split not in SPLITS:
        raise UserError(f"mazes are split in {', '.join(SPLITS)}; got '{split}'")
    try:
        import labmaze
    except ImportError as error:
        raise UserError(f"mazes need the package labmaze: {INSTALL}") from error
    while True:
        maze = labmaze.RandomMaze(
            height=_CELLS,
            width=_CELLS,
            max_rooms=int(rng.integers(1, _MOST_ROOMS + 1)),
            room_min_size=_ROOM_CELLS,
            room_max_size=_ROOM_CELLS,
            extra_connection_probability=_EXTRA_DOORS,
            simplify=False,
            random_seed=int(rng.integers(2**31)),
        )
        walls = np.array([[letter == "*" for letter in row] for row in maze.entity_layer])
        free = np.argwhere(~walls).tolist()
        if split_of(walls) == split and len(distances(walls, (free[0][0], free[0][1]))) == len(free):
            return walls


def split_of(walls: NDArray[np.bool_]) -> str:
    """The split a layout belongs to, the same for all its rotations and mirror images."""
    turned = [np.rot90(side, k) for side in (walls, walls.T) for k in range(4)]
    name = min(np.ascontiguousarray(view).astype(np.uint8).tobytes() for view in turned)
    place = int.from_bytes(hashlib.sha256(name).digest()[:8], "big") / 2**64
    for split, share in SPLITS.items():
        if place < share:
            return split
        place -= share
    return list(SPLITS)[-1]


def distances(walls: NDArray[np.bool_], goal: Cell) -> dict[Cell, int]:
    """Cells to walk to `goal` from every cell that is connected with it."""
    found = {goal: 0}
    queue = deque([goal])
    while queue:
        cell = queue.popleft()
        for neighbour in neighbours(walls, cell):
            if neighbour not in found:
                found[neighbour] = found[cell] + 1
                queue.append(neighbour)
    return found


def neighbours(walls: NDArray[np.bool_], cell: Cell) -> Iterator[Cell]:
    """The free cells beside a cell, north first, then south, west, east."""
    for di, dj in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        if not walls[cell[0] + di, cell[1] + dj]:
            yield cell[0] + di, cell[1] + dj

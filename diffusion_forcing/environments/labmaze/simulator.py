"""Random mazes of DeepMind Lab's kind, seen by an agent that walks through them: a headless simulator for video.

`LabMaze` is the world. A layout is `walls` (9, 9) bool, True for walls, with walls at the border and connected free
cells; cell (i, j) is row i and column j. Three actions move the agent exactly: forward by `STEP`, left and right by
`TURN`, without inertia or chance. `engine.py` only renders.

`LabMazeEpisodes` records an agent that takes shortest paths to random cells. An episode follows from (seed, split,
index) alone. The hash of a layout decides its split, so that no layout occurs in two splits, not even rotated or
mirrored.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.environments.labmaze.engine import CELL, INSTALL, Camera, Pose, build_wad, screen_for
from diffusion_forcing.errors import UserError, check_minimum, require

SPLITS = {"training": 0.8, "validation": 0.1, "test": 0.1}
"""Share of all layouts in each split."""

_CELLS = 9
"""Cells along a side of a layout, border included."""
_MOST_ROOMS = 2
"""More rooms fill the maze and leave few layouts: with four, every eighth maze is the same."""
_ROOM_CELLS = 3
"""Cells along a side of a room."""
_EXTRA_DOORS = 0.3
"""Share of walls between corridors opened beyond those that connect everything: loops, fewer dead ends."""

Cell = tuple[int, int]


def draw_walls(rng: np.random.Generator, split: str) -> NDArray[np.bool_]:
    """A random layout (9, 9) of `split`."""
    require(split in SPLITS, f"split must be one of {', '.join(SPLITS)}, got '{split}'")
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
    """The split of a layout, the same for all its rotations and mirror images."""
    views = [np.rot90(side, k) for side in (walls, walls.T) for k in range(4)]
    name = min(np.ascontiguousarray(view).astype(np.uint8).tobytes() for view in views)
    # A number in [0, 1) that depends on the layout alone falls into the share of one split.
    place = int.from_bytes(hashlib.sha256(name).digest()[:8], "big") / 2**64
    for split, share in SPLITS.items():
        if place < share:
            return split
        place -= share
    return list(SPLITS)[-1]


def distances(walls: NDArray[np.bool_], goal: Cell) -> dict[Cell, int]:
    """Number of cells to walk to `goal` from every cell connected with it."""
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


FORWARD, LEFT, RIGHT = range(3)
STEP = 24.0
"""Map units of a forward action: 5⅓ actions cross a cell."""
TURN = 15
"""Degrees of a turn."""
VERSION = 2
"""Raised whenever the same seed gives other bytes."""

_RADIUS = 16.0
"""Half the width of the agent, in map units."""
_ALIGNED = 12.0
"""Degrees off the direction to the next cell within which the walker goes forward."""


@dataclass(frozen=True, kw_only=True)
class LabMazeEpisodes:
    """Episodes of `frames` frames of `size` × `size`; their bytes follow from `seed`, split and index. Picklable."""

    seed: int = 0
    frames: int = 300
    size: int = 64

    def __post_init__(self) -> None:
        check_minimum("generate_seed", self.seed, 0)
        check_minimum("episode_frames", self.frames, 2)
        screen_for(self.size)

    @property
    def recipe(self) -> dict[str, str | int]:
        """Everything that determines the bytes."""
        return {"simulator": "labmaze", "version": VERSION, **asdict(self)}

    def make(self, split: str, index: int) -> dict[str, NDArray[Any]]:
        """Episode `index` of `split` (training, validation, test).

        video (frames, size, size, 3) uint8; actions (frames,) int64, actions[t] follows frame t; pose (frames, 3)
        float32 as in `Pose`; walls (9, 9) bool; seed ().
        """
        rng = np.random.default_rng([self.seed, list(SPLITS).index(split), index])
        walls = draw_walls(rng, split)
        video = np.empty((self.frames, self.size, self.size, 3), np.uint8)
        actions = np.empty(self.frames, np.int64)
        poses = np.empty((self.frames, 3), np.float32)
        with LabMaze(walls, rng, size=self.size) as world:
            walker = Walker(walls, rng)
            video[0] = world.reset()
            for t in range(self.frames):
                poses[t] = world.pose
                actions[t] = walker.act(world.pose)
                if t + 1 < self.frames:
                    video[t + 1] = world.step(int(actions[t]))
        return {"video": video, "actions": actions, "pose": poses, "walls": walls, "seed": np.array(self.seed)}

    def close(self) -> None:
        """Nothing stays open between episodes."""


class LabMaze:
    """One maze and an agent in it. `reset` places it, `step` moves it; both return (size, size, 3) uint8."""

    def __init__(self, walls: NDArray[np.bool_], rng: np.random.Generator, *, size: int = 64) -> None:
        self.walls = walls
        self.size = size
        self.pose: Pose = draw_pose(walls, rng)
        self._wad = build_wad(walls, rng)
        self._camera: Camera | None = None

    @classmethod
    def random(cls, seed: int, *, split: str = "test", size: int = 64) -> LabMaze:
        """The maze of `split` that follows from `seed`; those of the test split never occur in training."""
        rng = np.random.default_rng(seed)
        return cls(draw_walls(rng, split), rng, size=size)

    def __enter__(self) -> LabMaze:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reset(self, pose: Pose | None = None) -> NDArray[np.uint8]:
        """Place the agent at `pose`, or leave it where it is, and render."""
        if self._camera is None:
            self._camera = Camera(self._wad, self.size)
        self.pose = self.pose if pose is None else pose
        return self._camera.look(self.pose)

    def step(self, action: int) -> NDArray[np.uint8]:
        """Do `action` (0 forward, 1 left, 2 right) and render. The agent slides along walls."""
        if self._camera is None:
            raise UserError("reset a LabMaze before its first step")
        self.pose = move(self.walls, self.pose, action)
        return self._camera.look(self.pose)

    def close(self) -> None:
        """Stop the engine; `reset` starts it again."""
        if self._camera is not None:
            self._camera.close()
            self._camera = None


class Walker:
    """Walks shortest paths to random cells, one after the other."""

    def __init__(self, walls: NDArray[np.bool_], rng: np.random.Generator) -> None:
        self._walls, self._rng = walls, rng
        self._distances: dict[Cell, int] = {}

    def act(self, pose: Pose) -> int:
        """The next action at `pose`."""
        x, y, heading = pose
        here = cell_of(x, y)
        if self._distances.get(here, 0) == 0:  # at the goal: draw the next
            cells = [cell for cell in sorted(distances(self._walls, here)) if cell != here]
            self._distances = distances(self._walls, cells[self._rng.integers(len(cells))])
        target = min(neighbours(self._walls, here), key=self._distances.__getitem__)
        # Turn towards the neighbour that is nearer to the goal, then go.
        to_x, to_y = centre(target)
        off = (math.degrees(math.atan2(to_y - y, to_x - x)) - heading + 180) % 360 - 180
        return LEFT if off > _ALIGNED else RIGHT if off < -_ALIGNED else FORWARD


def draw_pose(walls: NDArray[np.bool_], rng: np.random.Generator) -> Pose:
    """A random position in a random free cell, away from its walls, and a heading that turns can reach."""
    free = np.argwhere(~walls)
    i, j = free[rng.integers(len(free))].tolist()
    x, y = centre((i, j))
    dx, dy = rng.uniform(-CELL / 4, CELL / 4, size=2).tolist()
    return x + dx, y + dy, TURN * int(rng.integers(360 // TURN))


def move(walls: NDArray[np.bool_], pose: Pose, action: int) -> Pose:
    """The pose after `action`."""
    x, y, heading = pose
    if action == LEFT:
        return x, y, (heading + TURN) % 360
    if action == RIGHT:
        return x, y, (heading - TURN) % 360
    require(action == FORWARD, f"action must be 0 (forward), 1 (left) or 2 (right), got {action}")
    to_x = x + STEP * math.cos(math.radians(heading))
    to_y = y + STEP * math.sin(math.radians(heading))
    # Each axis on its own, so that the agent slides along a wall.
    x = to_x if _is_free(walls, to_x, y) else x
    y = to_y if _is_free(walls, x, to_y) else y
    return x, y, heading


def cell_of(x: float, y: float) -> Cell:
    """The cell (i, j) of a position."""
    return int(-y // CELL), int(x // CELL)


def centre(cell: Cell) -> tuple[float, float]:
    """The centre (x, y) of a cell."""
    return (cell[1] + 0.5) * CELL, -(cell[0] + 0.5) * CELL


def _is_free(walls: NDArray[np.bool_], x: float, y: float) -> bool:
    """Whether an agent at (x, y) touches no wall."""
    return not any(walls[cell_of(x + dx, y + dy)] for dx in (-_RADIUS, _RADIUS) for dy in (-_RADIUS, _RADIUS))

"""Random mazes of DeepMind Lab's kind, seen through the eyes of an agent that walks them: a simulator for video, headless.

`LabMaze` is the world: a layout (`labmaze_layout.py`) as a level of Doom (`labmaze_wad.py`) painted by ViZDoom (`labmaze_engine.py`). Its three
actions move exactly, forward by `STEP`, left and right by `TURN`: where the agent is, is decided here, with no inertia and no chance in it.
`LabMazeEpisodes` makes films of an agent that takes shortest paths to random cells. An episode follows from (seed, split, index) alone, and no
layout, not even turned or mirrored, occurs in two splits: a layout's hash decides where it belongs.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.environments.labmaze.engine import CELL, INSTALL, Camera, Pose, build_wad, screen_for
from diffusion_forcing.errors import UserError

# Layouts of mazes: `labmaze` draws them, a hash decides in which split each is seen, and cells know their neighbours.
#
# A layout is `walls` (9, 9) bool, True where a wall is, with a border of walls around; its free cells are connected. Cell (i, j) is row i, column j.

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


FORWARD, LEFT, RIGHT = range(3)
STEP = 24.0
"""Map units a forward action moves: 5⅓ actions a cell."""
TURN = 15
"""Degrees a turn moves."""
VERSION = 2
"""Raised whenever the same seed would give other bytes."""

_RADIUS = 16.0
"""Half the width of the agent's body."""
_ALIGNED = 12.0
"""Degrees off the way at which the walker stops turning."""


@dataclass(frozen=True, kw_only=True)
class LabMazeEpisodes:
    """Episodes of `frames` pictures of `size` × `size`. Picklable; the bytes of one follow from `seed`, its split and its index."""

    seed: int = 0
    frames: int = 300
    size: int = 64

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"generate_seed must be at least 0, got {self.seed}")
        if self.frames < 2:
            raise UserError(f"episode_frames must be at least 2, got {self.frames}")
        screen_for(self.size)

    @property
    def recipe(self) -> dict[str, str | int]:
        """All that decides the bytes."""
        return {"simulator": "labmaze", "version": VERSION, **asdict(self)}

    def make(self, split: str, index: int) -> dict[str, NDArray[Any]]:
        """Episode `index` of `split` (training, validation, test).

        video (frames, size, size, 3) uint8; actions (frames,) int64, actions[t] follows frame t; pose (frames, 3) float32 as in `Pose`;
        walls (9, 9) bool; seed ().
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
        """Nothing stays open between two episodes."""


class LabMaze:
    """One maze and an agent in it: `reset` puts it somewhere, `step` moves it; both return the frame (size, size, 3) uint8. Use it with `with`."""

    def __init__(self, walls: NDArray[np.bool_], rng: np.random.Generator, *, size: int = 64) -> None:
        self.walls = walls
        self.size = size
        self.pose: Pose = draw_pose(walls, rng)
        self._wad = build_wad(walls, rng)
        self._camera: Camera | None = None

    @classmethod
    def random(cls, seed: int, *, split: str = "test", size: int = 64) -> LabMaze:
        """A maze of `split` that follows from `seed`; those of the test split were never seen in training."""
        rng = np.random.default_rng(seed)
        return cls(draw_walls(rng, split), rng, size=size)

    def __enter__(self) -> LabMaze:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def reset(self, pose: Pose | None = None) -> NDArray[np.uint8]:
        """Go to `pose`, or stay where the agent is, and look."""
        if self._camera is None:
            self._camera = Camera(self._wad, self.size)
        self.pose = self.pose if pose is None else pose
        return self._camera.look(self.pose)

    def step(self, action: int) -> NDArray[np.uint8]:
        """Do `action` (0 forward, 1 left, 2 right) and look. Along a wall the agent slides."""
        if self._camera is None:
            raise UserError("reset a LabMaze before its first step")
        self.pose = move(self.walls, self.pose, action)
        return self._camera.look(self.pose)

    def close(self) -> None:
        """End the engine; `reset` starts it again."""
        if self._camera is not None:
            self._camera.close()
            self._camera = None


class Walker:
    """Takes shortest paths to random cells, one after the other."""

    def __init__(self, walls: NDArray[np.bool_], rng: np.random.Generator) -> None:
        self._walls, self._rng = walls, rng
        self._distances: dict[Cell, int] = {}

    def act(self, pose: Pose) -> int:
        """The next action at `pose`."""
        x, y, heading = pose
        here = cell_of(x, y)
        if self._distances.get(here, 0) == 0:
            cells = [cell for cell in sorted(distances(self._walls, here)) if cell != here]
            self._distances = distances(self._walls, cells[self._rng.integers(len(cells))])
        target = min(neighbours(self._walls, here), key=self._distances.__getitem__)
        to_x, to_y = centre(target)
        off = (math.degrees(math.atan2(to_y - y, to_x - x)) - heading + 180) % 360 - 180
        return LEFT if off > _ALIGNED else RIGHT if off < -_ALIGNED else FORWARD


def draw_pose(walls: NDArray[np.bool_], rng: np.random.Generator) -> Pose:
    """A random place in a random free cell, off its walls, and a heading the turns can reach."""
    free = np.argwhere(~walls)
    i, j = free[rng.integers(len(free))].tolist()
    x, y = centre((i, j))
    dx, dy = rng.uniform(-CELL / 4, CELL / 4, size=2).tolist()
    return x + dx, y + dy, TURN * int(rng.integers(360 // TURN))


def move(walls: NDArray[np.bool_], pose: Pose, action: int) -> Pose:
    """Where `action` leads from `pose`."""
    x, y, heading = pose
    if action == LEFT:
        return x, y, (heading + TURN) % 360
    if action == RIGHT:
        return x, y, (heading - TURN) % 360
    if action != FORWARD:
        raise UserError(f"action must be 0 (forward), 1 (left) or 2 (right), got {action}")
    to_x = x + STEP * math.cos(math.radians(heading))
    to_y = y + STEP * math.sin(math.radians(heading))
    x = to_x if _is_free(walls, to_x, y) else x
    y = to_y if _is_free(walls, x, to_y) else y
    return x, y, heading


def cell_of(x: float, y: float) -> Cell:
    """The cell (i, j) a place is in."""
    return int(-y // CELL), int(x // CELL)


def centre(cell: Cell) -> tuple[float, float]:
    """The middle (x, y) of a cell."""
    return (cell[1] + 0.5) * CELL, -(cell[0] + 0.5) * CELL


def _is_free(walls: NDArray[np.bool_], x: float, y: float) -> bool:
    """Whether a body at (x, y) touches no wall."""
    return not any(walls[cell_of(x + dx, y + dy)] for dx in (-_RADIUS, _RADIUS) for dy in (-_RADIUS, _RADIUS))

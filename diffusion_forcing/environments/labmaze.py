"""Random mazes of DeepMind Lab's kind, seen through the eyes of an agent that walks them: a simulator for video, headless.

`LabMaze` is the world: layouts of `labmaze`, drawn by the engine of ViZDoom (see `labmaze_wad.py`), three actions that move exactly: forward by
`STEP`, left and right by `TURN`. The engine only paints: where the agent is, is decided here, so a step has no inertia and no chance in it.
`LabMazeEpisodes` makes films of an agent that takes shortest paths to random cells. An episode follows from (seed, split, index) alone, and no
layout, not even turned or mirrored, occurs in two splits: a layout's hash decides where it belongs.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.environments.labmaze_wad import CELL, INSTALL, build_wad
from diffusion_forcing.errors import UserError

FORWARD, LEFT, RIGHT = range(3)
STEP = 24.0
"""Map units a forward action moves: 5⅓ actions a cell."""
TURN = 15
"""Degrees a turn moves."""
SPLITS = {"training": 0.8, "validation": 0.1, "test": 0.1}
"""Share of all layouts that belong to each split."""
VERSION = 1
"""Raised whenever the same seed would give other bytes."""

_CELLS = 9
"""Cells along a side of a layout, with the border of walls."""
_FEWEST_CELLS = 20
"""Free cells of a layout, at least; the generator also makes single rooms of nine."""
_RADIUS = 16.0
"""Half the width of the agent's body."""
_FOV = 106.26
"""Degrees across the engine's 4:3 picture, which are 90 across the square in its middle."""
_SCREENS = ((160, 120), (256, 192), (320, 240), (400, 300), (512, 384), (640, 480), (800, 600), (1024, 768))
_OVERSAMPLING = 3
"""Pixels painted along a pixel's side, at least: their mean is the picture, or far walls would flicker."""
_WAKE_TICS = 10
"""Tics in which the engine does not obey at the start of a level."""
_ALIGNED = 12.0
"""Degrees off the way at which the walker stops turning."""

Cell = tuple[int, int]
Pose = tuple[float, float, int]
"""x, y in map units and the heading in degrees, anticlockwise from east."""


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
        _screen(self.size)

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
            video[0] = world.reset(draw_pose(walls, rng))
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
        self._engine: _Engine | None = None

    def __enter__(self) -> LabMaze:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def reset(self, pose: Pose | None = None) -> NDArray[np.uint8]:
        """Go to `pose`, or stay where the agent is, and look."""
        if self._engine is None:
            self._engine = _Engine(self._wad, self.size)
        self.pose = self.pose if pose is None else pose
        return self._engine.look(self.pose, self.size)

    def step(self, action: int) -> NDArray[np.uint8]:
        """Do `action` (0 forward, 1 left, 2 right) and look. Along a wall the agent slides."""
        if self._engine is None:
            raise UserError("reset a LabMaze before its first step")
        self.pose = move(self.walls, self.pose, action)
        return self._engine.look(self.pose, self.size)

    def close(self) -> None:
        """End the engine; `reset` starts it again."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None


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
        target = min(_neighbours(self._walls, here), key=self._distances.__getitem__)
        to_x, to_y = centre(target)
        off = (math.degrees(math.atan2(to_y - y, to_x - x)) - heading + 180) % 360 - 180
        return LEFT if off > _ALIGNED else RIGHT if off < -_ALIGNED else FORWARD


def draw_walls(rng: np.random.Generator, split: str) -> NDArray[np.bool_]:
    """A random layout (9, 9) of `split`, True where a wall is; its free cells are connected."""
    try:
        import labmaze
    except ImportError as error:
        raise UserError(f"mazes need the package labmaze: {INSTALL}") from error
    while True:
        maze = labmaze.RandomMaze(
            height=_CELLS,
            width=_CELLS,
            max_rooms=4,
            room_min_size=3,
            room_max_size=3,
            extra_connection_probability=0.1,
            simplify=True,
            random_seed=int(rng.integers(2**31)),
        )
        walls = np.array([[letter == "*" for letter in row] for row in maze.entity_layer])
        free = np.argwhere(~walls).tolist()
        if (
            len(free) >= _FEWEST_CELLS
            and split_of(walls) == split
            and len(distances(walls, (free[0][0], free[0][1]))) == len(free)
        ):
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


def distances(walls: NDArray[np.bool_], goal: Cell) -> dict[Cell, int]:
    """Cells to walk to `goal` from every cell that is connected with it."""
    found = {goal: 0}
    queue = deque([goal])
    while queue:
        cell = queue.popleft()
        for neighbour in _neighbours(walls, cell):
            if neighbour not in found:
                found[neighbour] = found[cell] + 1
                queue.append(neighbour)
    return found


def _neighbours(walls: NDArray[np.bool_], cell: Cell) -> Iterator[Cell]:
    for di, dj in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        if not walls[cell[0] + di, cell[1] + dj]:
            yield cell[0] + di, cell[1] + dj


def _is_free(walls: NDArray[np.bool_], x: float, y: float) -> bool:
    """Whether a body at (x, y) touches no wall."""
    return not any(walls[cell_of(x + dx, y + dy)] for dx in (-_RADIUS, _RADIUS) for dy in (-_RADIUS, _RADIUS))


def _screen(size: int) -> tuple[int, int]:
    """The smallest screen of the engine whose pixels make frames of `size`."""
    for width, height in _SCREENS:
        if size >= 1 and height % size == 0 and height // size >= _OVERSAMPLING:
            return width, height
    sizes = sorted({height // k for _, height in _SCREENS for k in range(3, 7) if height % k == 0})
    raise UserError(f"resolution {size} cannot be painted; choose one of {', '.join(map(str, sizes))}")


class _Engine:
    """ViZDoom with a level loaded, awake, seeing 90 degrees. Its files lie in a temporary folder, never where the user stands."""

    def __init__(self, wad: bytes, size: int) -> None:
        try:
            import vizdoom
        except ImportError as error:
            raise UserError(f"painting mazes needs the package vizdoom: {INSTALL}") from error
        self._folder = tempfile.TemporaryDirectory(prefix="labmaze-")
        level = Path(self._folder.name, "maze.wad")
        level.write_bytes(wad)
        width, height = _screen(size)
        self.game = game = vizdoom.DoomGame()
        game.set_doom_config_path(str(level.with_name("engine.ini")))
        game.set_doom_game_path(str(Path(vizdoom.__file__).parent / "freedoom2.wad"))
        game.set_doom_scenario_path(str(level))
        game.set_doom_map("MAP01")
        game.set_screen_resolution(getattr(vizdoom.ScreenResolution, f"RES_{width}X{height}"))
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_window_visible(False)
        game.set_sound_enabled(False)
        for hide in (game.set_render_hud, game.set_render_weapon, game.set_render_crosshair, game.set_render_messages):
            hide(False)
        game.set_available_buttons([vizdoom.Button.TURN_LEFT_RIGHT_DELTA])
        self._angle = vizdoom.GameVariable.ANGLE
        game.set_mode(vizdoom.Mode.PLAYER)
        game.set_episode_timeout(0)
        game.set_seed(1)
        game.add_game_args("+sv_cheats 1 +movebob 0 +stillbob 0")
        try:
            with _standing_in(self._folder.name):
                game.init()
        except vizdoom.ViZDoomErrorException as error:
            self.close()
            raise UserError(f"the engine of vizdoom did not start: {str(error).splitlines()[0]}") from error
        game.send_game_command(f"fov {_FOV}")
        game.make_action([0], _WAKE_TICS)

    def look(self, pose: Pose, size: int) -> NDArray[np.uint8]:
        """What is seen from `pose`: (size, size, 3), each pixel the mean of a block of the middle square of the screen."""
        x, y, heading = pose
        turn = (heading - self.game.get_game_variable(self._angle) + 180) % 360 - 180
        self.game.send_game_command(f"warp {round(x)} {round(y)}")
        self.game.make_action([-turn], 1)
        screen = self.game.get_state().screen_buffer
        height, width, _ = screen.shape
        edge, block = (width - height) // 2, height // size
        square = screen[:, edge : width - edge].reshape(size, block, size, block, 3)
        total = np.zeros((size, size, 3), np.uint16)
        for i in range(block):
            for j in range(block):
                total += square[:, i, :, j]
        frame: NDArray[np.uint8] = ((total + block**2 // 2) // block**2).astype(np.uint8)
        return frame

    def close(self) -> None:
        self.game.close()
        self._folder.cleanup()


@contextmanager
def _standing_in(folder: str) -> Iterator[None]:
    """The engine leaves a folder `_vizdoom` where its process was started: let that be `folder`."""
    before = os.open(".", os.O_RDONLY)
    os.chdir(folder)
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)

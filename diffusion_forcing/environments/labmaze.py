"""Random mazes of DeepMind Lab's kind, rendered by ViZDoom: a simulator for video."""

from __future__ import annotations

import hashlib
import io
import math
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.environments.mazes.layout import Cell, breadth_first
from diffusion_forcing.errors import UserError, check_minimum, require

# ------------------------------------------------------------------------------------------------------------ rendering
# Mazes of DeepMind Lab's look, rendered by ViZDoom: a layout as a level of Doom, and a camera in it.
#
# Layouts and textures come from the package `labmaze`, DeepMind Lab's own maze generator with the textures of its five
# styles. A level is one WAD file: a UDMF map of one sector (the engine builds the nodes itself), textures, sky and
# palette. Cell (i, j) of the layout covers x in [j, j + 1] and y in [-i - 1, -i], in units of `CELL`; y points up. Every
# wall draws one of three textures, mostly the maze's main one, so that places differ and can be remembered.
#
# ViZDoom only renders; it decides nothing. The agent is placed with the engine's `warp`, which takes whole map units, and
# turned to its heading. A square of 90 degrees is cut from the middle of the screen, and blocks of its pixels are
# averaged.

CELL = 128
"""Side of a cell in map units; the eye is 41 units above the floor."""
_HEIGHT = 96
"""Height of the walls in map units, below the sky."""
_MAIN_SHARE = 0.75
"""Share of the walls with the maze's main texture; the others draw any of its textures."""
_WALL_TEXTURES = 3
_SIZES = {"DLW": (128, 128), "DLF": (64, 64), "DLS": (256, 256)}
"""Pixels of wall, floor and sky textures; a pixel is one map unit."""
_STYLES = 5
_SKIES = 3
_SIDES = ((-1, 0), (0, 1), (1, 0), (0, -1))
"""Neighbours (di, dj) clockwise, as the sides of a cell follow each other from its north-west corner."""
INSTALL = "it comes with the extra 'video': pip install 'diffusion-forcing[video]' (labmaze: up to Python 3.12)"


def build_wad(walls: NDArray[np.bool_], rng: np.random.Generator) -> bytes:
    """The level MAP01 of `walls` (h, w), walls at the border included; `rng` draws style, textures and sky."""
    textures = _draw_textures(rng)
    colours = _palette(textures)
    # Doom has 13 further palettes to tint the screen with; a maze never shows them.
    lumps = [("PLAYPAL", colours.tobytes() * 14), ("COLORMAP", _shades(colours).tobytes())]
    lumps += [("MAP01", b""), ("TEXTMAP", _text_map(walls, rng).encode())]
    lumps += [("ENDMAP", b""), ("MAPINFO", b'map MAP01 "maze" { sky1 = "DLS0", 0 }\n'), ("TX_START", b"")]
    lumps += [(name, _png(texture)) for name, texture in textures.items()]
    lumps += [("TX_END", b"")]
    return _pack(lumps)


def _pack(lumps: list[tuple[str, bytes]]) -> bytes:
    """A WAD file: header, lumps, and the directory of their offsets, sizes and names."""
    header = 12
    data = b"".join(content for _, content in lumps)
    directory, place = b"", header
    for name, content in lumps:
        directory += struct.pack("<ii8s", place, len(content), name.encode())
        place += len(content)
    return struct.pack("<4sii", b"PWAD", len(lumps), place) + data + directory


def _text_map(walls: NDArray[np.bool_], rng: np.random.Generator) -> str:
    """The map as UDMF: a one-sided line for each side of a free cell at a wall, the sector to its right."""
    vertices: dict[tuple[int, int], int] = {}
    lines: list[str] = []
    sides: list[str] = []
    main = rng.integers(_WALL_TEXTURES)
    for i, j in np.argwhere(~walls).tolist():
        west, north, east, south = j * CELL, -i * CELL, (j + 1) * CELL, (-i - 1) * CELL
        corners = [(west, north), (east, north), (east, south), (west, south)]
        for side, (di, dj) in enumerate(_SIDES):
            if not walls[i + di, j + dj]:
                continue
            first, second = (
                vertices.setdefault(corner, len(vertices)) for corner in (corners[side], corners[(side + 1) % 4])
            )
            texture = main if rng.random() < _MAIN_SHARE else rng.integers(_WALL_TEXTURES)
            lines.append(f"linedef{{v1={first};v2={second};sidefront={len(sides)};blocking=true;}}")
            sides.append(f'sidedef{{sector=0;texturemiddle="DLW{texture}";}}')
    i, j = np.argwhere(~walls)[0].tolist()
    levels = "".join(f"skill{skill}=true;" for skill in range(1, 6))
    start = f"thing{{x={j * CELL + CELL // 2};y={-i * CELL - CELL // 2};type=1;{levels}single=true;}}"
    points = [f"vertex{{x={x};y={y};}}" for x, y in vertices]
    sector = (
        f'sector{{heightfloor=0;heightceiling={_HEIGHT};texturefloor="DLF0";textureceiling="F_SKY1";lightlevel=224;}}'
    )
    return "\n".join(['namespace="ZDoom";', start, *points, *lines, *sides, sector])


def _draw_textures(rng: np.random.Generator) -> dict[str, NDArray[np.uint8]]:
    """Three wall textures and a floor of one style, and a sky: (h, w, 3) uint8 by lump name."""
    try:
        import PIL  # noqa: F401
        from labmaze import assets
    except ImportError as error:
        raise UserError(f"mazes need the package {error.name}: {INSTALL}") from error
    folder = Path(assets.__file__).parent
    style = folder / f"style_{rng.integers(1, _STYLES + 1):02d}"
    walls, floors = (sorted(style.glob(f"{kind}_*_d.png")) for kind in ("wall", "floor"))
    chosen = [walls[k] for k in rng.permutation(len(walls))[:_WALL_TEXTURES]]
    files = {f"DLW{k}": file for k, file in enumerate(chosen)}
    files |= {
        "DLF0": floors[rng.integers(len(floors))],
        "DLS0": folder / f"sky_{rng.integers(1, _SKIES + 1):02d}/ft.png",
    }
    return {name: _texture(file, _SIZES[name[:3]]) for name, file in files.items()}


@lru_cache(maxsize=100)
def _texture(file: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    from PIL import Image

    texture = np.asarray(Image.open(file).convert("RGBA").convert("RGB").resize(size, Image.Resampling.BOX))
    texture.flags.writeable = False
    return texture


def _palette(textures: dict[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """(256, 3) colours for the textures and their shades, the only ones Doom paints with; the first is black."""
    from PIL import Image

    pixels = np.concatenate([texture.reshape(-1, 64, 3) for texture in textures.values()])
    shaded = np.concatenate([(pixels * shade).astype(np.uint8) for shade in (1.0, 0.8, 0.6)])
    chosen = Image.fromarray(shaded).quantize(255, method=Image.Quantize.MEDIANCUT).getpalette()
    assert chosen is not None
    colours = np.zeros((256, 3), np.uint8)
    colours[1 : 1 + len(chosen) // 3] = np.array(chosen, np.uint8).reshape(-1, 3)[:255]
    return colours


def _shades(colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(34, 256) the colour that replaces each colour in the dark: 32 rows, darker and darker, and two unused."""
    palette = colours.astype(np.float64)
    shades = palette * (1 - np.arange(32) / 32)[:, None, None]  # (32, 256, 3)
    # Squared distances without the common term. All numbers are exact, so every machine chooses the same colours.
    nearest = ((palette**2).sum(axis=1) - 2 * shades @ palette.T).argmin(axis=2)
    return np.concatenate([nearest, nearest[:1], nearest[:1]]).astype(np.uint8)


def _png(image: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


Pose = tuple[float, float, int]
"""x, y in map units and the heading in degrees, anticlockwise from east."""

_FOV = 106.26
"""Horizontal field of view of the 4:3 screen in degrees; the square in its middle has 90."""
_SCREENS = ((160, 120), (256, 192), (320, 240), (400, 300), (512, 384), (640, 480), (800, 600), (1024, 768))
_BLOCKS = range(3, 17)
"""Screen pixels along the side of a frame's pixel: with fewer, distant walls flicker; with more, the sums overflow."""
_WAKE_TICS = 10
"""Tics at the start of a level in which the engine ignores commands."""


def screen_for(size: int) -> tuple[int, int]:
    """(width, height) of the smallest screen that averages to frames of `size`. `UserError` if there is none."""
    for width, height in _SCREENS:
        if size >= 1 and height % size == 0 and height // size in _BLOCKS:
            return width, height
    sizes = sorted({height // k for _, height in _SCREENS for k in range(3, 7) if height % k == 0})
    raise UserError(f"resolution {size} cannot be rendered; choose one of {', '.join(map(str, sizes))}")


class Camera:
    """The engine, in a process of its own, with the level `wad`; renders frames of `size` × `size`. Close it when done.

    Its files are in a temporary folder, never in the working directory.
    """

    def __init__(self, wad: bytes, size: int) -> None:
        width, height = screen_for(size)
        try:
            import vizdoom
        except ImportError as error:
            raise UserError(f"rendering mazes needs the package vizdoom: {INSTALL}") from error
        self._folder = tempfile.TemporaryDirectory(prefix="labmaze-")
        level = Path(self._folder.name, "maze.wad")
        level.write_bytes(wad)
        self.size = size
        self._angle = vizdoom.GameVariable.ANGLE
        self._game = game = vizdoom.DoomGame()
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
        game.set_mode(vizdoom.Mode.PLAYER)
        game.set_episode_timeout(0)
        game.set_seed(1)
        game.add_game_args("+sv_cheats 1 +movebob 0 +stillbob 0")
        try:
            with _working_directory(self._folder.name):
                game.init()
        except (vizdoom.ViZDoomErrorException, vizdoom.ViZDoomUnexpectedExitException) as error:
            self.close()
            raise UserError(f"the engine of vizdoom did not start: {str(error).splitlines()[0]}") from error
        game.send_game_command(f"fov {_FOV}")
        game.make_action([0], _WAKE_TICS)

    def look(self, pose: Pose) -> NDArray[np.uint8]:
        """(size, size, 3) the view from `pose`; each pixel is the mean of a block of the screen's middle square."""
        x, y, heading = pose
        size = self.size
        turn = (heading - self._game.get_game_variable(self._angle) + 180) % 360 - 180
        self._game.send_game_command(f"warp {round(x)} {round(y)}")
        self._game.make_action([-turn], 1)
        # The middle square of the screen, in blocks (size, block, size, block, 3).
        screen = self._game.get_state().screen_buffer
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
        """End the engine and remove its folder."""
        self._game.close()
        self._folder.cleanup()


@contextmanager
def _working_directory(folder: str) -> Iterator[None]:
    """Work in `folder` inside the block: the engine leaves a folder `_vizdoom` in the directory it is started from."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


# ------------------------------------------------------------------------------------------------------------ the world
# Random mazes of DeepMind Lab's kind, seen by an agent that walks through them: a headless simulator for video.
#
# `LabMaze` is the world. A layout is `walls` (9, 9) bool, True for walls, with walls at the border and connected free
# cells; cell (i, j) is row i and column j. Three actions move the agent exactly: forward by `STEP`, left and right by
# `TURN`, without inertia or chance. ViZDoom only renders.
#
# `LabMazeEpisodes` records an agent that takes shortest paths to random cells. An episode follows from (seed, split,
# index) alone. The hash of a layout decides its split, so that no layout occurs in two splits, not even rotated or
# mirrored.

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
        i, j = np.argwhere(~walls)[0].tolist()
        is_connected = bool((walls | (breadth_first(walls, (i, j)) >= 0)).all())
        if is_connected and split_of(walls) == split:
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


FORWARD, LEFT, RIGHT = range(3)
STEP = 24.0
"""Map units of a forward action: 5⅓ actions cross a cell."""
TURN = 15
"""Degrees of a turn."""
VERSION = 2
"""Raised whenever the same seed gives other bytes."""

_RADIUS = 16.0
"""Half the width of the agent, in map units."""
_MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""To the neighbours of a cell, in the order in which the walker prefers them."""
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
        self._distances = np.zeros(walls.shape, np.int32)

    def act(self, pose: Pose) -> int:
        """The next action at `pose`."""
        x, y, heading = pose
        here = cell_of(x, y)
        if self._distances[here] == 0:  # at the goal: draw the next
            cells = np.argwhere(breadth_first(self._walls, here) > 0).tolist()
            i, j = cells[self._rng.integers(len(cells))]
            self._distances = breadth_first(self._walls, (i, j))
        near = [(here[0] + di, here[1] + dj) for di, dj in _MOVES]
        target = min((cell for cell in near if not self._walls[cell]), key=self._distances.__getitem__)
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

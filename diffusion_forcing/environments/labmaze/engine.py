"""Mazes of DeepMind Lab's look, rendered by ViZDoom: a layout as a level of Doom, and a camera in it.

Layouts and textures come from the package `labmaze`, DeepMind Lab's own maze generator with the textures of its five
styles. A level is one WAD file: a UDMF map of one sector (the engine builds the nodes itself), textures, sky and
palette. Cell (i, j) of the layout covers x in [j, j + 1] and y in [-i - 1, -i], in units of `CELL`; y points up. Every
wall draws one of three textures, mostly the maze's main one, so that places differ and can be remembered.

ViZDoom only renders; it decides nothing. The agent is placed with the engine's `warp`, which takes whole map units, and
turned to its heading. A square of 90 degrees is cut from the middle of the screen, and blocks of its pixels are
averaged.
"""

from __future__ import annotations

import io
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.errors import UserError

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

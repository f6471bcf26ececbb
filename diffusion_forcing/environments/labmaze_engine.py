"""ViZDoom as a camera: it paints what is seen from a pose in a level, and decides nothing.

The agent is put where it should stand with the engine's `warp`, which knows whole map units, and turned by what its heading lacks. A square of 90
degrees is cut from the middle of the screen, and blocks of its pixels are averaged.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.environments.labmaze_wad import INSTALL
from diffusion_forcing.errors import UserError

Pose = tuple[float, float, int]
"""x, y in map units and the heading in degrees, anticlockwise from east."""

_FOV = 106.26
"""Degrees across the engine's 4:3 picture, which are 90 across the square in its middle."""
_SCREENS = ((160, 120), (256, 192), (320, 240), (400, 300), (512, 384), (640, 480), (800, 600), (1024, 768))
_BLOCKS = range(3, 17)
"""Pixels painted along the side of a frame's pixel: with fewer far walls would flicker, with more the sums would overflow."""
_WAKE_TICS = 10
"""Tics in which the engine does not obey at the start of a level."""


def screen_for(size: int) -> tuple[int, int]:
    """The smallest screen of the engine whose pixels make frames of `size`."""
    for width, height in _SCREENS:
        if size >= 1 and height % size == 0 and height // size in _BLOCKS:
            return width, height
    sizes = sorted({height // k for _, height in _SCREENS for k in range(3, 7) if height % k == 0})
    raise UserError(f"resolution {size} cannot be painted; choose one of {', '.join(map(str, sizes))}")


class Camera:
    """The engine in a process of its own with the level `wad` loaded, for frames of `size` × `size`.

    Its files lie in a temporary folder, never where the user stands. Close it when done.
    """

    def __init__(self, wad: bytes, size: int) -> None:
        width, height = screen_for(size)
        try:
            import vizdoom
        except ImportError as error:
            raise UserError(f"painting mazes needs the package vizdoom: {INSTALL}") from error
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
            with _standing_in(self._folder.name):
                game.init()
        except (vizdoom.ViZDoomErrorException, vizdoom.ViZDoomUnexpectedExitException) as error:
            self.close()
            raise UserError(f"the engine of vizdoom did not start: {str(error).splitlines()[0]}") from error
        game.send_game_command(f"fov {_FOV}")
        game.make_action([0], _WAKE_TICS)

    def look(self, pose: Pose) -> NDArray[np.uint8]:
        """What is seen from `pose`: (size, size, 3), each pixel the mean of a block of the middle square of the screen."""
        x, y, heading = pose
        size = self.size
        turn = (heading - self._game.get_game_variable(self._angle) + 180) % 360 - 180
        self._game.send_game_command(f"warp {round(x)} {round(y)}")
        self._game.make_action([-turn], 1)
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
def _standing_in(folder: str) -> Iterator[None]:
    """The engine leaves a folder `_vizdoom` where its process was started: let that be `folder`."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)

"""Simulators and controllers. Importing this package registers its environments with Gymnasium.

The ids are diffusion_forcing/maze2d-{umaze,medium,large}-v1, diffusion_forcing/maze2d-custom-v1 and
diffusion_forcing/robot_swap, and the same without the namespace. Since version 1.0 Gymnasium loads no plugins by
itself; an id that begins with this module needs no import:

    gymnasium.make("diffusion_forcing.environments:diffusion_forcing/maze2d-medium-v1")

`gymnasium.make("maze2d-custom-v1", maze="#####\\\\#OOG#\\\\#####")` makes an environment of any map, without a time
limit unless `max_episode_steps` sets one. MuJoCo is imported when the first environment is made.
"""

from __future__ import annotations

import gymnasium

_MAZE = "diffusion_forcing.environments.mazes.maze2d:Maze2dEnv"
_SWAP = "diffusion_forcing.environments.swap:SwapEnv"

for _space in ("", "diffusion_forcing/"):
    for _name, _steps in (("umaze", 300), ("medium", 600), ("large", 800)):
        gymnasium.register(
            f"{_space}maze2d-{_name}-v1", entry_point=_MAZE, max_episode_steps=_steps, kwargs={"maze": _name}
        )
    gymnasium.register(f"{_space}maze2d-custom-v1", entry_point=_MAZE)
    gymnasium.register(f"{_space}robot_swap", entry_point=_SWAP, max_episode_steps=135)

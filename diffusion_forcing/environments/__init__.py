"""Simulators and controllers. Importing this package registers maze2d-… and robot_swap with Gymnasium.

The ids are maze2d-{umaze,medium,large}-v1, maze2d-custom-v1 and robot_swap.

`gymnasium.make("maze2d-custom-v1", maze="#####\\\\#OOG#\\\\#####")` makes an environment of any map, without a time
limit unless `max_episode_steps` sets one. MuJoCo is imported when the first environment is made.
"""

from __future__ import annotations

import gymnasium

_ENTRY = "diffusion_forcing.environments.mazes.maze2d:Maze2dEnv"

for _name, _steps in (("umaze", 300), ("medium", 600), ("large", 800)):
    gymnasium.register(f"maze2d-{_name}-v1", entry_point=_ENTRY, max_episode_steps=_steps, kwargs={"maze": _name})
gymnasium.register("maze2d-custom-v1", entry_point=_ENTRY)
gymnasium.register(
    "robot_swap", entry_point="diffusion_forcing.environments.swap.environment:SwapEnv", max_episode_steps=135
)

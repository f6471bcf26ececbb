"""Generate data like D4RL's maze2d: one long run of the waypoint controller to random goals, with noise on its actions.

The ball is never reset: when it reaches the centre of the goal's cell, or after one episode length without, a new
random goal is set (`timeouts` marks these steps). Action noise N(0, 0.5) gives the statistics of the published data;
without it the ball never touches a wall. Rewards are those of D4RL's "sparse" files: 1 within 0.5 m of the maze's fixed
goal.

Steps are drawn in shards of 50,000, each from its own seed (seed, shard), so that the first n steps do not depend on how
many are asked for. The file appears when it is complete.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.mazes import d4rl
from diffusion_forcing.environments.mazes.layout import Maze
from diffusion_forcing.environments.mazes.maze2d import PointMass, build_model, draw_goal, draw_start, reached
from diffusion_forcing.environments.mazes.waypoint import WaypointController
from diffusion_forcing.errors import explaining_os_errors
from diffusion_forcing.progress import Bar

SHARD_STEPS = 50_000
"""Steps of a shard: about two seconds of work."""

Arrays = dict[str, NDArray[Any]]


def generate(
    maze: Maze,
    path: Path,
    *,
    num_steps: int = 1_000_000,
    action_noise: float = 0.5,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Write exactly `num_steps` steps in `maze` to the HDF5 file `path`. `UserError` for a folder that cannot be written."""
    collector, shards = Collector(maze, action_noise=action_noise, seed=seed), list[Arrays]()
    with (
        explaining_os_errors(f"cannot write {path}", "make room or choose another dataset.save_dir"),
        Bar(f"generating {maze.name}", total=num_steps, unit="steps", show=progress) as bar,
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        for begin in range(0, num_steps, SHARD_STEPS):
            shards.append(collector.collect(len(shards), num_steps=min(SHARD_STEPS, num_steps - begin)))
            bar.advance(len(shards[-1]["rewards"]))
        arrays = {key: np.concatenate([shard[key] for shard in shards]) for key in shards[0]}
        attributes = {"maze": maze.text, "action_noise": action_noise, "seed": seed, "generator": "waypoint 1"}
        d4rl.write(path, arrays, attributes=attributes)


class Collector:
    """The run itself: `collect(shard)` makes the next 50,000 steps."""

    def __init__(self, maze: Maze, *, action_noise: float = 0.5, seed: int = 0) -> None:
        self.maze, self.action_noise, self.seed = maze, action_noise, seed
        self._ball = PointMass(build_model(maze))
        self._controller = WaypointController(maze, rng=np.random.default_rng(0))
        self._goal: tuple[float, float] | None = None
        self._steps_to_goal = 0

    def collect(self, shard: int, *, num_steps: int = SHARD_STEPS) -> Arrays:
        """Steps of a shard as D4RL's arrays, at most 50,000; call it for shard 0, 1, 2, … in turn."""
        rng = np.random.default_rng([self.seed, shard])
        # The noise of a whole shard is drawn, so that its first steps do not depend on num_steps.
        noise = (self.action_noise * rng.standard_normal((SHARD_STEPS, 2))).tolist()
        ball, controller, longest = self._ball, self._controller, self.maze.max_steps
        controller.rng = rng
        if shard == 0:
            ball.reset(*draw_start(self.maze, rng))
            self._goal = self._new_goal(rng)
        assert self._goal is not None, "shards are collected in turn from 0"
        goal, since = self._goal, self._steps_to_goal
        rows: list[tuple[float, ...]] = []
        for noise_x, noise_y in noise[:num_steps]:
            x, y = ball.position.tolist()
            vx, vy = ball.velocity.tolist()
            ax, ay, done = controller.act(x, y, vx, vy, goal)
            ax = min(1.0, max(-1.0, ax + noise_x))
            ay = min(1.0, max(-1.0, ay + noise_y))
            is_timeout = done or since >= longest
            rows.append((x, y, vx, vy, ax, ay, goal[0], goal[1], is_timeout))
            ball.step((ax, ay))
            since += 1
            if is_timeout:
                goal, since = self._new_goal(rng), 0
        self._goal, self._steps_to_goal = goal, since
        return self._arrays(np.array(rows))

    def _new_goal(self, rng: np.random.Generator) -> tuple[float, float]:
        x, y = draw_goal(self.maze, rng, "random").tolist()
        return x, y

    def _arrays(self, rows: NDArray[np.float64]) -> Arrays:
        positions, velocities = rows[:, 0:2], rows[:, 2:4]
        return {
            "observations": rows[:, 0:4].astype(np.float32),
            "actions": rows[:, 4:6].astype(np.float32),
            "rewards": reached(positions, self.maze.fixed_goal.astype(np.float64)).astype(np.float32),
            "terminals": np.zeros(len(rows), dtype=bool),
            "timeouts": rows[:, 8] > 0,
            "infos/goal": rows[:, 6:8].astype(np.float32),
            "infos/qpos": positions.astype(np.float32),
            "infos/qvel": velocities.astype(np.float32),
        }

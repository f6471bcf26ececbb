"""OGBench's PointMaze as many points in one maze: its tasks, its protocol and MCTD's, its oracle, its own environment.

An episode ends at its goal. `goal="dataset"` plays OGBench's five tasks in turn (episode i is task i mod 5 + 1), or goes
from a start to the fixed goal in a maze of your own; `"random"` draws a start and another cell as the goal.

| protocol | start and goal | steps: medium, large, giant, other |
|---|---|---|
| `ogbench` | the cells' centres ± 1 m on each axis | 1000, 1000, 1000, 32 a cell of the longest way but at least 1000 |
| `mctd` | the cells' centres | 500, 500, 1000, as above |

`simulator="ogbench"` steps OGBench's environments themselves (`pip install 'diffusion-forcing[ogbench]'`) instead of the
physics rebuilt in `point.py`; a test finds no difference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast, get_args

import gymnasium
import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.environments.mazes.layout import Maze
from diffusion_forcing.environments.mazes.maze2d import Goal
from diffusion_forcing.environments.mazes.point import (
    GOAL_DISTANCE,
    POINT_MAZES,
    POSITION_NOISE,
    STEP,
    TASKS,
    Point,
    build_point_model,
    next_centres,
    noisy_centre,
)
from diffusion_forcing.environments.mazes.vector import VectorMaze
from diffusion_forcing.errors import UserError, check_choice

Protocol = Literal["ogbench", "mctd"]
Simulator = Literal["built_in", "ogbench"]

_STEPS: dict[str, dict[str, int]] = {"ogbench": {}, "mctd": {"medium": 500, "large": 500, "giant": 1000}}
_STREAM = 0
"""Third number of an episode's seed, after (seed, episode)."""


class VectorPointMaze(VectorMaze):
    """`num_envs` points in `maze`, played by `protocol`; see the module."""

    body, goal_distance = "point", GOAL_DISTANCE
    ends_at_goal = True

    def __init__(
        self,
        maze: Maze,
        num_envs: int,
        *,
        goal: Goal = "dataset",
        protocol: Protocol = "ogbench",
        simulator: Simulator = "built_in",
        max_steps: int | None = None,
    ) -> None:
        check_choice("protocol", protocol, get_args(Protocol))
        check_choice("simulator", simulator, get_args(Simulator))
        longest = max(1000, 32 * maze.longest_path) if maze.name not in POINT_MAZES else 1000
        longest = _STEPS[protocol].get(maze.name, longest) if max_steps is None else max_steps
        box = gymnasium.spaces.Box(-np.inf, np.inf, shape=(2,), dtype=np.float64)
        super().__init__(maze, num_envs, goal=goal, max_steps=longest, observation_space=box)
        self._noise = POSITION_NOISE if protocol == "ogbench" else 0.0
        self._tasks = TASKS.get(maze.name, ()) if goal == "dataset" else ()
        if simulator == "ogbench":
            self._bodies: list[Any] = [_TheirPoint(maze) for _ in range(num_envs)]
        else:
            model = build_point_model(maze)
            self._bodies = [Point(maze, model) for _ in range(num_envs)]

    def _start(self, index: int, episode: int, start: NDArray[np.float64] | None) -> NDArray[np.float64]:
        maze, rng = self.maze, np.random.default_rng([self._seed, episode, _STREAM])
        if self._tasks:
            begin, end = self._tasks[episode % len(self._tasks)]
        else:
            cells = maze.start_cells
            begin = tuple(cells[rng.integers(len(cells))].tolist())
            ends = maze.free_cells if self.goal_kind == "random" else maze.fixed_goal[None]
            others = ends[(ends != begin).any(axis=1)]
            ends = others if len(others) else ends
            end = tuple(ends[rng.integers(len(ends))].tolist())
        position, goal = (noisy_centre(maze, cell, rng, self._noise) for cell in (begin, end))
        self._bodies[index].reset(position if start is None else start, np.zeros(2))
        return goal

    def _move(self, actions: list[list[float]]) -> None:
        for point, action in zip(self._bodies, actions, strict=True):
            point.step(action)

    def _observations(self) -> NDArray[np.float64]:
        return np.array([point.position for point in self._bodies])


class _TheirPoint:
    """OGBench's own environment as a `Point`."""

    def __init__(self, maze: Maze) -> None:
        if maze.name not in POINT_MAZES:
            raise UserError(
                f"simulator=ogbench has no maze '{maze.name}'; choose one of {', '.join(POINT_MAZES)}, or built_in"
            )
        try:
            import ogbench.locomaze  # noqa: F401  (registers them)
        except ImportError as error:
            raise UserError("simulator=ogbench needs pip install 'diffusion-forcing[ogbench]'") from error
        env = gymnasium.make(f"pointmaze-{maze.name}-v0", terminate_at_goal=False, disable_env_checker=True)
        self._env: Any = cast("Any", env.unwrapped)
        Path(self._env.fullpath).unlink(missing_ok=True)  # the model is read, and OGBench leaves its file behind

    @property
    def position(self) -> NDArray[np.float64]:
        """(2,) m."""
        return np.asarray(self._env.get_xy())

    def reset(self, position: NDArray[np.floating], velocity: NDArray[np.floating]) -> None:
        """Put the point at `position` (m); it has no velocity."""
        self._env.reset(seed=0, options={"task_id": 1})
        self._env.set_xy(position)

    def step(self, action: list[float]) -> None:
        """One step of their environment."""
        self._env.step(np.array(action))


def task_numbers(maze: Maze, episodes: int, goal: Goal) -> NDArray[np.int64] | None:
    """(episodes,) number 1… of each episode's task; None where `maze` has no tasks or goals are random."""
    count = len(TASKS.get(maze.name, ())) if goal == "dataset" else 0
    return np.arange(episodes) % count + 1 if count else None


def point_oracle_rewards(env: VectorPointMaze, *, seed: int) -> NDArray[np.float64]:
    """(n, max_steps) rewards on episodes 0 … n - 1 of `seed`: 1 in the step that reaches the goal.

    The oracle knows the map: it walks at full speed to the centre of the next cell of a shortest path, in the goal's
    cell to the goal.
    """
    positions, _ = env.reset(seed=seed, options={"first_episode": 0})
    maze, n = env.maze, env.num_envs
    goals = [maze.cell_at(goal) for goal in env.goals]
    aims = [next_centres(maze, goal) for goal in goals]
    rewards, reached = np.zeros((n, env.max_steps)), np.zeros(n, dtype=bool)
    for step in range(env.max_steps):
        cells = [maze.cell_at(position) for position in positions]
        ahead = [table[cell[0]][cell[1]] for table, cell in zip(aims, cells, strict=True)]
        there = np.array([cell == goal for cell, goal in zip(cells, goals, strict=True)])
        way = (np.where(there[:, None], env.goals, ahead) - positions) / STEP
        positions, reward, *_ = env.step(way / np.maximum(np.abs(way).max(axis=1, keepdims=True), 1))
        rewards[:, step] = reward * ~reached
        reached |= reward > 0
        if reached.all():
            break
    return rewards

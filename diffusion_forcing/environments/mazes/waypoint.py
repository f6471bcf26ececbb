"""The controller that made D4RL's maze2d data: walk a shortest path cell by cell with a PD law. It knows the map.

A path of cells becomes a path of waypoints: every cell but the goal's is moved by -U(0, 0.2) m on both axes (towards the true centre of the
cell). The action is `10 (waypoint - position) - velocity`, clipped to +-1; a waypoint is passed when nearer than 0.1 m. At the goal cell the
controller holds its nominal centre, so a rollout that never changes the goal is the *oracle*: what an agent gets that knows the maze.

The same class with `noise` collects data (`datasets/mazes/generate.py`); without, it is the yardstick of `planning/oracle_ratio`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.environments.mazes.layout import Cell, Maze
from diffusion_forcing.environments.mazes.maze2d import Goal
from diffusion_forcing.environments.mazes.vector import VectorMaze2d

P_GAIN = 10.0
D_GAIN = -1.0
SOLVE_DISTANCE = 0.1
"""m: a waypoint, or the goal, is reached when nearer than this."""
SOLVE_STEP = 0.1
"""m: and when the last step was shorter than this. No real step is longer than 0.053, so it only delays the first step after a new goal."""
JITTER = 0.2
"""m: waypoints lie up to this far below the integer cell index."""
_JITTER_STREAM = 2
"""Third number of an oracle episode's seed, after (seed, episode); 0 and 1 draw its start and goal."""


class WaypointController:
    """Walks one agent to changing goals. `rng` draws the jitter of the waypoints, as in D4RL once per new goal."""

    def __init__(self, maze: Maze, *, rng: np.random.Generator) -> None:
        self.maze = maze
        self.rng = rng
        self._target: Cell | None = None
        self._waypoints: list[tuple[float, float]] = []
        self._index = 0
        self._last: tuple[float, float] = (0.0, 0.0)

    def act(self, x: float, y: float, vx: float, vy: float, goal: tuple[float, float]) -> tuple[float, float, bool]:
        """Action (ax, ay) in [-1, 1] for an agent at (x, y) m with velocity (vx, vy) m/s, and whether it stands on the goal's cell centre.

        `goal` (x, y) in metres is rounded to its cell, as D4RL does; a path is only planned when that cell changes. Plain floats, no arrays:
        one call takes about a microsecond.
        """
        cell = (round(goal[0]), round(goal[1]))
        if cell != self._target:
            self._new_target((x, y), cell)
        waypoints = self._waypoints
        target = waypoints[-1]
        slow = math.hypot(self._last[0] - x, self._last[1] - y) < SOLVE_STEP
        solved = slow and math.hypot(target[0] - x, target[1] - y) < SOLVE_DISTANCE
        aim = target if solved else waypoints[self._index]
        dx, dy = aim[0] - x, aim[1] - y
        ax = min(1.0, max(-1.0, P_GAIN * dx + D_GAIN * vx))
        ay = min(1.0, max(-1.0, P_GAIN * dy + D_GAIN * vy))
        if slow and not solved and self._index < len(waypoints) - 1 and math.hypot(dx, dy) < SOLVE_DISTANCE:
            self._index += 1
        self._last = (x, y)
        return ax, ay, solved

    def state(self) -> dict[str, object]:
        """JSON-able state (without the generator) from which `set_state` continues exactly."""
        return {"target": self._target, "waypoints": self._waypoints, "index": self._index, "last": self._last}

    def set_state(self, state: dict[str, object]) -> None:
        """Continue from an earlier `state`, also after a trip through JSON."""
        target, waypoints, index, last = (state[key] for key in ("target", "waypoints", "index", "last"))
        assert isinstance(waypoints, list) and isinstance(index, int) and isinstance(last, list | tuple)
        self._target = (int(target[0]), int(target[1])) if isinstance(target, list | tuple) else None
        self._waypoints = [(float(x), float(y)) for x, y in waypoints]
        self._index = index
        self._last = (float(last[0]), float(last[1]))

    def _new_target(self, position: tuple[float, float], target: Cell) -> None:
        start = (round(position[0]), round(position[1]))
        if not self.maze.is_free(start):
            start = self.maze.cell_at(position)
        cells = self.maze.shortest_path(start, target)[1:] or [target]
        waypoints = []
        for i, j in cells[:-1]:
            ux, uy = self.rng.random(2)
            waypoints.append((i - float(ux) * JITTER, j - float(uy) * JITTER))
        waypoints.append((float(target[0]), float(target[1])))
        self._target, self._waypoints, self._index = target, waypoints, 0
        self._last = (float(start[0]), float(start[1]))


def oracle_rewards(
    maze: Maze | str,
    episodes: int = 100,
    *,
    seed: int = 0,
    goal: Goal = "dataset",
    first_episode: int = 0,
    max_steps: int | None = None,
) -> NDArray[np.float64]:
    """(episodes, max_steps) rewards of the oracle on episodes first_episode.. of `seed`: the same starts and goals as `VectorMaze2d`'s.

    `rewards.sum(1)` is D4RL's return of each episode; `(rewards > 0).argmax(1)` its first step at the goal, where one is reached.
    """
    env = VectorMaze2d(maze, episodes, goal=goal, max_steps=max_steps)
    observations, _ = env.reset(seed=seed, options={"first_episode": first_episode})
    controllers = [
        WaypointController(env.maze, rng=np.random.default_rng([seed, first_episode + index, _JITTER_STREAM]))
        for index in range(episodes)
    ]
    goals = [(float(x), float(y)) for x, y in env.goals]
    rewards = np.empty((episodes, env.max_steps))
    for step in range(env.max_steps):
        states = zip(controllers, observations.tolist(), goals, strict=True)
        actions = [controller.act(x, y, vx, vy, goal)[:2] for controller, (x, y, vx, vy), goal in states]
        observations, rewards[:, step], *_ = env.step(np.array(actions))
    return rewards

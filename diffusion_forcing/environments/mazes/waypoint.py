"""The controller that collected D4RL's maze2d data: it knows the map and follows a shortest path by PD control.

Every cell of the path except the goal's becomes a waypoint, moved by -U(0, 0.2) m on both axes, towards the cell's true
centre. The action is `10 (waypoint - position) - velocity`, clipped to ±1; the next waypoint follows when the agent is
within 0.1 m. At the goal the controller holds the nominal centre of the cell. With a fixed goal it is the *oracle*: the
return of an agent that knows the maze, which `planning/oracle_ratio` divides by. With noise on its actions it collects
data (`datasets/mazes/generate.py`).
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
"""m: a waypoint or the goal is reached within this distance."""
SOLVE_STEP = 0.1
"""m: and only after a shorter step; as none exceeds 0.053 m, this delays only the first step to a new goal."""
JITTER = 0.2
"""m: waypoints lie up to this far below the cell's integer index."""
_JITTER_STREAM = 2
"""Third number of an oracle episode's seed, after (seed, episode); 0 and 1 draw its start and goal."""


class WaypointController:
    """Moves one agent to changing goals. `rng` draws the jitter of the waypoints once for each new goal, as in D4RL."""

    def __init__(self, maze: Maze, *, rng: np.random.Generator) -> None:
        self.maze = maze
        self.rng = rng
        self._target: Cell | None = None
        self._waypoints: list[tuple[float, float]] = []
        self._index = 0
        self._last: tuple[float, float] = (0.0, 0.0)

    def act(self, x: float, y: float, vx: float, vy: float, goal: tuple[float, float]) -> tuple[float, float, bool]:
        """Action (ax, ay) in [-1, 1] at (x, y) m with velocity (vx, vy) m/s, and whether the goal's cell centre is
        reached.

        `goal` (x, y) in metres is rounded to its cell, as in D4RL; a new path is planned only when that cell changes.
        Plain floats instead of arrays: a call takes about a microsecond.
        """
        cell = (round(goal[0]), round(goal[1]))
        if cell != self._target:
            self._new_target((x, y), cell)
        waypoints = self._waypoints
        target = waypoints[-1]
        slow = math.hypot(self._last[0] - x, self._last[1] - y) < SOLVE_STEP
        solved = slow and math.hypot(target[0] - x, target[1] - y) < SOLVE_DISTANCE
        # PD control towards the current waypoint.
        aim = target if solved else waypoints[self._index]
        dx, dy = aim[0] - x, aim[1] - y
        ax = min(1.0, max(-1.0, P_GAIN * dx + D_GAIN * vx))
        ay = min(1.0, max(-1.0, P_GAIN * dy + D_GAIN * vy))
        # Next waypoint.
        if slow and not solved and self._index < len(waypoints) - 1 and math.hypot(dx, dy) < SOLVE_DISTANCE:
            self._index += 1
        self._last = (x, y)
        return ax, ay, solved

    def _new_target(self, position: tuple[float, float], target: Cell) -> None:
        start = (round(position[0]), round(position[1]))
        if not self.maze.is_free(start):
            start = self.maze.cell_at(position)
        cells = self.maze.shortest_path(start, target)[1:] or [target]
        waypoints = []
        for i, j in cells[:-1]:
            ux, uy = self.rng.random(2).tolist()
            waypoints.append((i - ux * JITTER, j - uy * JITTER))
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
    """(episodes, max_steps) rewards of the oracle on episodes first_episode … of `seed`, with the starts and goals of
    `VectorMaze2d`.

    `rewards.sum(1)` is D4RL's return of each episode; `(rewards > 0).argmax(1)` the first step at the goal, if it is
    reached.
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

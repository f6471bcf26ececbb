"""Many bodies in one maze, stepped together: planning is evaluated here.

All share one MuJoCo model. Episode i of a seed has its own start and goal, drawn from (seed, i) alone, so a
hundred episodes give the same results in one batch of 100 and in ten of 10 (`reset(seed=s, options={"first_episode":
k})`). No episode terminates; all are truncated together after `max_steps`, and the caller resets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, get_args

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from diffusion_forcing.environments.mazes.layout import Maze, as_maze
from diffusion_forcing.environments.mazes.maze2d import (
    GOAL_DISTANCE,
    Goal,
    PointMass,
    action_space,
    build_model,
    check_actions,
    check_options,
    check_point,
    episode_start,
    observation_space,
)
from diffusion_forcing.errors import UserError, check_choice, check_minimum, require

_MAX_SEED = 2**31


class VectorMaze(VectorEnv[NDArray[np.float64], NDArray[np.float64], NDArray[Any]], ABC):
    """`num_envs` independent bodies in one maze; a subclass has the physics.

    `reset(seed=s, options=...)` takes `first_episode` (int, the episode of the first body), `starts` (n, 2) and `goals`
    (n, 2) in metres. Without a seed, a reset continues with the next `num_envs` episodes of the last seed (initially
    0).
    """

    body: str
    """`ball` or `point`: how it is steered."""
    goal_distance: float
    """m: the goal is reached within this distance."""
    ends_at_goal = False
    """Whether an episode is over when its goal is reached; nothing after that counts."""
    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}

    def __init__(
        self, maze: Maze, num_envs: int, *, goal: Goal, max_steps: int, observation_space: gymnasium.spaces.Box
    ) -> None:
        check_choice("goal", goal, get_args(Goal))
        check_minimum("num_envs", num_envs, 1)
        check_minimum("max_steps", max_steps, 1)
        self.maze, self.goal_kind, self.max_steps, self.num_envs = maze, goal, max_steps, num_envs
        self.single_observation_space: gymnasium.Space[Any] = observation_space
        self.single_action_space: gymnasium.Space[Any] = action_space()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.goals: NDArray[np.float64] = np.zeros((num_envs, 2))
        """(n, 2) m: the goal of each body."""
        self.steps = 0
        """Steps since the reset."""
        self._seed = 0
        self._next_episode = 0

    @abstractmethod
    def _start(self, index: int, episode: int, start: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """Put body `index` where `episode` of the seed starts, or at `start`, and return the episode's goal (2,)."""

    @abstractmethod
    def _move(self, actions: list[list[float]]) -> None:
        """One step of all bodies."""

    @abstractmethod
    def _observations(self) -> NDArray[np.float64]:
        """(n, o) of all bodies."""

    def reset(  # type: ignore[override]
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Start `num_envs` episodes; see the class. Returns observations (n, o) and `{"goal": (n, 2)}`."""
        options = check_options(options, ("first_episode", "starts", "goals"))
        if seed is not None:
            require(0 <= seed < _MAX_SEED, f"seed must be in 0..{_MAX_SEED - 1}, got {seed}")
            self._seed, self._next_episode = seed, 0
        first = int(options.get("first_episode", self._next_episode))
        check_minimum("first_episode", first, 0)
        self._next_episode = first + self.num_envs
        starts, goals = (self._points(options, key) for key in ("starts", "goals"))
        for index in range(self.num_envs):
            goal = self._start(index, first + index, None if starts is None else starts[index])
            self.goals[index] = goal if goals is None else goals[index]
        self.steps = 0
        return self._observations(), {"goal": self.goals.copy()}

    def step(
        self, actions: NDArray[np.floating]
    ) -> tuple[NDArray[np.float64], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Act with `actions` (n, 2), clipped to ±1. Observations are (n, o), rewards (n,) 0 or 1."""
        pushes = check_actions(actions, (self.num_envs, 2))
        self._move(np.clip(pushes, -1, 1).tolist())
        self.steps += 1
        observations = self._observations()
        success = np.linalg.norm(observations[:, :2] - self.goals, axis=1) <= self.goal_distance
        truncated = np.full(self.num_envs, self.steps >= self.max_steps)
        info = {"goal": self.goals.copy(), "success": success}
        terminated = np.zeros(self.num_envs, dtype=bool)
        return observations, success.astype(np.float64), terminated, truncated, info

    def _points(self, options: dict[str, Any], key: str) -> NDArray[np.float64] | None:
        if key not in options:
            return None
        points = np.asarray(options[key], dtype=np.float64)
        if points.shape != (self.num_envs, 2):
            raise UserError(
                f"reset option {key!r} has shape {points.shape}, expected ({self.num_envs}, 2): (x, y) for each body"
            )
        return np.stack([check_point(self.maze, point, f"{key}[{index}]") for index, point in enumerate(points)])


class VectorMaze2d(VectorMaze):
    """D4RL's balls. `max_steps` defaults to the maze's episode length (300 / 600 / 800 for D4RL's)."""

    body, goal_distance = "ball", GOAL_DISTANCE

    def __init__(
        self, maze: Maze | str, num_envs: int, *, goal: Goal = "dataset", max_steps: int | None = None
    ) -> None:
        maze = as_maze(maze)
        longest = maze.max_steps if max_steps is None else max_steps
        super().__init__(maze, num_envs, goal=goal, max_steps=longest, observation_space=observation_space(maze))
        model = build_model(maze)
        self._balls = [PointMass(model) for _ in range(num_envs)]

    def _start(self, index: int, episode: int, start: NDArray[np.float64] | None) -> NDArray[np.float64]:
        position, velocity, goal = episode_start(self.maze, seed=self._seed, episode=episode, goal=self.goal_kind)
        self._balls[index].reset(position if start is None else start, velocity)
        return goal

    def _move(self, actions: list[list[float]]) -> None:
        for ball, push in zip(self._balls, actions, strict=True):
            ball.step(push)

    def _observations(self) -> NDArray[np.float64]:
        out = np.empty((self.num_envs, 4))
        for row, ball in zip(out, self._balls, strict=True):
            row[:2] = ball.position
            row[2:] = ball.velocity
        return out

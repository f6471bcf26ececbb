"""D4RL's maze2d: push a ball through a maze to a goal. Its physics in MuJoCo, and a Gymnasium environment of one ball.

Physics: a sphere (radius 0.1 m, density 1000 kg/m³, so 4.19 kg) on two slide joints among boxes. A step is 0.01 s of
Euler integration; the motors push with 100 N at full action, each joint brakes with 1 N·s/m, and velocities are clipped
to ±5 m/s *before* a step, so 5.23 m/s is the largest seen after one. All numbers are D4RL's; a test compares
trajectories with gymnasium-robotics' PointMaze.

- observation: (x, y, vx, vy) in m and m/s, in D4RL's frame (`layout.py`); action: (ax, ay) in [-1, 1].
- reward: 1 within 0.5 m of the goal, otherwise 0. An episode never terminates; `gymnasium.make` truncates it after 300
  / 600 / 800 steps.
- start: the nominal centre of a random start cell ± 0.1 m, with velocity 0.1 N(0, 1) m/s.
- goal: `"dataset"` is the nominal centre of the cell marked G, without noise, as D4RL evaluates; `"random"` is the
  nominal centre of a random free cell ± 0.1 m, drawn at each reset (D4RL's `set_target()`).
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, get_args

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from diffusion_forcing.environments.mazes.layout import Cell, Maze, as_maze
from diffusion_forcing.errors import UserError, check_choice, check_minimum, require

Goal = Literal["dataset", "random"]

MAX_VELOCITY = 5.0
"""m/s, clipped before every step."""
TIMESTEP = 0.01
"""s of one step."""
GOAL_DISTANCE = 0.5
"""m: the reward is 1 within this distance of the goal."""
POSITION_NOISE = 0.1
"""m: largest distance of starts and random goals from a nominal cell centre, on each axis."""
VELOCITY_NOISE = 0.1
"""m/s: standard deviation of the velocity at the start."""
_SPEED_BOUND = 10.0
"""m/s: bound of the observation space; no velocity exceeds 5.3."""
_PARTICLE = 1.2
"""World x and y of the particle when both joints are 0."""
_WALL = 1.0
"""World x of the centre of a wall in row 0."""
_START_STREAM, _GOAL_STREAM = 0, 1

_MJCF = """<mujoco model="maze2d">
  <compiler inertiafromgeom="true" angle="radian"/>
  <option timestep="{timestep}" gravity="0 0 0" iterations="20" integrator="Euler"/>
  <default>
    <joint damping="1" limited="false"/>
    <geom friction=".5 .1 .1" density="1000" margin="0.002" condim="1"/>
  </default>
  <worldbody>
    <body name="particle" pos="{particle} {particle} 0">
      <geom type="sphere" size="0.1" contype="1" conaffinity="0"/>
      <joint name="ball_x" type="slide" axis="1 0 0"/>
      <joint name="ball_y" type="slide" axis="0 1 0"/>
    </body>
{walls}
  </worldbody>
  <actuator>
    <motor joint="ball_x" ctrlrange="-1 1" ctrllimited="true" gear="100"/>
    <motor joint="ball_y" ctrlrange="-1 1" ctrllimited="true" gear="100"/>
  </actuator>
</mujoco>"""


def build_model(maze: Maze) -> mujoco.MjModel:
    """MuJoCo model of `maze`, without the walls that touch no free cell: nothing can reach them."""
    height, width = maze.shape
    free = np.pad(~maze.walls, 1)
    near_free = np.any([free[i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=0)
    walls = [
        f'    <geom name="wall_{i}_{j}" type="box" pos="{i + _WALL} {j + _WALL} 0" size="0.5 0.5 0.2" '
        'contype="0" conaffinity="1"/>'
        for i, j in np.argwhere(maze.walls & near_free)
    ]
    return mujoco.MjModel.from_xml_string(_MJCF.format(timestep=TIMESTEP, particle=_PARTICLE, walls="\n".join(walls)))


class PointMass:
    """One ball in a model of `build_model`. `position` (2,) m and `velocity` (2,) m/s are views of MuJoCo's state."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self.model = model
        self.data = mujoco.MjData(model)
        self._bind()

    def _bind(self) -> None:
        self.position: NDArray[np.float64] = self.data.qpos
        self.velocity: NDArray[np.float64] = self.data.qvel
        self._ctrl = self.data.ctrl

    def __getstate__(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        return self.model, self.data

    def __setstate__(self, state: tuple[mujoco.MjModel, mujoco.MjData]) -> None:
        self.model, self.data = state
        self._bind()  # the views of a copy belong to its own state

    def reset(self, position: NDArray[np.floating], velocity: NDArray[np.floating]) -> None:
        """Put the ball at `position` (m) with `velocity` (m/s) and forget everything before."""
        mujoco.mj_resetData(self.model, self.data)
        self.position[:] = position
        self.velocity[:] = velocity

    def step(self, action: Sequence[float] | NDArray[np.floating]) -> None:
        """Push with `action` (ax, ay), clipped to ±1, for 0.01 s."""
        clip_velocity_(self.velocity)
        self._ctrl[0] = action[0]
        self._ctrl[1] = action[1]
        mujoco.mj_step(self.model, self.data)


def clip_velocity_(velocity: NDArray[np.float64]) -> None:
    """Clip (2,) `velocity` to ±5 m/s in place. Plain comparisons: data generation calls this a million times."""
    for axis in (0, 1):
        value = velocity[axis]
        if value > MAX_VELOCITY:
            velocity[axis] = MAX_VELOCITY
        elif value < -MAX_VELOCITY:
            velocity[axis] = -MAX_VELOCITY


class Maze2dEnv(gymnasium.Env[NDArray[np.float64], NDArray[np.float32]]):
    """One ball in one maze. `maze` is a `Maze`, a name of `MAZES` or an ASCII map; `goal` is "dataset" or "random".

    `reset(options={"start": (x, y), "velocity": (vx, vy), "goal": (x, y)})` sets any of the three; the others are drawn
    from the seed. `info["goal"]` is the goal (2,), `info["success"]` whether the ball is within 0.5 m of it.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 100}

    def __init__(self, maze: Maze | str = "umaze", *, goal: Goal = "dataset", render_mode: str | None = None) -> None:
        self.maze = as_maze(maze)
        check_choice("goal", goal, get_args(Goal))
        self.goal_kind = goal
        check_choice("render_mode", render_mode or "rgb_array", self.metadata["render_modes"])
        self.render_mode = render_mode
        self.observation_space: gymnasium.Space[Any] = observation_space(self.maze)
        self.action_space: gymnasium.Space[Any] = action_space()
        self.goal: NDArray[np.float64] = self.maze.fixed_goal.astype(np.float64)
        self._ball = PointMass(build_model(self.maze))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Start an episode; see the class for `options`. `UserError` for a start or goal outside the free cells."""
        super().reset(seed=seed)
        options = check_options(options, ("start", "velocity", "goal"))
        # Draw all three first, so that giving one of them does not change the others.
        position, velocity = draw_start(self.maze, self.np_random)
        self.goal = draw_goal(self.maze, self.np_random, self.goal_kind)
        if "start" in options:
            position = check_point(self.maze, options["start"], "start")
        if "velocity" in options:
            velocity = as_pair(options["velocity"], "velocity")
        if "goal" in options:
            self.goal = check_point(self.maze, options["goal"], "goal")
        self._ball.reset(position, velocity)
        return self._observation(), self._info()

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """Push with `action` (2,), clipped to ±1, for 0.01 s. `UserError` if it is not finite."""
        self._ball.step(check_actions(action, (2,)))
        info = self._info()
        return self._observation(), float(info["success"]), False, False, info

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """(h, w, 3) uint8 image of the maze from above, ball blue, goal red; None without `render_mode="rgb_array"`."""
        return None if self.render_mode is None else top_view(self.maze, self._ball.position, self.goal)

    def _observation(self) -> NDArray[np.float64]:
        return np.concatenate([self._ball.position, self._ball.velocity])

    def _info(self) -> dict[str, Any]:
        return {"goal": self.goal.copy(), "success": bool(reached(self._ball.position, self.goal))}


def observation_space(maze: Maze) -> gymnasium.spaces.Box:
    """Box (4,) of positions inside the outer walls (m) and velocities (m/s)."""
    height, width = maze.shape
    low = np.array([-0.7, -0.7, -_SPEED_BOUND, -_SPEED_BOUND])
    high = np.array([height - 0.7, width - 0.7, _SPEED_BOUND, _SPEED_BOUND])
    return gymnasium.spaces.Box(low, high, dtype=np.float64)


def action_space() -> gymnasium.spaces.Box:
    """Box (2,) of pushes in [-1, 1]."""
    return gymnasium.spaces.Box(-1.0, 1.0, shape=(2,), dtype=np.float32)


def draw_start(maze: Maze, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Position (2,) m and velocity (2,) m/s at a reset, as D4RL draws them."""
    cell = maze.start_cells[rng.integers(len(maze.start_cells))]
    position = cell + rng.uniform(-POSITION_NOISE, POSITION_NOISE, size=2)
    return position, VELOCITY_NOISE * rng.standard_normal(2)


def draw_goal(maze: Maze, rng: np.random.Generator, kind: Goal) -> NDArray[np.float64]:
    """(2,) m: the fixed goal, or a random one."""
    if kind == "dataset":
        return maze.fixed_goal.astype(np.float64)
    cell = maze.free_cells[rng.integers(len(maze.free_cells))]
    return np.asarray(cell + rng.uniform(-POSITION_NOISE, POSITION_NOISE, size=2))


def episode_start(
    maze: Maze, *, seed: int, episode: int, goal: Goal
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Start position, start velocity and goal, (2,) each, of an episode: a function of `seed` and `episode` alone.

    Both kinds of goal have the same start.
    """
    position, velocity = draw_start(maze, np.random.default_rng([seed, episode, _START_STREAM]))
    return position, velocity, draw_goal(maze, np.random.default_rng([seed, episode, _GOAL_STREAM]), goal)


def reached(positions: NDArray[np.floating], goals: NDArray[np.floating]) -> NDArray[np.bool_]:
    """(...,) whether positions (..., 2) are within 0.5 m of goals (..., 2): D4RL's sparse reward."""
    return np.asarray(np.linalg.norm(positions - goals, axis=-1) <= GOAL_DISTANCE)


def check_options(options: dict[str, Any] | None, allowed: tuple[str, ...]) -> dict[str, Any]:
    """Reset options that are not None; `UserError` for an unknown key."""
    options = {key: value for key, value in (options or {}).items() if value is not None}
    for key in options:
        check_choice("reset option", key, allowed)
    return options


def as_pair(value: Any, name: str) -> NDArray[np.float64]:
    """(2,) finite floats, or `UserError`."""
    pair = np.asarray(value, dtype=np.float64)
    if pair.shape != (2,) or not np.isfinite(pair).all():
        raise UserError(f"{name} must be two finite numbers, got {value!r}")
    return pair


def check_point(maze: Maze, value: Any, name: str) -> NDArray[np.float64]:
    """(2,) a position in a free cell, or `UserError`."""
    point = as_pair(value, name)
    cell = maze.cell_at(point)
    if not maze.is_free(cell):
        inside = all(0 <= index < side for index, side in zip(cell, maze.shape, strict=True))
        low, high = maze.centre((0, 0)) - maze.unit / 2, maze.centre(maze.shape) - maze.unit / 2
        where = (
            f"lies in a wall of maze '{maze.name}'"
            if inside
            else f"lies outside maze '{maze.name}': x is {low[0]:g} to {high[0]:g} m, y {low[1]:g} to {high[1]:g} m"
        )
        free = maze.centre(maze.free_cells)
        x, y = free[np.linalg.norm(free - point, axis=1).argmin()]
        raise UserError(f"{name} ({point[0]:g}, {point[1]:g}) {where}; the nearest free place is [{x:g},{y:g}]")
    return point


def check_actions(actions: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """`actions` as floats of `shape`; `UserError` if the shape differs or a value is not finite."""
    array = np.asarray(actions, dtype=np.float64)
    require(array.shape == shape, f"actions have shape {array.shape}, expected {shape}: (ax, ay) for each ball")
    finite = bool(np.isfinite(array).all())
    require(finite, "an action is not finite (NaN or infinity): what computed it, plan or controller, has diverged")
    return array


def top_view(
    maze: Maze, position: NDArray[np.floating], goal: NDArray[np.floating], *, pixels_per_metre: int = 32
) -> NDArray[np.uint8]:
    """(H * ppm, W * ppm, 3) uint8 image from above: x runs down the rows, y along the columns."""
    walls = np.kron(maze.walls, np.ones((pixels_per_metre,) * 2, dtype=bool))
    image = np.repeat(np.where(walls, 90, 240)[..., None], 3, axis=-1).astype(np.uint8)
    x, y = (np.arange(n * pixels_per_metre) / pixels_per_metre - 0.7 for n in maze.shape)  # metres at each pixel
    for point, radius, colour in ((goal, 0.2, (200, 60, 50)), (position, 0.1, (40, 90, 200))):
        image[(x[:, None] - point[0]) ** 2 + (y[None, :] - point[1]) ** 2 <= radius**2] = colour
    return image


def environment_spec(maze: Maze) -> EnvSpec:
    """What makes `Maze2dEnv` of `maze` in Gymnasium: that of a registered maze, else of its map."""
    spec = copy.deepcopy(gymnasium.spec(f"diffusion_forcing/maze2d-{maze.name}-v1"))
    if maze.name == "custom":
        spec.kwargs["maze"] = maze.text
    return spec


# --------------------------------------------------------------------------------------------------------- many at once
# Many bodies in one maze, stepped together: planning is evaluated here.
#
# All share one MuJoCo model. Episode i of a seed has its own start and goal, drawn from (seed, i) alone, so a
# hundred episodes give the same results in one batch of 100 and in ten of 10 (`reset(seed=s, options={"first_episode":
# k})`). No episode terminates; all are truncated together after `max_steps`, and the caller resets.

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


# ------------------------------------------------------------------------------------------------------- the controller
# The controller that collected D4RL's maze2d data: it knows the map and follows a shortest path by PD control.
#
# Every cell of the path except the goal's becomes a waypoint, moved by -U(0, 0.2) m on both axes, towards the cell's true
# centre. The action is `10 (waypoint - position) - velocity`, clipped to ±1; the next waypoint follows when the agent is
# within 0.1 m. At the goal the controller holds the nominal centre of the cell. With a fixed goal it is the *oracle*: the
# return of an agent that knows the maze, which `planning/oracle_ratio` divides by. With noise on its actions it collects
# data (`datasets/mazes/maze2d.py`).

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

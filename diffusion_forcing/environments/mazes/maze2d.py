"""D4RL's maze2d as a Gymnasium environment: push a ball through a maze to a goal, sparse reward, no end but the time limit.

- observation: (x, y, vx, vy), m and m/s in D4RL's frame (`mazes.py`); action: (ax, ay) in [-1, 1].
- reward: 1 while the ball is within 0.5 m of the goal, else 0. An episode never terminates, `gymnasium.make` cuts it at 300 / 600 / 800 steps.
- reset: a start cell at random, its nominal centre +-0.1 m, velocity 0.1 N(0, 1) m/s.
- goal: `"dataset"` is D4RL's fixed evaluation goal, exactly the nominal centre of the cell marked G (D4RL adds no noise there);
  `"random"` is the nominal centre of a random free cell +-0.1 m, drawn anew at each reset (D4RL's `set_target()`).

`episode_start` is shared with the vectorised environment, so that episode i of a seed is the same in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import gymnasium
import mujoco
import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.environments.mazes.layout import MAZES, Maze
from diffusion_forcing.errors import UserError, did_you_mean

# The point mass of D4RL's maze2d, in MuJoCo: a sphere on two slide joints among boxes.
#
# One step is 0.01 s of Euler integration; the two motors push with 100 N at full action and each joint brakes with 1 N s/m. The sphere weighs
# 4.19 kg (radius 0.1 m, density 1000 kg/m3). Velocities are clipped to +-5 m/s *before* a step, so the largest one seen after it is 5.23.
# The frame is D4RL's: joint positions are measured from a particle at world (1.2, 1.2) while the wall of cell (i, j) stands at world
# (i + 1, j + 1). All numbers are D4RL's own; a test compares trajectories with gymnasium-robotics' PointMaze.

MAX_VELOCITY = 5.0
"""m/s, clipped before every step."""
TIMESTEP = 0.01
"""s of one step."""
_PARTICLE = 1.2
"""World x and y of the particle where both joints are 0."""
_WALL = 1.0
"""World x of the middle of a wall in row 0."""

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
    """MuJoCo model of `maze`. Walls that no free cell touches are left out: nothing can reach them."""
    walls = [
        f'    <geom name="wall_{i}_{j}" type="box" pos="{i + _WALL} {j + _WALL} 0" size="0.5 0.5 0.2" contype="0" conaffinity="1"/>'
        for i, j in np.argwhere(maze.walls & _beside(~maze.walls))
    ]
    return mujoco.MjModel.from_xml_string(_MJCF.format(timestep=TIMESTEP, particle=_PARTICLE, walls="\n".join(walls)))


def _beside(free: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(H, W), True where one of the eight neighbours is True."""
    padded = np.pad(free, 1)
    height, width = free.shape
    shifted = [padded[i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return np.any(shifted, axis=0)


class PointMass:
    """One particle in a model of `build_model`. `position` and `velocity` are live views of MuJoCo's state, (2,) each, m and m/s."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self.model = model
        self.data = mujoco.MjData(model)
        self.position: NDArray[np.float64] = self.data.qpos
        self.velocity: NDArray[np.float64] = self.data.qvel
        self._ctrl = self.data.ctrl

    def reset(self, position: NDArray[np.floating], velocity: NDArray[np.floating]) -> None:
        """Put the particle at `position` (m) with `velocity` (m/s), forgetting everything before."""
        mujoco.mj_resetData(self.model, self.data)
        self.position[:] = position
        self.velocity[:] = velocity

    def step(self, action: Sequence[float] | NDArray[np.floating]) -> None:
        """Push with `action` (ax, ay), clipped to +-1, for one step of 0.01 s."""
        clip_velocity(self.velocity)
        self._ctrl[0] = action[0]
        self._ctrl[1] = action[1]
        mujoco.mj_step(self.model, self.data)

    def state(self) -> NDArray[np.float64]:
        """Everything a later `set_state` needs to continue bit for bit, warm start of the contact solver included."""
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(mujoco.mj_stateSize(self.model, kind))
        mujoco.mj_getState(self.model, self.data, state, kind)
        return state

    def set_state(self, state: NDArray[np.float64]) -> None:
        """Continue from an earlier `state`."""
        mujoco.mj_setState(self.model, self.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)


def clip_velocity(velocity: NDArray[np.float64]) -> None:
    """Clip (2,) `velocity` to +-5 m/s in place; plain comparisons, since this runs a million times in a generation."""
    for axis in (0, 1):
        value = velocity[axis]
        if value > MAX_VELOCITY:
            velocity[axis] = MAX_VELOCITY
        elif value < -MAX_VELOCITY:
            velocity[axis] = -MAX_VELOCITY


Goal = Literal["dataset", "random"]

GOAL_DISTANCE = 0.5
"""m: the reward is 1 within this distance of the goal."""
POSITION_NOISE = 0.1
"""m: starts and random goals are drawn up to this far from a nominal cell centre, on each axis."""
VELOCITY_NOISE = 0.1
"""m/s: standard deviation of the velocity at the start."""
_SPEED_BOUND = 10.0
"""m/s: bound of the observation space; no motion here passes 5.3."""
_START_STREAM, _GOAL_STREAM = 0, 1


class Maze2dEnv(gymnasium.Env[NDArray[np.float64], NDArray[np.float32]]):
    """One ball in one maze. `maze` is a `Maze`, a name of `MAZES` or an ASCII map; `goal` is "dataset" or "random".

    `reset(options={"start": (x, y), "velocity": (vx, vy), "goal": (x, y)})` sets any of the three, else they are drawn from the seed.
    `info["goal"]` is the goal (2,), `info["success"]` whether the ball is within 0.5 m of it.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 100}

    def __init__(self, maze: Maze | str = "umaze", *, goal: Goal = "dataset", render_mode: str | None = None) -> None:
        self.maze = as_maze(maze)
        self.goal_kind = check_goal_kind(goal)
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise UserError(f"render_mode {render_mode!r} is not available for maze2d; use 'rgb_array' or None")
        self.render_mode = render_mode
        self.observation_space: gymnasium.Space[Any] = observation_space(self.maze)
        self.action_space: gymnasium.Space[Any] = action_space()
        self.goal: NDArray[np.float64] = self.maze.fixed_goal.astype(np.float64)
        self._ball = PointMass(build_model(self.maze))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Start an episode; see the class for `options`. Raises `UserError` for a start or goal outside the free cells."""
        super().reset(seed=seed)
        options = check_options(options, ("start", "velocity", "goal"))
        position, velocity = draw_start(self.maze, self.np_random)
        goal = draw_goal(self.maze, self.np_random, self.goal_kind)
        if "start" in options:
            position = check_point(self.maze, options["start"], "start")
        if "velocity" in options:
            velocity = as_pair(options["velocity"], "velocity")
        if "goal" in options:
            goal = check_point(self.maze, options["goal"], "goal")
        self.goal = goal
        self._ball.reset(position, velocity)
        return self._observation(), self._info()

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """Push with `action` (2,), clipped to +-1, for 0.01 s. Raises `UserError` when it is not finite."""
        self._ball.step(check_actions(action, (2,)))
        info = self._info()
        return self._observation(), float(info["success"]), False, False, info

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """(h, w, 3) uint8 picture of the maze from above, ball blue, goal red; None without `render_mode="rgb_array"`."""
        return None if self.render_mode is None else picture(self.maze, self._ball.position, self.goal)

    def _observation(self) -> NDArray[np.float64]:
        return np.concatenate([self._ball.position, self._ball.velocity])

    def _info(self) -> dict[str, Any]:
        return {"goal": self.goal.copy(), "success": bool(reached(self._ball.position, self.goal))}


def as_maze(maze: Maze | str) -> Maze:
    """The `Maze` behind a name of `MAZES`, an id like maze2d-medium-v1, or an ASCII map. Raises `UserError`."""
    if isinstance(maze, Maze):
        return maze
    if "#" in maze:
        return Maze.from_ascii(maze)
    name = maze.removeprefix("maze2d-").removesuffix("-v1")
    if name not in MAZES:
        raise UserError(
            f"unknown maze {maze!r}; choose one of {', '.join(MAZES)} or give an ASCII map{did_you_mean(name, MAZES)}"
        )
    return MAZES[name]


def observation_space(maze: Maze) -> gymnasium.spaces.Box:
    """Box (4,) of positions inside the outer walls (m) and velocities (m/s)."""
    height, width = maze.shape
    low = np.array([-0.7, -0.7, -_SPEED_BOUND, -_SPEED_BOUND])
    return gymnasium.spaces.Box(
        low, np.array([height - 0.7, width - 0.7, _SPEED_BOUND, _SPEED_BOUND]), dtype=np.float64
    )


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
    """Start position, start velocity and goal (2,) each of episode number `episode` of `seed`: a function of these two numbers only.

    The start is the same for both kinds of goal.
    """
    position, velocity = draw_start(maze, np.random.default_rng([seed, episode, _START_STREAM]))
    return position, velocity, draw_goal(maze, np.random.default_rng([seed, episode, _GOAL_STREAM]), goal)


def reached(positions: NDArray[np.floating], goals: NDArray[np.floating]) -> NDArray[np.bool_]:
    """(...,) whether (..., 2) positions are within 0.5 m of (..., 2) goals: D4RL's sparse reward."""
    return np.asarray(np.linalg.norm(positions - goals, axis=-1) <= GOAL_DISTANCE)


def check_goal_kind(goal: str) -> Goal:
    """`goal` if it is one of "dataset", "random"; else `UserError`."""
    if goal not in get_args(Goal):
        raise UserError(
            f"goal {goal!r} is unknown; choose 'dataset' (D4RL's fixed cell) or 'random'{did_you_mean(str(goal), get_args(Goal))}"
        )
    return goal  # type: ignore[return-value]


def check_options(options: dict[str, Any] | None, allowed: tuple[str, ...]) -> dict[str, Any]:
    """A copy of reset options without absent ones; `UserError` for an unknown key."""
    options = {key: value for key, value in (options or {}).items() if value is not None}
    for key in options:
        if key not in allowed:
            raise UserError(f"unknown reset option {key!r}; allowed: {', '.join(allowed)}{did_you_mean(key, allowed)}")
    return options


def as_pair(value: Any, what: str) -> NDArray[np.float64]:
    """(2,) finite floats, or `UserError`."""
    pair = np.asarray(value, dtype=np.float64)
    if pair.shape != (2,) or not np.isfinite(pair).all():
        raise UserError(f"{what} must be two finite numbers, got {value!r}")
    return pair


def check_point(maze: Maze, value: Any, what: str) -> NDArray[np.float64]:
    """(2,) a position in a free cell, or `UserError`."""
    point = as_pair(value, what)
    if not maze.is_free(maze.cell_at(point)):
        raise UserError(
            f"{what} ({point[0]:g}, {point[1]:g}) is not in a free cell of maze '{maze.name}'; choose a point near an index (i, j) of Maze.free_cells"
        )
    return point


def check_actions(actions: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """`actions` as floats of `shape`, or `UserError` when the shape differs or one is not finite."""
    array = np.asarray(actions, dtype=np.float64)
    if array.shape != shape:
        raise UserError(f"actions have shape {array.shape}, expected {shape}: (ax, ay) for each ball")
    if not np.isfinite(array).all():
        raise UserError("an action is not finite (NaN or infinity); the plan or controller that made it has failed")
    return array


def picture(
    maze: Maze, position: NDArray[np.floating], goal: NDArray[np.floating], *, pixels_per_metre: int = 32
) -> NDArray[np.uint8]:
    """(H * ppm, W * ppm, 3) uint8 view from above: x runs down the rows, y along the columns."""
    image = np.where(np.kron(maze.walls, np.ones((pixels_per_metre,) * 2, dtype=bool))[..., None], 90, 240)
    image = np.repeat(image, 3, axis=-1).astype(np.uint8)
    rows, columns = (np.arange(n * pixels_per_metre) / pixels_per_metre - 0.7 for n in maze.shape)
    for point, radius, colour in ((goal, 0.2, (200, 60, 50)), (position, 0.1, (40, 90, 200))):
        inside = (rows[:, None] - point[0]) ** 2 + (columns[None, :] - point[1]) ** 2 <= radius**2
        image[inside] = colour
    return image

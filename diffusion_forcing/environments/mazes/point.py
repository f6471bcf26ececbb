"""OGBench's PointMaze: a disc is moved through wide corridors. Its mazes, tasks, physics, protocols and oracle.

Physics: a sphere of radius 0.7 m on two slide joints among boxes, in cells of 4 m. A step (0.1 s) moves it by 0.2 times
the action, stops it, and lets MuJoCo push it out of walls for five substeps of 0.02 s. There is no velocity to observe.
A test compares every step with OGBench's own environment.

- observation: (x, y) in metres, in OGBench's frame: the cell in row i and column j of a `Maze` is OGBench's cell (j, i),
  its centre at (4(i - 1), 4(j - 1)). action: (ax, ay) in [-1, 1].
- reward: 1 within 1 m of the goal, otherwise 0. An episode ends at its goal.
- `goal="dataset"` plays OGBench's five tasks in turn (episode i is task i mod 5 + 1), or goes from a start to the fixed
  goal in a maze of your own; `"random"` draws a start and another cell as the goal.

| protocol | start and goal | steps: medium, large, giant, other |
|---|---|---|
| `ogbench` | the cells' centres ± 1 m on each axis | 1000, 1000, 1000, 32 a cell of the longest way but at least 1000 |
| `mctd` | the cells' centres | 500, 500, 1000, as above |

`simulator="ogbench"` steps OGBench's environments themselves (`pip install 'diffusion-forcing[ogbench]'`) instead of the
physics rebuilt here; a test finds no difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast, get_args

import gymnasium
import mujoco
import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.environments.mazes.layout import FRAMES, Cell, Maze
from diffusion_forcing.environments.mazes.maze2d import Goal, PointMass, VectorMaze
from diffusion_forcing.errors import UserError, check_choice, did_you_mean

UNIT, OFFSET = FRAMES["point"]
"""m: side of a cell; centre of cell (0, 0) on both axes."""
STEP = 0.2
"""m: a step at full action, on each axis."""
GOAL_DISTANCE = 1.0
"""m: the goal is reached within this distance."""
POSITION_NOISE = 1.0
"""m: largest distance of a start or goal from the centre of its cell, on each axis."""
SUBSTEPS = 5
_RADIUS = 0.7
_FREE = UNIT / 2 - _RADIUS - 1e-6
"""m: a disc less far from the centre of its cell, on each axis, touches no wall."""
_ORDER = ((0, -1), (-1, 0), (0, 1), (1, 0))
"""Moves (di, dj), in the order in which OGBench's oracle prefers them among equally short paths."""


def point_maze(text: str, name: str = "custom") -> Maze:
    """The maze of an ASCII map with OGBench's cells."""
    return Maze.from_ascii(text, name=name, unit=UNIT, offset=OFFSET)


POINT_MAZES: dict[str, Maze] = {
    name: point_maze(text, name)
    for name, text in {
        "medium": r"########\#OO#OOO#\#OOOO#O#\###O#OO#\##OOOO##\#OO#O#O#\#OO#OOO#\########",
        "large": (
            r"#########\#OOOOO#O#\#O#O#OOO#\#O#O#####\#OOO#OOO#\###O###O#\#OOOOOOO#\#O###O###\#OOO#OOO#\#O#O#O#O#\#OOOOO#O#"
            r"\#########"
        ),
        "giant": (
            r"############\#OOOOO#OOOO#\###O#O#O##O#\#OOO#OOOO#O#\#O########O#\#O#OOOOOOOO#\#OOO#O#O#O##\#O###OO##OO#"
            r"\#OOO##OO##O#\###O#O#O#OO#\##OO#OOO#O##\#OO##O###OO#\#O#OOOOOO#O#\#O#O###O##O#\#OOOOO#OOOO#\############"
        ),
    }.items()
}
"""OGBench's mazes by name."""

TASKS: dict[str, tuple[tuple[Cell, Cell], ...]] = {
    "medium": (((1, 1), (6, 6)), ((1, 6), (6, 1)), ((3, 5), (2, 4)), ((5, 6), (1, 6)), ((6, 2), (1, 1))),
    "large": (((1, 1), (10, 7)), ((4, 5), (1, 7)), ((4, 7), (10, 1)), ((8, 3), (4, 5)), ((1, 1), (4, 5))),
    "giant": (((1, 1), (14, 10)), ((14, 1), (1, 10)), ((14, 8), (1, 1)), ((3, 8), (12, 5)), ((9, 5), (8, 3))),
}
"""OGBench's five tasks of a maze: start and goal cell."""


def as_point_maze(env_id: str, family: str = "pointmaze") -> Maze:
    """The maze of an id like pointmaze-giant-v0; `UserError` for another one."""
    name = env_id.removeprefix(f"{family}-").removesuffix("-v0")
    if f"{family}-{name}-v0" != env_id or name not in POINT_MAZES:
        raise UserError(
            f"dataset.env_id {env_id!r} is unknown; give {family}-{{{','.join(POINT_MAZES)}}}-v0 or dataset.maze_map"
            f"{did_you_mean(name, POINT_MAZES)}"
        )
    return POINT_MAZES[name]


_MJCF = """<mujoco model="point">
  <compiler inertiafromgeom="true"/>
  <option timestep="0.02" integrator="RK4"/>
  <default>
    <joint limited="false" armature="0" damping="0"/>
    <geom condim="3" conaffinity="0" margin="0" friction="1 0.5 0.5" density="100"/>
  </default>
  <worldbody>
    <geom type="plane" size="100 100 .2" conaffinity="1"/>
    <body>
      <geom type="sphere" size="{radius}" pos="0 0 {radius}"/>
      <joint type="slide" axis="1 0 0"/>
      <joint type="slide" axis="0 1 0"/>
    </body>
{walls}
  </worldbody>
</mujoco>"""


def build_point_model(maze: Maze) -> mujoco.MjModel:
    """MuJoCo model of `maze`, its walls in OGBench's order."""
    centres = maze.centre(np.argwhere(maze.walls.T)[:, ::-1])
    walls = [
        f'    <geom type="box" pos="{x} {y} {UNIT / 4}" size="{UNIT / 2} {UNIT / 2} {UNIT / 4}" contype="1" conaffinity="1"/>'
        for x, y in centres
    ]
    return mujoco.MjModel.from_xml_string(_MJCF.format(radius=_RADIUS, walls="\n".join(walls)))


class Point(PointMass):
    """One disc in `maze`, of whose `build_point_model` `model` is. `position` (2,) m and `velocity` (2,) m/s are views of
    MuJoCo's state; the velocity is what walls gave it in the last step."""

    def __init__(self, maze: Maze, model: mujoco.MjModel) -> None:
        super().__init__(model)
        self._walls: list[list[bool]] = maze.walls.tolist()

    def __getstate__(self) -> tuple[Any, ...]:
        return *super().__getstate__(), self._walls

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        super().__setstate__(state[:2])
        self._walls = state[2]

    def step(self, action: Sequence[float] | NDArray[np.floating]) -> None:
        """Move by 0.2 m times `action` (ax, ay) and out of walls."""
        x, y = self.position.tolist()
        x, y = x + STEP * float(action[0]), y + STEP * float(action[1])
        self.position[0], self.position[1] = x, y
        self.velocity[:] = 0.0
        if self._touches(x, y):
            mujoco.mj_step(self.model, self.data, SUBSTEPS)
        else:  # MuJoCo would not move it; twenty times faster
            self.data.qacc_warmstart[:] = 0.0

    def _touches(self, x: float, y: float) -> bool:
        """Whether a disc at (x, y) may touch a wall."""
        i, j = int((x - OFFSET) / UNIT + 0.5), int((y - OFFSET) / UNIT + 0.5)
        east, north = x - OFFSET - UNIT * i, y - OFFSET - UNIT * j  # from the centre of the cell
        di = 0 if abs(east) < _FREE else 1 if east > 0 else -1
        dj = 0 if abs(north) < _FREE else 1 if north > 0 else -1
        walls = self._walls
        return walls[i + di][j] or walls[i][j + dj] or walls[i + di][j + dj]


@lru_cache(maxsize=1000)
def next_centres(maze: Maze, goal: Cell) -> list[list[tuple[float, float]]]:
    """For each cell (i, j) the centre (x, y) m of the next cell on OGBench's shortest path to the cell `goal`; the
    cell's own at the goal and in walls."""
    distances = maze.distances(goal)

    def following(i: int, j: int) -> tuple[float, float]:
        near = [(i + di, j + dj) for di, dj in _ORDER if distances[i, j] > 0 and distances[i + di, j + dj] >= 0]
        x, y = maze.centre(min(near, key=lambda cell: distances[cell], default=(i, j))).tolist()
        return x, y

    return [[following(i, j) for j in range(maze.shape[1])] for i in range(maze.shape[0])]


def noisy_centre(
    maze: Maze, cell: Cell | NDArray[np.integer], rng: np.random.Generator, noise: float = POSITION_NOISE
) -> NDArray[np.float64]:
    """(2,) m: within `noise` metres on each axis of the centre of `cell`."""
    return maze.centre(cell) + rng.uniform(-noise, noise, size=2)


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
        self._simulator = simulator
        self._bodies = self._build(num_envs)

    def _build(self, count: int) -> list[Any]:
        """The bodies."""
        if self._simulator == "ogbench":
            return [_TheirPoint(self.maze) for _ in range(count)]
        model = build_point_model(self.maze)
        return [Point(self.maze, model) for _ in range(count)]

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
        self._put(index, position if start is None else start, rng)
        return goal

    def _put(self, index: int, position: NDArray[np.float64], rng: np.random.Generator) -> None:
        """Put body `index` at `position` (2,) m."""
        self._bodies[index].reset(position, np.zeros(2))

    def _move(self, actions: list[list[float]]) -> None:
        for point, action in zip(self._bodies, actions, strict=True):
            point.step(action)

    def _observations(self) -> NDArray[np.float64]:
        return np.array([point.position for point in self._bodies])


class _TheirPoint:
    """OGBench's own environment as a `Point`."""

    def __init__(self, maze: Maze) -> None:
        check_choice("maze of simulator=ogbench", maze.name, POINT_MAZES)
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
        positions = positions[:, :2]
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

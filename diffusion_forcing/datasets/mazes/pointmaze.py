"""Windows of OGBench's PointMaze for planning: positions (x, y), every `frame_skip`-th step, and mean actions.

Sources: `auto` uses OGBench's own file if it is in `save_dir` and otherwise generates (half a minute for a million
steps); `generate`; `ogbench` downloads the public file; `path` is any file in OGBench's format (`dataset.path`), with its
`-val.npz` beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.arrays import read_npz, write_npz
from diffusion_forcing.datasets.download import download
from diffusion_forcing.datasets.mazes.base import REMEDY, MazeDataset, MazeOptions, Steps, Store, Windows, checked_steps
from diffusion_forcing.environments.mazes.layout import NEIGHBOURS, Maze
from diffusion_forcing.environments.mazes.maze2d import Goal
from diffusion_forcing.environments.mazes.point import (
    GOAL_DISTANCE,
    POINT_MAZES,
    Point,
    Protocol,
    Simulator,
    VectorPointMaze,
    as_point_maze,
    build_point_model,
    next_centres,
    noisy_centre,
    point_maze,
    point_oracle_rewards,
    task_numbers,
)
from diffusion_forcing.errors import check_minimum, explaining_os_errors, require
from diffusion_forcing.limits import reading
from diffusion_forcing.options import Count
from diffusion_forcing.progress import Bar

# ------------------------------------------------------------------------------------------------------ OGBench's files
# OGBench's files of PointMaze: read them, write them, and make data as OGBench made its own.
#
# A file is a npz; `<name>-val.npz` beside it holds the validation part. One row a step, trajectories one after the other:
#
# | key | shape | |
# |---|---|---|
# | observations | (N, 2) float32 | x, y in metres, in OGBench's frame |
# | actions | (N, 2) float32 | in [-1, 1]; that of a trajectory's last row leads to a state that is not stored |
# | terminals | (N,) bool | True in the last row of a trajectory |
# | qpos, qvel | (N, 2) float32 | the simulator's state before the action; not read |
#
# `navigate`: an agent that knows the map walks to a dead end or crossing, then to the next. `stitch`: short trajectories,
# each to a goal four cells away. An action is the unit vector to the next cell's centre plus N(0, 0.5), clipped to ±1.

Kind = Literal["navigate", "stitch"]
REQUIRED = {"observations": (2,), "actions": (2,), "terminals": ()}
"""Arrays that are read: the shape of one row."""
STITCH_CELLS = 4
"""Moves from the start of a `stitch` trajectory to its goal."""

Arrays = dict[str, NDArray[Any]]


def validation_file(path: Path) -> Path:
    """The file of the validation part beside `path`."""
    return path.with_name(f"{path.stem}-val{path.suffix}")


def read_ogbench(
    path: Path, required: Mapping[str, tuple[int, ...]] = REQUIRED, whose: str = "OGBench's PointMaze data"
) -> Steps:
    """observations, actions, rewards (0) and `ends` (its terminals) of a file.

    `UserError` for a file that is damaged or no npz, lacks an array, has other shapes or values that are not finite, or
    marks no end of a trajectory.
    """
    with reading(path, REMEDY):
        arrays = read_npz(path)
    steps = checked_steps(path, arrays, required, whose=whose)
    ends = steps.pop("terminals") > 0
    require(bool(ends.any()), f"{path}: terminals marks no step; the last step of every trajectory must be True")
    return {**steps, "rewards": np.zeros(len(ends), np.float32), "ends": ends}


def write_ogbench(path: Path, trajectories: list[Arrays]) -> None:
    """Write trajectories to `path`, whole or not at all."""
    arrays = {key: np.concatenate([each[key] for each in trajectories]) for key in trajectories[0]}
    write_npz(path, arrays, compressed=True)


def generate(
    collector: Collector,
    path: Path,
    *,
    episodes: int = 1000,
    steps: int = 1001,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Write `episodes` trajectories of `steps` rows to `path`, and a tenth as many to the file of its validation part.

    Trajectory i of a part depends on (seed, part, i) alone. `UserError` for a folder that cannot be written.
    """
    counts = (episodes, max(1, episodes // 10))
    with (
        explaining_os_errors(f"cannot write {path}", "make room or choose another dataset.save_dir"),
        Bar(f"generating {path.stem}", total=sum(counts) * steps, unit="steps", show=progress) as bar,
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        # The training part last: where it exists, so does the other.
        for part, count, file in ((1, counts[1], validation_file(path)), (0, counts[0], path)):
            trajectories = []
            for index in range(count):
                trajectories.append(collector.trajectory(np.random.default_rng([seed, part, index]), steps))
                bar.advance(steps)
            write_ogbench(file, trajectories)


class Collector:
    """Makes trajectories in `maze`, one at a time."""

    def __init__(self, maze: Maze, *, kind: Kind = "navigate", action_noise: float = 0.5) -> None:
        self.maze, self.kind, self.action_noise = maze, kind, action_noise
        self._goals = vertices(maze)
        self._body = self._build()

    def _build(self) -> Any:
        """What moves."""
        return Point(self.maze, build_point_model(self.maze))

    def _start(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(2,) m: where a trajectory starts, and the cells of its goals."""
        maze, goals = self.maze, self._goals
        start = maze.free_cells[rng.integers(len(maze.free_cells))]
        if self.kind == "stitch":
            there = np.argwhere(maze.distances((int(start[0]), int(start[1]))) == STITCH_CELLS)
            goals = there if len(there) else start[None]
        return noisy_centre(maze, start, rng), goals

    def trajectory(self, rng: np.random.Generator, steps: int) -> Arrays:
        """Arrays of one trajectory, `steps` rows."""
        maze, point = self.maze, self._body
        noise = (self.action_noise * rng.standard_normal((steps, 2))).tolist()
        start, goals = self._start(rng)
        point.reset(start, np.zeros(2))
        unit, half = maze.unit, 0.5 - maze.offset / maze.unit
        rows: list[tuple[float, ...]] = []
        aims, goal_x, goal_y = self._goal(goals, rng)
        for noise_x, noise_y in noise:
            x, y = point.position.tolist()
            vx, vy = point.velocity.tolist()
            aim = aims[int(x / unit + half)][int(y / unit + half)]
            ax, ay = aim[0] - x, aim[1] - y
            length = math.hypot(ax, ay) + 1e-6
            ax = min(1.0, max(-1.0, ax / length + noise_x))
            ay = min(1.0, max(-1.0, ay / length + noise_y))
            rows.append((x, y, ax, ay, vx, vy))
            point.step((ax, ay))
            x, y = point.position.tolist()
            if self.kind == "navigate" and math.hypot(goal_x - x, goal_y - y) <= GOAL_DISTANCE:
                aims, goal_x, goal_y = self._goal(goals, rng)
        table = np.array(rows, dtype=np.float32)
        return {
            "observations": table[:, 0:2],
            "actions": table[:, 2:4],
            "terminals": np.arange(steps) == steps - 1,
            "qpos": table[:, 0:2],
            "qvel": table[:, 4:6],
        }

    def _goal(
        self, goals: NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[list[list[tuple[float, float]]], float, float]:
        """A new goal: the centres to aim for from each cell, and its position."""
        i, j = goals[rng.integers(len(goals))].tolist()
        x, y = noisy_centre(self.maze, (i, j), rng).tolist()
        return next_centres(self.maze, (i, j)), x, y


def vertices(maze: Maze) -> NDArray[np.int64]:
    """(n, 2) free cells that are not in the middle of a straight corridor."""

    def is_corridor(i: int, j: int) -> bool:
        left, right, above, below = (not maze.walls[i + di, j + dj] for di, dj in NEIGHBOURS)
        return (left and right and not above and not below) or (above and below and not left and not right)

    found = [cell for cell in maze.free_cells.tolist() if not is_corridor(*cell)]
    return np.array(found or maze.free_cells.tolist(), dtype=np.int64)


# --------------------------------------------------------------------------------------------------------- the data set

Source = Literal["auto", "generate", "ogbench", "path"]

OGBENCH_URL = "https://rail.eecs.berkeley.edu/datasets/ogbench"
MAX_JUMP = 1.0
"""m: two steps farther apart are not one motion (a step is 0.28 m, and walls push out a few centimetres)."""


@dataclass(frozen=True, kw_only=True)
class PointMazeOptions(MazeOptions):
    """The keys of `dataset.*`."""

    env_id: str = "pointmaze-medium-v0"
    """pointmaze-{medium,large,giant}-v0; ignored if `maze_map` is given."""
    kind: Kind = "navigate"
    """navigate: long walks from goal to goal; stitch: short ones, to goals four cells away."""
    source: Source = "auto"
    url: str = OGBENCH_URL
    """Web folder of pointmaze-*-v0.npz."""
    num_episodes: Count = 1000
    """Trajectories to generate, and a tenth as many for validation."""
    trajectory_len: int = 1001
    """Steps of a generated trajectory."""
    protocol: Protocol = "ogbench"
    """How episodes are played: noise on starts and goals, most steps (`environments/mazes/point.py`)."""
    simulator: Simulator = "built_in"
    """The physics: rebuilt here, or OGBench's own environments."""

    library = "OGBench"
    family: ClassVar[str] = "pointmaze"
    """What ids and file names begin with."""
    _observed = (2,)
    _mazes = (POINT_MAZES, point_maze, as_point_maze)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum("dataset.trajectory_len", self.trajectory_len, 2)

    @property
    def public_file(self) -> Path:
        return Path(self.save_dir) / f"{self.family}-{self.maze_name}-{self.kind}-v0.npz"

    @property
    def generated_file(self) -> Path:
        recipe = f"{self.num_episodes}x{self.trajectory_len}-noise{self.action_noise:g}-seed{self.generate_seed}"
        return Path(self.save_dir) / f"{self.family}-{self.maze_name}-{self.kind}-{recipe}.npz"


class PointMaze(MazeDataset):
    """Windows of trajectories in one of OGBench's mazes, or one of your own with its cells and physics."""

    Options = PointMazeOptions
    options: PointMazeOptions
    _validation: Store | None = None

    def prepare(self, progress: bool = True) -> None:
        super().prepare(progress)
        held_out = validation_file(self._find(progress))
        self._validation = self._mapped(held_out) if held_out.exists() else None

    def training(self) -> Windows:
        return Windows(self.store, self.options.window, skip=self.options.frame_skip)

    def validation(self) -> Windows:
        store = self.store
        return Windows(self._validation or store, self.options.window, skip=self.options.frame_skip)

    def environment(self, count: int, goal: Goal) -> VectorPointMaze:
        options = self.options
        return VectorPointMaze(self.maze, count, goal=goal, protocol=options.protocol, simulator=options.simulator)

    def oracle(self, episodes: int, *, seed: int, goal: Goal) -> NDArray[np.float64]:
        options = replace(self.options, simulator="built_in")
        return point_oracle_rewards(type(self)(options).environment(episodes, goal), seed=seed)

    def tasks(self, episodes: int, goal: Goal) -> NDArray[np.int64] | None:
        return task_numbers(self.maze, episodes, goal)

    def _mapped(self, source: Path) -> Store:
        return self._open(source, lambda: read_ogbench(source), max_jump=MAX_JUMP)

    def _download(self, public: Path, progress: bool) -> Path:
        options, held_out = self.options, validation_file(public)
        download(f"{options.url}/{held_out.name}", held_out, sha256="", progress=progress)
        return download(f"{options.url}/{public.name}", public, sha256=options.sha256, progress=progress)

    def _collector(self) -> Collector:
        return Collector(self.maze, kind=self.options.kind, action_noise=self.options.action_noise)

    def _generate(self, path: Path, progress: bool) -> None:
        options = self.options
        generate(
            self._collector(),
            path,
            episodes=options.num_episodes,
            steps=options.trajectory_len,
            seed=options.generate_seed,
            progress=progress,
        )

"""OGBench's files of PointMaze: read them, write them, and make data as OGBench made its own.

A file is a npz; `<name>-val.npz` beside it holds the validation part. One row a step, trajectories one after the other:

| key | shape | |
|---|---|---|
| observations | (N, 2) float32 | x, y in metres, in OGBench's frame |
| actions | (N, 2) float32 | in [-1, 1]; that of a trajectory's last row leads to a state that is not stored |
| terminals | (N,) bool | True in the last row of a trajectory |
| qpos, qvel | (N, 2) float32 | the simulator's state before the action; not read |

`navigate`: an agent that knows the map walks to a dead end or crossing, then to the next. `stitch`: short trajectories,
each to a goal four cells away. An action is the unit vector to the next cell's centre plus N(0, 0.5), clipped to ±1.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.arrays import read_npz, write_npz
from diffusion_forcing.datasets.mazes.base import REMEDY, checked_steps
from diffusion_forcing.datasets.windows import Steps
from diffusion_forcing.environments.mazes.layout import NEIGHBOURS, Maze
from diffusion_forcing.environments.mazes.point import (
    GOAL_DISTANCE,
    Point,
    build_point_model,
    next_centres,
    noisy_centre,
)
from diffusion_forcing.errors import explaining_os_errors, require
from diffusion_forcing.limits import reading
from diffusion_forcing.progress import Bar

Kind = Literal["navigate", "stitch"]
REQUIRED = {"observations": (2,), "actions": (2,), "terminals": ()}
"""Arrays that are read: the shape of one row."""
STITCH_CELLS = 4
"""Moves from the start of a `stitch` trajectory to its goal."""

Arrays = dict[str, NDArray[Any]]


def validation_file(path: Path) -> Path:
    """The file of the validation part beside `path`."""
    return path.with_name(f"{path.stem}-val{path.suffix}")


def read(path: Path) -> Steps:
    """observations, actions, rewards (0) and `ends` (its terminals) of a file.

    `UserError` for a file that is damaged or no npz, lacks an array, has other shapes or values that are not finite, or
    marks no end of a trajectory.
    """
    with reading(path, REMEDY):
        arrays = read_npz(path)
    steps = checked_steps(path, arrays, REQUIRED, whose="OGBench's PointMaze data")
    ends = steps.pop("terminals") > 0
    require(bool(ends.any()), f"{path}: terminals marks no step; the last step of every trajectory must be True")
    return {**steps, "rewards": np.zeros(len(ends), np.float32), "ends": ends}


def write(path: Path, trajectories: list[Arrays]) -> None:
    """Write trajectories to `path`, whole or not at all."""
    arrays = {key: np.concatenate([each[key] for each in trajectories]) for key in trajectories[0]}
    write_npz(path, arrays, compressed=True)


def generate(
    maze: Maze,
    path: Path,
    *,
    kind: Kind = "navigate",
    episodes: int = 1000,
    steps: int = 1001,
    action_noise: float = 0.5,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Write `episodes` trajectories of `steps` rows to `path`, and a tenth as many to the file of its validation part.

    Trajectory i of a part depends on (seed, part, i) alone. `UserError` for a folder that cannot be written.
    """
    collector = Collector(maze, kind=kind, action_noise=action_noise)
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
            write(file, trajectories)


class Collector:
    """Makes trajectories in `maze`, one at a time."""

    def __init__(self, maze: Maze, *, kind: Kind = "navigate", action_noise: float = 0.5) -> None:
        self.maze, self.kind, self.action_noise = maze, kind, action_noise
        self._point = Point(maze, build_point_model(maze))
        self._goals = vertices(maze)

    def trajectory(self, rng: np.random.Generator, steps: int) -> Arrays:
        """Arrays of one trajectory, `steps` rows."""
        maze, point = self.maze, self._point
        noise = (self.action_noise * rng.standard_normal((steps, 2))).tolist()
        start = maze.free_cells[rng.integers(len(maze.free_cells))]
        goals = self._goals
        if self.kind == "stitch":
            there = np.argwhere(maze.distances((int(start[0]), int(start[1]))) == STITCH_CELLS)
            goals = there if len(there) else start[None]
        point.reset(noisy_centre(maze, start, rng), np.zeros(2))
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

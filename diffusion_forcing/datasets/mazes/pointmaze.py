"""Windows of OGBench's PointMaze for planning: positions (x, y), every `frame_skip`-th step, and mean actions.

Sources: `auto` uses OGBench's own file if it is in `save_dir` and otherwise generates (half a minute for a million
steps); `generate`; `ogbench` downloads the public file; `path` is any file in OGBench's format (`dataset.path`), with its
`-val.npz` beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.download import download
from diffusion_forcing.datasets.mazes import ogbench
from diffusion_forcing.datasets.mazes.base import MazeDataset, MazeOptions
from diffusion_forcing.datasets.windows import Store, Windows
from diffusion_forcing.environments.mazes.maze2d import Goal
from diffusion_forcing.environments.mazes.point import (
    POINT_MAZES,
    Protocol,
    Simulator,
    VectorPointMaze,
    as_point_maze,
    point_maze,
    point_oracle_rewards,
    task_numbers,
)
from diffusion_forcing.errors import check_minimum
from diffusion_forcing.options import Count

Source = Literal["auto", "generate", "ogbench", "path"]

OGBENCH_URL = "https://rail.eecs.berkeley.edu/datasets/ogbench"
_MAX_JUMP = 1.0
"""m: two steps farther apart are not one motion (a step is 0.28 m, and walls push out a few centimetres)."""


@dataclass(frozen=True, kw_only=True)
class PointMazeOptions(MazeOptions):
    """The keys of `dataset.*`."""

    env_id: str = "pointmaze-medium-v0"
    """pointmaze-{medium,large,giant}-v0; ignored if `maze_map` is given."""
    kind: ogbench.Kind = "navigate"
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
    _observed = (2,)
    _mazes = (POINT_MAZES, point_maze, as_point_maze)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum("dataset.trajectory_len", self.trajectory_len, 2)

    @property
    def public_file(self) -> Path:
        return Path(self.save_dir) / f"pointmaze-{self.maze_name}-{self.kind}-v0.npz"

    @property
    def generated_file(self) -> Path:
        recipe = f"{self.num_episodes}x{self.trajectory_len}-noise{self.action_noise:g}-seed{self.generate_seed}"
        return Path(self.save_dir) / f"pointmaze-{self.maze_name}-{self.kind}-{recipe}.npz"


class PointMaze(MazeDataset):
    """Windows of trajectories in one of OGBench's mazes, or one of your own with its cells and physics."""

    Options = PointMazeOptions
    options: PointMazeOptions
    _validation: Store | None = None

    def prepare(self, progress: bool = True) -> None:
        super().prepare(progress)
        held_out = ogbench.validation_file(self._find(progress))
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
        return point_oracle_rewards(
            VectorPointMaze(self.maze, episodes, goal=goal, protocol=self.options.protocol), seed=seed
        )

    def tasks(self, episodes: int, goal: Goal) -> NDArray[np.int64] | None:
        return task_numbers(self.maze, episodes, goal)

    def _mapped(self, source: Path) -> Store:
        return self._open(source, lambda: ogbench.read(source), max_jump=_MAX_JUMP)

    def _download(self, public: Path, progress: bool) -> Path:
        options, held_out = self.options, ogbench.validation_file(public)
        download(f"{options.url}/{held_out.name}", held_out, sha256="", progress=progress)
        return download(f"{options.url}/{public.name}", public, sha256=options.sha256, progress=progress)

    def _generate(self, path: Path, progress: bool) -> None:
        options = self.options
        ogbench.generate(
            self.maze,
            path,
            kind=options.kind,
            episodes=options.num_episodes,
            steps=options.trajectory_len,
            action_noise=options.action_noise,
            seed=options.generate_seed,
            progress=progress,
        )

"""Windows of maze steps for planning: where the data comes from, how it is cut, and what normalises it.

`Maze2d(options)` does nothing until `prepare()`, which finds, generates or downloads the data and maps it into memory.
Sources: `auto` uses D4RL's file if it is in `save_dir` and otherwise generates (eight seconds for a million steps);
`generate`; `d4rl` downloads the public file; `path` is any file in D4RL's schema (`dataset.path`); `minari` a Minari
data set of PointMaze (`dataset.path`).

The lengths of the configured means decide what a planner sees: x (2 observation columns, no actions), xv (4, none), xva
(4 and 2). Batches always contain all columns, in the units of the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.download import download
from diffusion_forcing.datasets.mazes import d4rl, minari
from diffusion_forcing.datasets.mazes.base import MazeDataset, MazeOptions
from diffusion_forcing.datasets.mazes.generate import generate
from diffusion_forcing.datasets.windows import Store, Windows
from diffusion_forcing.environments.mazes.layout import MAZES, Maze, maze_of_id
from diffusion_forcing.environments.mazes.maze2d import Goal, environment_spec
from diffusion_forcing.environments.mazes.vector import VectorMaze2d
from diffusion_forcing.environments.mazes.waypoint import oracle_rewards
from diffusion_forcing.errors import check_minimum, require

Source = Literal["auto", "d4rl", "generate", "minari", "path"]

_MINARI = "diffusion_forcing"
"""The namespace of what is exported."""
D4RL_URL = "http://rail.eecs.berkeley.edu/datasets/offline_rl/maze2d"


@dataclass(frozen=True, kw_only=True)
class Maze2dOptions(MazeOptions):
    """The keys of `dataset.*`."""

    env_id: str = "maze2d-medium-v1"
    """maze2d-{umaze,medium,large}-v1; ignored if `maze_map` is given."""
    source: Source = "auto"
    """`path` takes a file in D4RL's schema (`dataset.path`), `minari` the folder or id of a Minari data set."""
    d4rl_url: str = D4RL_URL
    """Web folder of maze2d-*-sparse-v1.hdf5."""
    num_steps: int = 1_000_000
    """Steps to generate."""
    validation_fraction: float = 0.02
    """Share of the steps, the last ones, kept out of training; if 0, validation windows are training windows."""

    library = "D4RL"
    _from_path = ("path", "minari")
    _mazes = (MAZES, Maze.from_ascii, maze_of_id)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum("dataset.num_steps", self.num_steps, 2)
        fraction = self.validation_fraction
        require(0 <= fraction < 1, f"dataset.validation_fraction must be in [0, 1), got {fraction}")

    @property
    def public_file(self) -> Path:
        return Path(self.save_dir) / f"maze2d-{self.maze.name}-sparse-v1.hdf5"

    @property
    def generated_file(self) -> Path:
        recipe = f"{self.num_steps}-noise{self.action_noise:g}-seed{self.generate_seed}"
        return Path(self.save_dir) / f"maze2d-{self.maze_name}-{recipe}.hdf5"


class Maze2d(MazeDataset):
    """Windows of runs in one maze of D4RL's kind. `prepare()` first, then `training()` and `validation()`."""

    Options = Maze2dOptions
    options: Maze2dOptions

    def training(self) -> Windows:
        return Windows(self.store, self.options.window, skip=self.options.frame_skip, end=self._border())

    def validation(self) -> Windows:
        border = self._border()
        begin = 0 if border == len(self.store) else border
        return Windows(self.store, self.options.window, skip=self.options.frame_skip, begin=begin)

    @property
    def reference(self) -> str | None:  # type: ignore[override]
        """D4RL's name of the maze, if it is one of its three."""
        return None if self.maze.name == "custom" else self.maze.name

    def environment(self, count: int, goal: Goal) -> VectorMaze2d:
        return VectorMaze2d(self.maze, count, goal=goal)

    def oracle(self, episodes: int, *, seed: int, goal: Goal) -> NDArray[np.float64]:
        return oracle_rewards(self.maze, episodes, seed=seed, goal=goal)

    def export_minari(self, dataset_id: str | None = None) -> Path:
        """Write the data as a local Minari data set, `diffusion_forcing/<maze>-v0` unless `dataset_id` is given; its folder."""
        maze, name = self.maze, dataset_id or f"{_MINARI}/{self.options.maze_name}-v0"
        return minari.write(name, self.store, environment=environment_spec(maze), steps=maze.max_steps)

    def _border(self) -> int:
        """First step of the validation part."""
        return len(self.store) - round(self.options.validation_fraction * len(self.store))

    def _find(self, progress: bool) -> Path:
        if self.options.source == "minari":
            return minari.source_file(minari.find(self.options.path or ""))
        return super()._find(progress)

    def _mapped(self, source: Path) -> Store:
        if self.options.source == "minari":
            return self._open(source, lambda: minari.read(source.parents[1], self.maze))
        return self._open(source, lambda: d4rl.read(source))

    def _download(self, public: Path, progress: bool) -> Path:
        options = self.options
        return download(f"{options.d4rl_url}/{public.name}", public, sha256=options.sha256, progress=progress)

    def _generate(self, path: Path, progress: bool) -> None:
        options = self.options
        generate(
            self.maze,
            path,
            num_steps=options.num_steps,
            action_noise=options.action_noise,
            seed=options.generate_seed,
            progress=progress,
        )

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
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.download import download
from diffusion_forcing.datasets.mazes import d4rl, minari
from diffusion_forcing.datasets.mazes.base import MazeDataset, MazeOptions
from diffusion_forcing.datasets.mazes.generate import generate
from diffusion_forcing.datasets.windows import Windows
from diffusion_forcing.environments.mazes.layout import MAZES, Maze, as_maze
from diffusion_forcing.environments.mazes.maze2d import Goal
from diffusion_forcing.environments.mazes.vector import VectorMaze2d
from diffusion_forcing.environments.mazes.waypoint import oracle_rewards
from diffusion_forcing.errors import UserError, check_choice, check_minimum, require
from diffusion_forcing.files import locked
from diffusion_forcing.terminal import say

Source = Literal["auto", "d4rl", "generate", "minari", "path"]

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
    sha256: str = ""
    """SHA-256 that the downloaded file must have; D4RL publishes none."""
    num_steps: int = 1_000_000
    """Steps to generate."""
    validation_fraction: float = 0.02
    """Share of the steps, the last ones, kept out of training; if 0, validation windows are training windows."""

    def _check_sources(self) -> None:
        maze = self.maze
        check_choice("dataset.source", self.source, get_args(Source))
        require(
            bool(self.path) or self.source not in ("path", "minari"),
            f"dataset.source={self.source} needs dataset.path=<file or folder>",
        )
        require(
            not self.path or self.source not in ("d4rl", "generate"),
            f"dataset.path is not used with dataset.source={self.source}; drop one, or use dataset.source=path",
        )
        require(
            self.source != "d4rl" or maze.name != "custom",
            "dataset.source=d4rl has no data for a custom dataset.maze_map; use dataset.source=generate",
        )
        check_minimum("dataset.num_steps", self.num_steps, 2)
        fraction = self.validation_fraction
        require(0 <= fraction < 1, f"dataset.validation_fraction must be in [0, 1), got {fraction}")

    @property
    def maze(self) -> Maze:
        """The maze of `env_id` or `maze_map`."""
        if self.maze_map is not None:
            try:
                custom = Maze.from_ascii(self.maze_map)
            except UserError as error:
                raise UserError(f"dataset.maze_map: {error}") from error
            return next((maze for maze in MAZES.values() if maze.rows == custom.rows), custom)
        if not (self.env_id.startswith("maze2d-") and self.env_id.endswith("-v1")):
            raise UserError(
                f"dataset.env_id {self.env_id!r} is unknown; give maze2d-{{umaze,medium,large}}-v1 or dataset.maze_map"
            )
        return as_maze(self.env_id)

    @property
    def generated_file(self) -> Path:
        """Path of generated data; its name contains everything that determines its content."""
        recipe = f"{self.num_steps}-noise{self.action_noise:g}-seed{self.generate_seed}"
        return Path(self.save_dir) / f"maze2d-{self.maze_name}-{recipe}.hdf5"


class Maze2d(MazeDataset):
    """Windows of runs in one maze. `prepare()` first, then `training()` and `validation()`."""

    Options = Maze2dOptions

    options: Maze2dOptions

    def prepare(self, progress: bool = True) -> None:
        options = self.options
        if options.source == "minari":
            folder = minari.find(options.path or "")
            self._store = self._open(minari.source_file(folder), lambda: minari.read(folder, self.maze))
            return
        source = self._find(progress)
        self._store = self._open(source, lambda: d4rl.read(source))
        if progress:
            self._note_odd_statistics()

    def training(self) -> Windows:
        """All windows before the validation part."""
        return Windows(self.store, self.options.window, skip=self.options.frame_skip, end=self._border())

    def validation(self) -> Windows:
        """Windows of the last `validation_fraction` of the steps; all windows if that is 0."""
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

    def generate(self, progress: bool = True) -> Path:
        """Generate the file of these options unless it exists, print its path and statistics, and return the path."""
        path = self._generate(progress)
        self._store = self._open(path, lambda: d4rl.read(path))
        self._print_statistics(path)
        return path

    def _border(self) -> int:
        """First step of the validation part."""
        return len(self.store) - round(self.options.validation_fraction * len(self.store))

    def _find(self, progress: bool) -> Path:
        """The data file, generated or downloaded if the source says so."""
        options = self.options
        public = Path(options.save_dir) / f"maze2d-{self.maze.name}-sparse-v1.hdf5"
        if options.path:
            return Path(options.path).expanduser()
        if options.source in ("auto", "d4rl") and self.maze.name != "custom" and public.exists():
            return public
        if options.source == "d4rl":
            with locked(public):
                url = f"{options.d4rl_url}/{public.name}"
                return download(url, public, sha256=options.sha256, progress=progress)
        if options.source == "auto" and progress and not options.generated_file.exists():
            hint = "" if self.maze.name == "custom" else " (dataset.source=d4rl downloads D4RL's own)"
            what = f"{options.num_steps:,} steps of maze '{self.maze.name}'"
            say(f"no data in {options.save_dir} yet: generating {what}{hint}")
        return self._generate(progress)

    def _generate(self, progress: bool) -> Path:
        options, path = self.options, self.options.generated_file
        if path.exists():
            return path
        with locked(path):
            if not path.exists():  # another process may have made it
                generate(
                    self.maze,
                    path,
                    num_steps=options.num_steps,
                    action_noise=options.action_noise,
                    seed=options.generate_seed,
                    progress=progress,
                )
        return path

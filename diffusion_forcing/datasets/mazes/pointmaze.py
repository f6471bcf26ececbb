"""Windows of OGBench's PointMaze for planning: positions (x, y), every `frame_skip`-th step, and mean actions.

Sources: `auto` uses OGBench's own file if it is in `save_dir` and otherwise generates (half a minute for a million
steps); `generate`; `ogbench` downloads the public file; `path` is any file in OGBench's format (`dataset.path`), with its
`-val.npz` beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.download import download
from diffusion_forcing.datasets.mazes import ogbench
from diffusion_forcing.datasets.mazes.base import MazeDataset, MazeOptions
from diffusion_forcing.datasets.windows import Store, Windows
from diffusion_forcing.environments.mazes.layout import Maze
from diffusion_forcing.environments.mazes.maze2d import Goal
from diffusion_forcing.environments.mazes.point import POINT_MAZES, as_point_maze, point_maze
from diffusion_forcing.environments.mazes.vector_point import (
    Protocol,
    Simulator,
    VectorPointMaze,
    point_oracle_rewards,
    task_numbers,
)
from diffusion_forcing.errors import UserError, check_choice, check_minimum, require
from diffusion_forcing.files import locked
from diffusion_forcing.terminal import say

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
    sha256: str = ""
    """SHA-256 that the downloaded training file must have; OGBench publishes none."""
    num_episodes: int = 1000
    """Trajectories to generate, and a tenth as many for validation."""
    trajectory_len: int = 1001
    """Steps of a generated trajectory."""
    protocol: Protocol = "ogbench"
    """How episodes are played: noise on starts and goals, most steps (`environments/mazes/vector_point.py`)."""
    simulator: Simulator = "built_in"
    """The physics: rebuilt here, or OGBench's own environments."""

    _observed: ClassVar[tuple[int, ...]] = (2,)

    def _check_sources(self) -> None:
        maze = self.maze
        check_choice("dataset.source", self.source, get_args(Source))
        check_choice("dataset.kind", self.kind, get_args(ogbench.Kind))
        check_choice("dataset.protocol", self.protocol, get_args(Protocol))
        check_choice("dataset.simulator", self.simulator, get_args(Simulator))
        require(bool(self.path) or self.source != "path", "dataset.source=path needs dataset.path=<file>")
        require(
            not self.path or self.source in ("auto", "path"),
            f"dataset.path is not used with dataset.source={self.source}; drop one, or use dataset.source=path",
        )
        require(
            self.source != "ogbench" or maze.name != "custom",
            "dataset.source=ogbench has no data for a custom dataset.maze_map; use dataset.source=generate",
        )
        check_minimum("dataset.num_episodes", self.num_episodes, 1)
        check_minimum("dataset.trajectory_len", self.trajectory_len, 2)

    @property
    def maze(self) -> Maze:
        """The maze of `env_id` or `maze_map`."""
        if self.maze_map is None:
            return as_point_maze(self.env_id)
        try:
            custom = point_maze(self.maze_map)
        except UserError as error:
            raise UserError(f"dataset.maze_map: {error}") from error
        return next((maze for maze in POINT_MAZES.values() if maze.rows == custom.rows), custom)

    @property
    def public_file(self) -> Path:
        """Path of OGBench's own training part."""
        return Path(self.save_dir) / f"pointmaze-{self.maze_name}-{self.kind}-v0.npz"

    @property
    def generated_file(self) -> Path:
        """Path of generated data; its name contains everything that determines its content."""
        recipe = f"{self.num_episodes}x{self.trajectory_len}-noise{self.action_noise:g}-seed{self.generate_seed}"
        return Path(self.save_dir) / f"pointmaze-{self.maze_name}-{self.kind}-{recipe}.npz"


class PointMaze(MazeDataset):
    """Windows of trajectories in one of OGBench's mazes, or one of your own with its cells and physics."""

    Options = PointMazeOptions
    options: PointMazeOptions
    keys = ("dataset.env_id", "dataset.source=generate")
    _validation: Store | None = None

    def prepare(self, progress: bool = True) -> None:
        source = self._find(progress)
        self._store = self._mapped(source)
        held_out = ogbench.validation_file(source)
        self._validation = self._mapped(held_out) if held_out.exists() else None
        if progress:
            self._note_odd_statistics()

    def training(self) -> Windows:
        """All windows of the training part."""
        return Windows(self.store, self.options.window, skip=self.options.frame_skip)

    def validation(self) -> Windows:
        """Windows of the validation part; the training windows where there is no such file."""
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

    def generate(self, progress: bool = True) -> Path:
        """Generate the files of these options unless they exist, print statistics, and return the training part's path."""
        path = self._generate(progress)
        self._store = self._mapped(path)
        self._print_statistics(path)
        return path

    def _mapped(self, source: Path) -> Store:
        return self._open(source, lambda: ogbench.read(source), max_jump=_MAX_JUMP)

    def _find(self, progress: bool) -> Path:
        """The training part's file, generated or downloaded if the source says so."""
        options, public = self.options, self.options.public_file
        if options.path:
            return Path(options.path).expanduser()
        if options.source in ("auto", "ogbench") and self.maze.name != "custom" and public.exists():
            return public
        if options.source == "ogbench":
            with locked(public):
                held_out = ogbench.validation_file(public)
                download(f"{options.url}/{held_out.name}", held_out, sha256="", progress=progress)
                return download(f"{options.url}/{public.name}", public, sha256=options.sha256, progress=progress)
        if options.source == "auto" and progress and not options.generated_file.exists():
            hint = "" if self.maze.name == "custom" else " (dataset.source=ogbench downloads OGBench's own)"
            what = f"{options.num_episodes:,} trajectories in maze '{self.maze.name}'"
            say(f"no data in {options.save_dir} yet: generating {what}{hint}")
        return self._generate(progress)

    def _generate(self, progress: bool) -> Path:
        options, path = self.options, self.options.generated_file
        if path.exists():
            return path
        with locked(path):
            if not path.exists():  # another process may have made it
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
        return path

"""Windows of maze steps for planning: where the data comes from, how it is cut, and what normalises it.

`Maze2d(options)` does nothing until `prepare()`, which finds, generates or downloads the data and maps it into memory.
Sources: `auto` uses D4RL's file if it is in `save_dir` and otherwise generates (eight seconds for a million steps);
`generate`; `d4rl` downloads the public file; `path` is any file in D4RL's schema (`dataset.path`); `minari` a Minari
data set of PointMaze (`dataset.path`).

The lengths of the configured means decide what a planner sees: x (2 observation columns, no actions), xv (4, none), xva
(4 and 2). Batches always contain all columns, in the units of the data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from diffusion_forcing.datasets.download import download
from diffusion_forcing.datasets.mazes import d4rl, minari
from diffusion_forcing.datasets.mazes.generate import generate
from diffusion_forcing.datasets.windows import Steps, Store, Windows, open_store
from diffusion_forcing.environments.mazes.layout import MAZES, Maze, as_maze
from diffusion_forcing.errors import (
    UserError,
    check_choice,
    check_minimum,
    check_not_negative,
    check_positive,
    require,
)
from diffusion_forcing.files import locked
from diffusion_forcing.terminal import say

Source = Literal["auto", "d4rl", "generate", "minari", "path"]

D4RL_URL = "http://rail.eecs.berkeley.edu/datasets/offline_rl/maze2d"
_MAX_IN_WALLS = 0.01
"""Share of positions that may lie in walls; more, and the data is of another maze."""
_ODD_RATIO = 10.0
"""A deviation this many times off the data's is noted; the released ones are up to 8 times larger on purpose."""


@dataclass(frozen=True, kw_only=True)
class Maze2dOptions:
    """The keys of `dataset.*`. Lengths of the means: observations 2 (x) or 4 (x and v), actions 0 or 2."""

    env_id: str = "maze2d-medium-v1"
    """maze2d-{umaze,medium,large}-v1; ignored if `maze_map` is given."""
    maze_map: str | None = None
    r"""Any maze as text, rows separated by `\`: '#####\#OOG#\#####'."""
    episode_len: int = 600
    """Steps of 0.01 s in a window after its first."""
    gamma: float = 1.0
    """Discount of returns, in (0, 1]; goals are reached by guidance here, so nothing is discounted."""
    observation_mean: tuple[float, ...] = (3.5092521, 3.4765592, 4.1e-5, 3.85e-5)
    observation_std: tuple[float, ...] = (1.3371079, 1.52102, 2.3407657, 2.3693702)
    action_mean: tuple[float, ...] = (0.0, 0.0)
    action_std: tuple[float, ...] = (0.740, 0.746)
    reward_mean: float = 0.0
    reward_std: float = 1.0
    save_dir: str = "data/maze2d"
    """Folder of the data files and their caches."""
    source: Source = "auto"
    path: str | None = None
    """File in D4RL's schema (`source=path`), or folder or id of a Minari data set (`source=minari`)."""
    d4rl_url: str = D4RL_URL
    """Web folder of maze2d-*-sparse-v1.hdf5."""
    sha256: str = ""
    """SHA-256 that the downloaded file must have; D4RL publishes none."""
    num_steps: int = 1_000_000
    """Steps to generate."""
    action_noise: float = 0.5
    """Standard deviation of the noise on generated actions; 0.5 gives D4RL's statistics."""
    generate_seed: int = 0
    validation_fraction: float = 0.02
    """Share of the steps, the last ones, kept out of training; if 0, validation windows are training windows."""

    def __post_init__(self) -> None:
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
        for key, least in (("episode_len", 1), ("num_steps", 2), ("generate_seed", 0)):
            check_minimum(f"dataset.{key}", getattr(self, key), least)
        check_not_negative("dataset.action_noise", self.action_noise)
        fraction = self.validation_fraction
        require(0 <= fraction < 1, f"dataset.validation_fraction must be in [0, 1), got {fraction}")
        check_positive("dataset.reward_std", self.reward_std)
        for kind, widths in (("observation", (2, 4)), ("action", (0, 2))):
            mean, std = getattr(self, f"{kind}_mean"), getattr(self, f"{kind}_std")
            if len(mean) not in widths or len(std) != len(mean):
                raise UserError(
                    f"dataset.{kind}_mean has {len(mean)} numbers and dataset.{kind}_std {len(std)}; "
                    f"give both {widths[0]} or both {widths[1]} (docs/planning.md)"
                )
            require(
                bool(np.isfinite([*mean, *std]).all()) and all(value > 0 for value in std),
                f"dataset.{kind}_mean and dataset.{kind}_std must be finite, the latter above 0, "
                f"got {list(mean)} and {list(std)}",
            )

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
    def window(self) -> int:
        """L: steps in a window."""
        return self.episode_len + 1

    @property
    def generated_file(self) -> Path:
        """Path of generated data; its name contains everything that determines its content."""
        maze = self.maze
        name = maze.name if maze.name != "custom" else f"custom-{hashlib.sha256(maze.text.encode()).hexdigest()[:8]}"
        recipe = f"{self.num_steps}-noise{self.action_noise:g}-seed{self.generate_seed}"
        return Path(self.save_dir) / f"maze2d-{name}-{recipe}.hdf5"

    def cache_folder(self, source: Path) -> Path:
        """Folder of the memory-mapped copy of `source`, in `save_dir` also if the source is elsewhere."""
        folder = Path(self.save_dir)
        if source.parent.resolve() == folder.resolve():
            return folder / f"{source.name}.cache"
        digest = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:8]
        return folder / f"{source.name}-{digest}.cache"


class Maze2d:
    """Windows of runs in one maze. `prepare()` first, then `training()` and `validation()`."""

    Options = Maze2dOptions

    def __init__(self, options: Maze2dOptions) -> None:
        self.options = options
        self._store: Store | None = None

    @property
    def maze(self) -> Maze:
        """The maze of the data."""
        return self.options.maze

    @property
    def store(self) -> Store:
        """The steps in memory-mapped arrays; calls `prepare` if that was not done."""
        if self._store is None:
            self.prepare(progress=False)
        assert self._store is not None
        return self._store

    def prepare(self, progress: bool = True) -> None:
        """Make sure that the data is on disk and mapped. `UserError` if it is unavailable or damaged."""
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
        return Windows(self.store, self.options.window, end=self._border())

    def validation(self) -> Windows:
        """Windows of the last `validation_fraction` of the steps; all windows if that is 0."""
        border = self._border()
        return Windows(self.store, self.options.window, begin=0 if border == len(self.store) else border)

    def generate(self, progress: bool = True) -> Path:
        """Generate the file of these options unless it exists, print its path and statistics, and return the path."""
        path = self._generate(progress)
        self._store = self._open(path, lambda: d4rl.read(path))
        say(f"{path}: {len(self._store):,} steps")
        for name, values in self._store.statistics.items():
            # Means and deviations are printed as command-line overrides.
            key = f"dataset.{name}" if name.endswith(("mean", "std")) else name
            say(f"  {key}=[{','.join(f'{value:.7g}' for value in values)}]")
        return path

    def _note_odd_statistics(self) -> None:
        """Print a line if the options would normalise this data badly, as those of another maze do."""
        for kind in ("observation", "action"):
            mean, std = (np.array(getattr(self.options, f"{kind}_{name}")) for name in ("mean", "std"))
            true_mean, true_std = (
                np.array(self.store.statistics[f"{kind}_{name}"])[: len(mean)] for name in ("mean", "std")
            )
            ratio = std / np.maximum(true_std, 1e-6)
            is_odd = (np.abs(mean - true_mean) > true_std) | (ratio > _ODD_RATIO) | (ratio < 1 / _ODD_RATIO)
            if is_odd.any():
                measured = " ".join(
                    f"dataset.{kind}_{name}={np.round(value, 4).tolist()}".replace(", ", ",")
                    for name, value in (("mean", true_mean), ("std", true_std))
                )
                say(f"note: dataset.{kind}_mean and _std are far from this data's, which are {measured}")

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

    def _open(self, source: Path, read: Callable[[], Steps]) -> Store:
        """The store of `source`, its positions checked against the maze."""
        if not source.exists():
            raise UserError(f"data file {source} does not exist; place it there, or use dataset.source=generate")

        def read_checked() -> Steps:
            steps = read()
            outside = 1 - float(self.maze.contains(steps["observations"][:, :2]).mean())
            if outside > _MAX_IN_WALLS:
                raise UserError(
                    f"{source}: {outside:.0%} of the positions lie in walls of maze '{self.maze.name}', "
                    "so it is the data of another maze; check dataset.env_id or dataset.maze_map"
                )
            return steps

        return open_store(source, self.options.cache_folder(source), read_checked, settings=self.maze.text)

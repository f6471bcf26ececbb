"""D4RL-like walks in a maze as windows for planning: where they come from, how they are cut, what they are normalised by.

`Maze2d(options)` does nothing until `prepare()`, which finds the data, or makes or downloads it, and maps it into memory. Sources:
`auto` takes D4RL's file where it lies in `save_dir`, else generates (eight seconds a million steps); `generate`, `d4rl` (downloads the public
file), `path` (`dataset.path`, any file in D4RL's schema), `minari` (`dataset.path`, a Minari data set of PointMaze).

The lengths of the configured means decide what a planner sees: x (2 observation columns, no actions), xv (4, none), xva (4 and 2).
The batches always hold all columns, in data units.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from diffusion_forcing.datasets import d4rl, minari
from diffusion_forcing.datasets.download import download
from diffusion_forcing.datasets.generate_maze2d import generate
from diffusion_forcing.datasets.locking import locked
from diffusion_forcing.datasets.maze2d_options import Maze2dOptions
from diffusion_forcing.datasets.store import Steps, Store, open_store
from diffusion_forcing.datasets.windows import Windows
from diffusion_forcing.environments.mazes import Maze
from diffusion_forcing.errors import UserError

_OUTSIDE = 0.01
"""Share of positions that may lie in walls before the data is taken for another maze's."""
_ODD_RATIO = 10.0
"""A configured deviation this many times off the data's is mentioned; the released settings stretch it up to 8 times on purpose."""


class Maze2d:
    """Windows of walks in one maze. `prepare()` first, then `training()` and `validation()`."""

    Options = Maze2dOptions

    def __init__(self, options: Maze2dOptions) -> None:
        self.options = options
        self._store: Store | None = None

    @property
    def maze(self) -> Maze:
        """The maze of the data."""
        return self.options.maze

    @property
    def statistics(self) -> dict[str, list[float]]:
        """Measured mean, std, min and max of the data: observation_mean, …, action_max."""
        return self.store.statistics

    @property
    def store(self) -> Store:
        """The steps in memory-mapped arrays; prepares them first if `prepare` was not called."""
        if self._store is None:
            self.prepare(progress=False)
        assert self._store is not None
        return self._store

    def prepare(self, progress: bool = True) -> None:
        """Make sure that the data is on disk and mapped. Raises `UserError` where it cannot be had or is broken."""
        options = self.options
        if options.source == "minari":
            folder = minari.find(options.path or "")
            source = minari.source_file(folder)
            self._store = self._open(source, minari.read(folder, self.maze))
            return
        source = self._find(progress)
        self._store = self._open(source, d4rl.read(source))
        if progress:
            self._say_odd_statistics()

    def training(self) -> Windows:
        """All windows before the validation part."""
        return Windows(self.store, self.options.window, end=self._border())

    def validation(self) -> Windows:
        """Windows of the last `validation_fraction` of the steps; all windows where that is 0."""
        border = self._border()
        return Windows(self.store, self.options.window, begin=0 if border == len(self.store) else border)

    def generate(self, progress: bool = True) -> Path:
        """Generate the file of these options unless it is there, print where it is and its statistics, and return its path."""
        path = self._generate(progress)
        self._store = self._open(path, d4rl.read(path))
        print(f"{path}: {len(self._store):,} steps")
        for name, values in self._store.statistics.items():
            # means and deviations are printed as they are typed on the command line
            key = f"dataset.{name}" if name.endswith(("mean", "std")) else name
            print(f"  {key}=[{','.join(f'{value:.7g}' for value in values)}]")
        return path

    def _say_odd_statistics(self) -> None:
        """One line when the options would normalise these data badly, as those of another maze do."""
        for kind in ("observation", "action"):
            mean, std = (np.array(getattr(self.options, f"{kind}_{what}")) for what in ("mean", "std"))
            true_mean, true_std = (np.array(self.statistics[f"{kind}_{what}"])[: len(mean)] for what in ("mean", "std"))
            ratio = std / np.maximum(true_std, 1e-6)
            if (
                (np.abs(mean - true_mean) > true_std).any()
                or (ratio > _ODD_RATIO).any()
                or (ratio < 1 / _ODD_RATIO).any()
            ):
                measured = [
                    f"dataset.{kind}_{what}={np.round(value, 4).tolist()}"
                    for what, value in (("mean", true_mean), ("std", true_std))
                ]
                print(
                    f"note: dataset.{kind}_mean and _std are far from these data's; they would be {' '.join(measured).replace(', ', ',')}"
                )

    def _border(self) -> int:
        """First step of the validation part."""
        return len(self.store) - round(self.options.validation_fraction * len(self.store))

    def _find(self, progress: bool) -> Path:
        """The data file, made or downloaded where the source says so."""
        options = self.options
        if options.path:
            return Path(options.path).expanduser()
        if options.source == "d4rl":
            if options.d4rl_file.exists():
                return options.d4rl_file
            with locked(options.d4rl_file):
                return download(
                    f"{options.d4rl_url}/{options.d4rl_file.name}",
                    options.d4rl_file,
                    sha256=options.sha256,
                    progress=progress,
                )
        if options.source == "auto" and self.maze.name != "custom" and options.d4rl_file.exists():
            return options.d4rl_file
        if options.source == "auto" and progress and not options.generated_file.exists():
            hint = "" if self.maze.name == "custom" else " (dataset.source=d4rl downloads D4RL's own)"
            print(
                f"no data in {options.save_dir} yet: generating {options.num_steps:,} steps of maze '{self.maze.name}'{hint}"
            )
        return self._generate(progress)

    def _generate(self, progress: bool) -> Path:
        options, path = self.options, self.options.generated_file
        if path.exists():
            return path
        with locked(path):
            if not path.exists():
                generate(
                    self.maze,
                    path,
                    num_steps=options.num_steps,
                    action_noise=options.action_noise,
                    seed=options.generate_seed,
                    progress=progress,
                )
        return path

    def _open(self, source: Path, parts: Iterable[Steps]) -> Store:
        """The store of `source`, its positions checked against the maze."""
        if not source.exists():
            raise UserError(f"data file {source} does not exist; place it there, or use dataset.source=generate")
        folder = self.options.cache_folder(source)
        return open_store(source, folder, lambda: self._in_maze(parts, source), settings=self.maze.text)

    def _in_maze(self, parts: Iterable[Steps], source: Path) -> Iterable[Steps]:
        for part in parts:
            outside = 1 - float(self.maze.contains(part["observations"][:, :2]).mean())
            if outside > _OUTSIDE:
                raise UserError(
                    f"{source}: {outside:.0%} of the positions lie in walls of maze '{self.maze.name}'; the data is of another maze, "
                    "check dataset.env_id or dataset.maze_map"
                )
            yield part

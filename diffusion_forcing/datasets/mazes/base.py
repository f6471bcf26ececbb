"""What the data sets of all mazes share: options of windows and statistics, the store of steps, and notes about them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.windows import MAX_JUMP, Steps, Store, open_store
from diffusion_forcing.environments.mazes.layout import Maze
from diffusion_forcing.environments.mazes.maze2d import Goal
from diffusion_forcing.environments.mazes.vector import VectorMaze
from diffusion_forcing.errors import UserError, check_minimum, check_not_negative, check_positive, require
from diffusion_forcing.terminal import say

_MAX_IN_WALLS = 0.01
"""Share of positions that may lie in walls; more, and the data is of another maze."""
_ODD_RATIO = 10.0
"""A deviation this many times off the data's is noted; the released ones are up to 8 times larger on purpose."""


@dataclass(frozen=True, kw_only=True)
class MazeOptions(ABC):
    """Keys of `dataset.*` of every maze. Lengths of the means: observations 2 (x) or 4 (x and v), actions 0 or 2."""

    maze_map: str | None = None
    r"""Any maze as text, rows separated by `\`: '#####\#OOG#\#####'."""
    episode_len: int = 600
    """Steps in a window after its first, `frame_skip` steps of the environment each."""
    frame_skip: int = 1
    """Every so many steps of the environment are one step of a window."""
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
    path: str | None = None
    """Data made elsewhere."""
    action_noise: float = 0.5
    """Standard deviation of the noise on generated actions; 0.5 gives the published data's statistics."""
    generate_seed: int = 0

    def __post_init__(self) -> None:
        self._check_sources()
        for key, least in (("episode_len", 1), ("frame_skip", 1), ("generate_seed", 0)):
            check_minimum(f"dataset.{key}", getattr(self, key), least)
        check_not_negative("dataset.action_noise", self.action_noise)
        check_positive("dataset.reward_std", self.reward_std)
        for kind, widths in (("observation", self._observed), ("action", (0, 2))):
            mean, std = getattr(self, f"{kind}_mean"), getattr(self, f"{kind}_std")
            if len(mean) not in widths or len(std) != len(mean):
                raise UserError(
                    f"dataset.{kind}_mean has {len(mean)} numbers and dataset.{kind}_std {len(std)}; "
                    f"give both {' or both '.join(map(str, widths))} (docs/planning.md)"
                )
            require(
                bool(np.isfinite([*mean, *std]).all()) and all(value > 0 for value in std),
                f"dataset.{kind}_mean and dataset.{kind}_std must be finite, the latter above 0, "
                f"got {list(mean)} and {list(std)}",
            )

    _observed: ClassVar[tuple[int, ...]] = (2, 4)
    """Numbers of an observation that may be modelled."""

    @abstractmethod
    def _check_sources(self) -> None:
        """Check where the data comes from, and the maze."""

    @property
    @abstractmethod
    def maze(self) -> Maze:
        """The maze of `env_id` or `maze_map`."""

    @property
    def window(self) -> int:
        """L: steps in a window."""
        return self.episode_len + 1

    @property
    def maze_name(self) -> str:
        """The maze's name in file names, with a digest of its map where it has none of its own."""
        maze = self.maze
        return maze.name if maze.name != "custom" else maze.digest

    def cache_folder(self, source: Path) -> Path:
        """Folder of the memory-mapped copy of `source`, in `save_dir` also if the source is elsewhere."""
        folder = Path(self.save_dir)
        if source.parent.resolve() == folder.resolve():
            return folder / f"{source.name}.cache"
        digest = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:8]
        return folder / f"{source.name}-{digest}.cache"


class MazeDataset(ABC):
    """Windows of runs in one maze. `prepare()` first, then `training()` and `validation()`."""

    keys: tuple[str, str] = ("dataset.env_id", "dataset.source=generate")
    """The options that name the maze, and that make data anew."""

    def __init__(self, options: MazeOptions) -> None:
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

    @abstractmethod
    def prepare(self, progress: bool = True) -> None:
        """Make sure that the data is on disk and mapped. `UserError` if it is unavailable or damaged."""

    reference: str | None = None
    """The maze's name in `metrics.planning.REFERENCE_SCORES`; None for a maze without reference scores."""

    @abstractmethod
    def environment(self, count: int, goal: Goal) -> VectorMaze:
        """`count` bodies in this maze."""

    @abstractmethod
    def oracle(self, episodes: int, *, seed: int, goal: Goal) -> NDArray[np.float64]:
        """(episodes, steps) rewards of who knows the map, on episodes 0 … of `seed`."""

    def tasks(self, episodes: int, goal: Goal) -> NDArray[np.int64] | None:
        """(episodes,) number 1… of the task that each episode plays; None for a maze without tasks."""
        return None

    def _print_statistics(self, path: Path) -> None:
        """Print a file's statistics as command-line overrides."""
        say(f"{path}: {len(self.store):,} steps")
        for name, values in self.store.statistics.items():
            key = f"dataset.{name}" if name.endswith(("mean", "std")) else name
            say(f"  {key}=[{','.join(f'{value:.7g}' for value in values)}]")

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

    def _open(self, source: Path, read: Callable[[], Steps], *, max_jump: float = MAX_JUMP) -> Store:
        """The store of `source`, its positions checked against the maze."""
        if not source.exists():
            raise UserError(f"data file {source} does not exist; place it there, or use {self.keys[1]}")

        def read_checked() -> Steps:
            steps = read()
            outside = 1 - float(self.maze.contains(steps["observations"][:, :2]).mean())
            if outside > _MAX_IN_WALLS:
                raise UserError(
                    f"{source}: {outside:.0%} of the positions lie in walls of maze '{self.maze.name}', "
                    f"so it is the data of another maze; check {self.keys[0]} or dataset.maze_map"
                )
            return steps

        folder = self.options.cache_folder(source)
        return open_store(source, folder, read_checked, settings=self.maze.text, max_jump=max_jump)

"""What the data sets of all mazes share: options of windows and statistics, the store of steps, and notes about them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.windows import MAX_JUMP, Steps, Store, open_store
from diffusion_forcing.environments.mazes.layout import Maze
from diffusion_forcing.environments.mazes.maze2d import Goal
from diffusion_forcing.environments.mazes.vector import VectorMaze
from diffusion_forcing.errors import (
    UserError,
    require,
)
from diffusion_forcing.files import locked
from diffusion_forcing.options import Count, Natural, NotNegative, Positive, check_limits
from diffusion_forcing.terminal import say

_MAX_IN_WALLS = 0.01
"""Share of positions that may lie in walls; more, and the data is of another maze."""
_ODD_RATIO = 10.0
"""A deviation this many times off the data's is noted; the released ones are up to 8 times larger on purpose."""

REMEDY = "get it again, or use dataset.source=generate"


@dataclass(frozen=True, kw_only=True)
class MazeOptions(ABC):
    """Keys of `dataset.*` of every maze. Lengths of the means: observations 2 (x) or 4 (x and v), actions 0 or 2."""

    env_id: str
    """Id of the library's maze; ignored if `maze_map` is given."""
    maze_map: str | None = None
    r"""Any maze as text, rows separated by `\`: '#####\#OOG#\#####'."""
    episode_len: Count = 600
    """Steps in a window after its first, `frame_skip` steps of the environment each."""
    frame_skip: Count = 1
    """Every so many steps of the environment are one step of a window."""
    gamma: float = 1.0
    """Discount of returns, in (0, 1]; goals are reached by guidance here, so nothing is discounted."""
    observation_mean: tuple[float, ...] = (3.5092521, 3.4765592, 4.1e-5, 3.85e-5)
    observation_std: tuple[float, ...] = (1.3371079, 1.52102, 2.3407657, 2.3693702)
    action_mean: tuple[float, ...] = (0.0, 0.0)
    action_std: tuple[float, ...] = (0.740, 0.746)
    reward_mean: float = 0.0
    reward_std: Positive = 1.0
    source: str = "auto"
    """Where the data comes from."""
    sha256: str = ""
    """SHA-256 that the downloaded training file must have; neither library publishes one."""
    save_dir: str = "data/maze2d"
    """Folder of the data files and their caches."""
    path: str | None = None
    """Data made elsewhere."""
    action_noise: NotNegative = 0.5
    """Standard deviation of the noise on generated actions; 0.5 gives the published data's statistics."""
    generate_seed: Natural = 0

    library: ClassVar[str]
    """Whose public data it is; in lower case it is the source that downloads it."""
    _mazes: ClassVar[tuple[Mapping[str, Maze], Callable[[str], Maze], Callable[[str], Maze]]]
    """The library's mazes by name, and what reads a map and an id."""
    _from_path: ClassVar[tuple[str, ...]] = ("path",)
    """The sources that read `path`."""
    _observed: ClassVar[tuple[int, ...]] = (2, 4)
    """Numbers of an observation that may be modelled."""

    def __post_init__(self) -> None:
        check_limits("dataset", self)
        is_custom = self.maze.name == "custom"
        require(
            bool(self.path) or self.source not in self._from_path,
            f"dataset.source={self.source} needs dataset.path=<file or folder>",
        )
        require(
            not self.path or self.source in ("auto", *self._from_path),
            f"dataset.path is not used with dataset.source={self.source}; drop one, or use dataset.source=path",
        )
        require(
            self.source != self.library.lower() or not is_custom,
            f"dataset.source={self.source} has no data for a custom dataset.maze_map; use dataset.source=generate",
        )
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

    @property
    def maze(self) -> Maze:
        """The maze of `env_id` or `maze_map`, which has a name if it is one of the library's."""
        mazes, read, named = self._mazes
        if self.maze_map is None:
            return named(self.env_id)
        try:
            custom = read(self.maze_map)
        except UserError as error:
            raise UserError(f"dataset.maze_map: {error}") from error
        return next((maze for maze in mazes.values() if maze.rows == custom.rows), custom)

    @property
    @abstractmethod
    def public_file(self) -> Path:
        """Path of the library's own (training) file."""

    @property
    @abstractmethod
    def generated_file(self) -> Path:
        """Path of generated data; its name contains everything that determines its content."""

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

    def prepare(self, progress: bool = True) -> None:
        """Make sure that the data is on disk and mapped. `UserError` if it is unavailable or damaged."""
        self._store = self._mapped(self._find(progress))
        if progress:
            self._note_odd_statistics()

    def generate(self, progress: bool = True) -> Path:
        """Generate the data of these options unless it exists, print its statistics, and return its (training) file."""
        path = self._generated(progress)
        self._store = self._mapped(path)
        self._print_statistics(path)
        return path

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

    @abstractmethod
    def _mapped(self, source: Path) -> Store:
        """The store of a data file."""

    @abstractmethod
    def _download(self, public: Path, progress: bool) -> Path:
        """Download the library's own data to `public`."""

    @abstractmethod
    def _generate(self, path: Path, progress: bool) -> None:
        """Generate the data file `path`."""

    def _find(self, progress: bool) -> Path:
        """The (training) data file, generated or downloaded if the source says so."""
        options, public, is_custom = self.options, self.options.public_file, self.maze.name == "custom"
        library = options.library.lower()
        if options.path:
            return Path(options.path).expanduser()
        if options.source in ("auto", library) and not is_custom and public.exists():
            return public
        if options.source == library:
            with locked(public):
                return self._download(public, progress)
        if options.source == "auto" and progress and not options.generated_file.exists():
            hint = "" if is_custom else f" (dataset.source={library} downloads {options.library}'s own)"
            say(f"no data in {options.save_dir} yet: generating {options.generated_file.name}{hint}")
        return self._generated(progress)

    def _generated(self, progress: bool) -> Path:
        path = self.options.generated_file
        if not path.exists():
            with locked(path):
                if not path.exists():  # another process may have made it
                    self._generate(path, progress)
        return path

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
        require(source.exists(), f"data file {source} does not exist; place it there, or use dataset.source=generate")

        def read_checked() -> Steps:
            steps = read()
            outside = 1 - float(self.maze.contains(steps["observations"][:, :2]).mean())
            if outside > _MAX_IN_WALLS:
                raise UserError(
                    f"{source}: {outside:.0%} of the positions lie in walls of maze '{self.maze.name}', "
                    f"so it is the data of another maze; check dataset.env_id or dataset.maze_map"
                )
            return steps

        folder = self.options.cache_folder(source)
        return open_store(source, folder, read_checked, settings=self.maze.text, max_jump=max_jump)


def checked_steps(
    path: Path, arrays: Mapping[str, NDArray[Any] | None], widths: Mapping[str, tuple[int, ...]], *, whose: str
) -> dict[str, NDArray[np.float32]]:
    """The arrays that `widths` names, float32. `UserError` unless `path` has all of them, of the same length, of these
    shapes of a step, and finite. whose: the format, as in "D4RL's maze2d"."""
    missing = [key for key in widths if arrays.get(key) is None]
    if missing:
        there = ", ".join([key for key, values in arrays.items() if values is not None][:8]) or "nothing"
        raise UserError(f"{path} has no {', '.join(missing)}; {whose} has {', '.join(widths)}, this one has {there}")
    count = len(np.atleast_1d(arrays["observations"]))  # type: ignore[arg-type]
    require(bool(count), f"{path} holds no steps; {REMEDY}")
    steps = {}
    for key, width in widths.items():
        values = np.asarray(arrays[key])
        if values.shape != (count, *width) or values.dtype.kind not in "fiub":
            raise UserError(
                f"{path}: {key} has shape {values.shape} and type {values.dtype}, {whose} has {(count, *width)} numbers"
            )
        steps[key] = values.astype(np.float32)
        finite = np.isfinite(steps[key]).reshape(count, -1).all(axis=1)
        if not finite.all():
            raise UserError(f"{path}: {key} of step {np.argmin(finite)} is not finite (NaN or infinity); {REMEDY}")
    return steps

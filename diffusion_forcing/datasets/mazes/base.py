"""What the data sets of all mazes share: options of windows and statistics, the store of steps, and notes about them."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch.utils.data import Dataset

from diffusion_forcing.arrays import map_npy, write_npy
from diffusion_forcing.datasets.batch import SequenceBatch
from diffusion_forcing.environments.mazes.layout import Maze
from diffusion_forcing.environments.mazes.maze2d import Goal, VectorMaze
from diffusion_forcing.errors import (
    UserError,
    explaining_os_errors,
    require,
)
from diffusion_forcing.files import locked, read_json, replacing, write_json
from diffusion_forcing.options import Count, Natural, NotNegative, Positive, check_limits
from diffusion_forcing.terminal import say

# ----------------------------------------------------------------------------------------------------- windows of steps
# Windows of L maze steps, consecutive or every so many, out of memory-mapped arrays, as a map-style data set.
#
# `open_store` decodes a source file once into a folder with one .npy for each array, the borders of the episodes, and
# statistics; it is made again if the source changes. An *episode* is a stretch of uninterrupted motion: it ends at a
# terminal, and where the position jumps farther than a ball can roll.
#
# Window i starts at the i-th step from which L steps follow in the same episode. An episode shorter than L gives one
# window, padded with its last step and marked so in `valid`. `__getitems__` is the fast path: a batch is one fancy index
# into each array.

CACHE_VERSION = 2
MAX_JUMP = 0.2
"""m: two steps farther apart are not one motion of D4RL's ball (5.3 m/s for 0.01 s is 0.053 m)."""
MIN_STEPS = 2
"""Shorter episodes show no motion and are left out."""

Steps = Mapping[str, NDArray[Any]]
"""observations (N, o), actions (N, 2), rewards (N,), and ends (N,) bool, True at the last step of an episode."""


class Store:
    """Memory-mapped steps of a cache folder. Pickled as a path: a data loader's workers map them anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def observations(self) -> NDArray[np.float32]:
        """(N, 4) x, y, vx, vy in metres and m/s, or (N, 2) x, y."""
        return self._map("observations")

    @cached_property
    def actions(self) -> NDArray[np.float32]:
        """(N, 2) in [-1, 1]."""
        return self._map("actions")

    @cached_property
    def rewards(self) -> NDArray[np.float32]:
        """(N,) 0 or 1."""
        return self._map("rewards")

    @cached_property
    def episodes(self) -> NDArray[np.int64]:
        """(E, 2) first step and one past the last step of each episode."""
        return self._map("episodes")

    @cached_property
    def statistics(self) -> dict[str, list[float]]:
        """Mean, std, min and max of each column of observations and actions."""
        return dict(json.loads((self.folder / "cache.json").read_text())["statistics"])

    def __len__(self) -> int:
        return len(self.rewards)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def _map(self, name: str) -> NDArray[Any]:
        return map_npy(self.folder / f"{name}.npy")


def open_store(
    source: Path, folder: Path, read: Callable[[], Steps], *, settings: str = "", max_jump: float = MAX_JUMP
) -> Store:
    """The store in `folder`, made from what `read()` returns unless it exists and `source` is unchanged since.

    settings: what the result depends on besides the file. max_jump: metres; an episode ends where the next step is
    farther. Raises `UserError` if nothing can be written, and what `read`
    raises.
    """
    stat = source.stat()
    stamp = {"version": CACHE_VERSION, "size": stat.st_size, "time": stat.st_mtime_ns, "settings": settings}

    def is_current() -> bool:
        note = read_json(folder / "cache.json", {})
        return note.get("source") == stamp and note.get("sizes") == _sizes(folder)

    if not is_current():
        with (
            explaining_os_errors(f"cannot write the cache {folder}", "make room or choose another dataset.save_dir"),
            locked(folder),
        ):
            if not is_current():  # another process may have made it
                steps = read()
                with replacing(folder) as temporary:
                    temporary.mkdir()
                    for name in ("observations", "actions", "rewards"):
                        write_npy(temporary / f"{name}.npy", np.asarray(steps[name], np.float32))
                    write_npy(temporary / "episodes.npy", _episodes(steps, max_jump))
                    note = {"source": stamp, "statistics": _statistics(steps), "sizes": _sizes(temporary)}
                    write_json(temporary / "cache.json", note)
    return Store(folder)


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each array in a cache's folder: one that is missing or cut off makes the cache anew."""
    return {file.name: file.stat().st_size for file in sorted(folder.glob("*.npy"))}


def _episodes(steps: Steps, max_jump: float) -> NDArray[np.int64]:
    """(E, 2) borders of the episodes: at jumps and after terminal steps."""
    distances = np.linalg.norm(np.diff(steps["observations"][:, :2], axis=0), axis=1)
    jumps, ends = np.flatnonzero(distances > max_jump), np.flatnonzero(steps["ends"])
    edges = np.unique(np.concatenate([[0], jumps + 1, ends + 1, [len(steps["ends"])]])).astype(np.int64)
    return np.stack([edges[:-1], edges[1:]], axis=1)


def _statistics(steps: Steps) -> dict[str, list[float]]:
    """observation_mean, _std, _min, _max and action_mean, …, action_max; one number for each column."""
    out: dict[str, list[float]] = {}
    for kind in ("observation", "action"):
        values = steps[f"{kind}s"].astype(np.float64)
        for name in ("mean", "std", "min", "max"):
            out[f"{kind}_{name}"] = getattr(values, name)(axis=0).tolist()
    return out


class Windows(Dataset[SequenceBatch]):
    """Windows of `length` steps, `skip` apart, among steps `begin` to `end` of `store`. `UserError` if there is none.

    Between two steps of a window lie `skip` actions, of which it has the mean, and `skip` rewards, of which it has the
    greatest.
    """

    def __init__(self, store: Store, length: int, *, skip: int = 1, begin: int = 0, end: int | None = None) -> None:
        self.store = store
        self.length = length
        self.skip = skip
        end = len(store) if end is None else end
        episodes = np.clip(store.episodes, begin, end)
        episodes = episodes[episodes[:, 1] - episodes[:, 0] >= MIN_STEPS]
        if len(episodes) == 0:
            raise UserError(
                f"no window fits: {store.folder.stem} has no episode of {MIN_STEPS} steps in steps {begin} to {end}; "
                "use more data or a smaller dataset.validation_fraction"
            )
        self._episodes = episodes
        counts = np.maximum(episodes[:, 1] - episodes[:, 0] - (length - 1) * skip, 1)
        self._first = np.concatenate([[0], np.cumsum(counts)])
        """(E + 1,) number of the first window of each episode, and the number of all windows."""

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> SequenceBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> SequenceBatch:
        """Windows `indices` as one batch; IndexError for one out of range."""
        starts, ends = self.spans(np.asarray(indices, dtype=np.int64))
        span = self.length * self.skip
        steps = starts[:, None] + np.arange(span)
        ends = ends[:, None]
        valid = steps[:, :: self.skip] < ends
        arrays = (self.store.observations, self.store.actions, self.store.rewards)
        if (steps[:, -1:] < ends).all():
            parts = [_sliding(array, span)[starts] for array in arrays]
        else:  # a padded window repeats the last step of its episode
            parts = [array[np.minimum(steps, ends - 1)] for array in arrays]
        observations, actions, rewards = map(torch.from_numpy, parts)
        if self.skip > 1:
            observations = observations[:, :: self.skip]
            actions = actions.unflatten(1, (-1, self.skip)).mean(dim=2)
            rewards = rewards.unflatten(1, (-1, self.skip)).amax(dim=2)
        return SequenceBatch(observations, actions, rewards, torch.from_numpy(valid))

    def spans(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(b,) first step of each window, and one past the last step of its episode."""
        if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"window index out of range 0..{len(self) - 1}")
        episode = np.searchsorted(self._first, indices, side="right") - 1
        return self._episodes[episode, 0] + indices - self._first[episode], self._episodes[episode, 1]


def _sliding(array: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """(N - length + 1, length, ...) view of all windows of a (N, ...) array; copies nothing."""
    windows = sliding_window_view(array, (length, *array.shape[1:]))
    return windows.reshape(windows.shape[0], *windows.shape[array.ndim :])


# --------------------------------------------------------------------------------------------------- data sets of mazes

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
    _acted: ClassVar[tuple[int, ...]] = (0, 2)
    """Numbers of an action that may be modelled."""

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
        for kind, widths in (("observation", self._observed), ("action", self._acted)):
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

"""Windows of L consecutive maze steps out of memory-mapped arrays, as a map-style data set.

`open_store` decodes a source file once into a folder with one .npy for each array, the borders of the episodes, and
statistics; it is made again if the source changes. An *episode* is a stretch of uninterrupted motion: it ends at a
terminal, and where the position jumps farther than a ball can roll.

Window i starts at the i-th step from which L steps follow in the same episode. An episode shorter than L gives one
window, padded with its last step and marked so in `valid`. `__getitems__` is the fast path: a batch is one fancy index
into each array.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch.utils.data import Dataset

from diffusion_forcing.datasets.batch import SequenceBatch
from diffusion_forcing.errors import UserError, explaining_os_errors
from diffusion_forcing.files import locked, read_json, replacing, write_json

CACHE_VERSION = 1
MAX_JUMP = 0.2
"""m: two steps farther apart are not one motion (5.3 m/s for 0.01 s is 0.053 m)."""
MIN_STEPS = 2
"""Shorter episodes show no motion and are left out."""
_WIDTHS: dict[str, tuple[int, ...]] = {"observations": (4,), "actions": (2,), "rewards": ()}

Steps = Mapping[str, NDArray[Any]]
"""observations (n, 4), actions (n, 2), rewards (n,), and ends (n,) bool, True at the last step of an episode."""


class RunningStatistics:
    """Mean, deviation and range of the columns of observations and actions, over parts too long for memory."""

    def __init__(self) -> None:
        self._parts: dict[str, list[tuple[int, NDArray[np.float64]]]] = {"observation": [], "action": []}

    def add(self, observations: NDArray[Any], actions: NDArray[Any]) -> None:
        """Add (n, o) observations and (n, a) actions; they are summed in float64."""
        for name, values in (("observation", observations), ("action", actions)):
            if len(values):
                exact = values.astype(np.float64)
                part = np.stack([exact.mean(0), exact.var(0), exact.min(0), exact.max(0)])
                self._parts[name].append((len(values), part))

    def statistics(self) -> dict[str, list[float]]:
        """observation_mean, _std, _min, _max and action_mean, …, action_max; one number for each column."""
        out: dict[str, list[float]] = {}
        for name, parts in self._parts.items():
            if not parts:
                continue
            counts = np.array([count for count, _ in parts], dtype=np.float64)
            weights = (counts / counts.sum())[:, None]
            means, variances, minima, maxima = np.stack([part for _, part in parts], axis=1)
            mean = (weights * means).sum(0)
            variance = (weights * (variances + (means - mean) ** 2)).sum(0)
            out[f"{name}_mean"] = mean.tolist()
            out[f"{name}_std"] = np.sqrt(variance).tolist()
            out[f"{name}_min"] = minima.min(0).tolist()
            out[f"{name}_max"] = maxima.max(0).tolist()
        return out


@dataclass
class Store:
    """Memory-mapped float32 steps of a cache folder. Pickled as a path: a data loader's workers map them anew."""

    folder: Path
    _arrays: dict[str, NDArray[Any]] = field(default_factory=dict, init=False, repr=False)

    @property
    def observations(self) -> NDArray[np.float32]:
        """(N, 4) x, y, vx, vy in metres and m/s."""
        return self._array("observations")

    @property
    def actions(self) -> NDArray[np.float32]:
        """(N, 2) in [-1, 1]."""
        return self._array("actions")

    @property
    def rewards(self) -> NDArray[np.float32]:
        """(N,) 0 or 1."""
        return self._array("rewards")

    @property
    def episodes(self) -> NDArray[np.int64]:
        """(E, 2) first step and one past the last step of each episode."""
        return self._array("episodes")

    @property
    def statistics(self) -> dict[str, list[float]]:
        """Mean, std, min and max of each column of observations and actions."""
        return dict(json.loads((self.folder / "cache.json").read_text())["statistics"])

    def __len__(self) -> int:
        return len(self.rewards)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_arrays": {}}

    def _array(self, name: str) -> NDArray[Any]:
        if name not in self._arrays:
            self._arrays[name] = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return self._arrays[name]


def open_store(source: Path, folder: Path, read: Callable[[], Iterable[Steps]], *, settings: str = "") -> Store:
    """The store in `folder`, built from the parts that `read()` yields unless it exists and `source` is unchanged
    since.

    settings: what the result depends on besides the file. Raises `UserError` if nothing can be written, and what `read`
    raises.
    """
    stat = source.stat()
    stamp = {"version": CACHE_VERSION, "size": stat.st_size, "time": stat.st_mtime_ns, "settings": settings}

    def is_current() -> bool:
        return read_json(folder / "cache.json", {}).get("source") == stamp

    if not is_current():
        with locked(folder):
            if not is_current():  # another process may have built it
                _build(folder, read(), stamp)
    return Store(folder)


def _build(folder: Path, parts: Iterable[Steps], stamp: Mapping[str, Any]) -> None:
    remedy = "make room or choose another dataset.save_dir"
    with explaining_os_errors(f"cannot write the cache {folder}", remedy), replacing(folder) as temporary:
        temporary.mkdir()
        statistics, episodes = _write_parts(temporary, parts)
        np.save(temporary / "episodes.npy", episodes)
        write_json(temporary / "cache.json", {"source": stamp, "statistics": statistics})


def _write_parts(folder: Path, parts: Iterable[Steps]) -> tuple[dict[str, list[float]], NDArray[np.int64]]:
    """Append all parts to one file for each array; returns the statistics and the episodes (E, 2)."""
    running, borders, count = RunningStatistics(), {0}, 0
    last: NDArray[Any] | None = None
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / f"{name}.raw", "wb")) for name in _WIDTHS}
        for part in parts:
            for name, file in files.items():
                file.write(np.ascontiguousarray(part[name], dtype=np.float32).data)
            running.add(part["observations"], part["actions"])
            # An episode ends before a jump, also one between two parts, and after a terminal step.
            positions = part["observations"][:, :2]
            before = positions[:1] if last is None else last
            distances = np.linalg.norm(np.diff(np.concatenate([before, positions]), axis=0), axis=1)
            borders.update((count + np.flatnonzero(distances > MAX_JUMP)).tolist())
            borders.update((count + np.flatnonzero(part["ends"]) + 1).tolist())
            count, last = count + len(positions), positions[-1:]
    for name, width in _WIDTHS.items():
        _to_npy(folder / f"{name}.raw", width)
    edges = np.array(sorted(borders | {count}), dtype=np.int64)
    return running.statistics(), np.stack([edges[:-1], edges[1:]], axis=1)


def _to_npy(raw: Path, width: tuple[int, ...]) -> None:
    """Turn a file of float32 numbers into a .npy of rows of `width`; the length is known only at the end of reading."""
    values = np.memmap(raw, dtype=np.float32, mode="r").reshape(-1, *width)
    out = np.lib.format.open_memmap(raw.with_suffix(".npy"), mode="w+", dtype=np.float32, shape=values.shape)
    out[:] = values
    out.flush()
    raw.unlink()


class Windows(Dataset[SequenceBatch]):
    """Windows of `length` steps among steps `begin` to `end` of `store`. `UserError` if there is none."""

    def __init__(self, store: Store, length: int, *, begin: int = 0, end: int | None = None) -> None:
        self.store = store
        self.length = length
        end = len(store) if end is None else end
        episodes = np.clip(store.episodes, begin, end)
        episodes = episodes[episodes[:, 1] - episodes[:, 0] >= MIN_STEPS]
        if len(episodes) == 0:
            raise UserError(
                f"no window fits: {store.folder.stem} has no episode of {MIN_STEPS} steps in steps {begin} to {end}; "
                "use more data or a smaller dataset.validation_fraction"
            )
        self._episodes = episodes
        counts = np.maximum(episodes[:, 1] - episodes[:, 0] - length + 1, 1)
        self._first = np.concatenate([[0], np.cumsum(counts)])
        """(E + 1,) number of the first window of each episode, and the number of all windows."""

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> SequenceBatch:
        """Window `index` as a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> SequenceBatch:
        """Windows `indices` as one batch; IndexError for one out of range."""
        starts, ends = self.spans(np.asarray(indices, dtype=np.int64))
        steps = starts[:, None] + np.arange(self.length)  # (b, L)
        valid = steps < ends[:, None]
        arrays = (self.store.observations, self.store.actions, self.store.rewards)
        if valid.all():
            parts = [_sliding(array, self.length)[starts] for array in arrays]
        else:  # a padded window repeats the last step of its episode
            parts = [array[np.minimum(steps, ends[:, None] - 1)] for array in arrays]
        observations, actions, rewards = map(torch.from_numpy, parts)
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

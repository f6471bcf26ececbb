"""Windows of L maze steps, consecutive or every so many, out of memory-mapped arrays, as a map-style data set.

`open_store` decodes a source file once into a folder with one .npy for each array, the borders of the episodes, and
statistics; it is made again if the source changes. An *episode* is a stretch of uninterrupted motion: it ends at a
terminal, and where the position jumps farther than a ball can roll.

Window i starts at the i-th step from which L steps follow in the same episode. An episode shorter than L gives one
window, padded with its last step and marked so in `valid`. `__getitems__` is the fast path: a batch is one fancy index
into each array.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch.utils.data import Dataset

from diffusion_forcing.arrays import map_npy, write_npy
from diffusion_forcing.datasets.batch import SequenceBatch
from diffusion_forcing.errors import UserError, explaining_os_errors
from diffusion_forcing.files import locked, read_json, replacing, write_json

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

"""Windows of L consecutive steps out of a store, as a map-style data set.

Window i starts i steps into the data (counting only starts from which L steps follow in the same episode). An episode shorter than L
gives one window, padded with its last step and marked so in `valid`. `__getitems__` is the fast path: a batch is one fancy index per array.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch.utils.data import Dataset

from diffusion_forcing.datasets.batch import SequenceBatch
from diffusion_forcing.datasets.store import Store
from diffusion_forcing.errors import UserError

MIN_STEPS = 2
"""A window of one step shows no motion; shorter episodes are left out."""


class Windows(Dataset[SequenceBatch]):
    """Windows of `length` steps among steps `begin` to `end` of `store`. Raises `UserError` when no window fits."""

    def __init__(self, store: Store, length: int, *, begin: int = 0, end: int | None = None) -> None:
        self.store = store
        self.length = length
        episodes = np.clip(store.episodes, begin, len(store) if end is None else end)
        episodes = episodes[episodes[:, 1] - episodes[:, 0] >= MIN_STEPS]
        if len(episodes) == 0:
            raise UserError(
                f"no window fits: {store.folder.stem} has no episode of {MIN_STEPS} steps between step {begin} and "
                f"{len(store) if end is None else end}; use more data or a smaller dataset.validation_fraction"
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
        """Windows `indices` as one batch; `IndexError` for one out of range."""
        starts, ends = self.spans(np.asarray(indices, dtype=np.int64))
        whole = bool((ends - starts >= self.length).all())
        valid = starts[:, None] + np.arange(self.length) < ends[:, None]
        # a padded window reads its last step again, which a sliding view cannot
        rows = starts if whole else np.minimum(starts[:, None] + np.arange(self.length), ends[:, None] - 1)
        store = self.store
        observations, actions, rewards = (
            torch.from_numpy(_sliding(array, self.length)[rows] if whole else array[rows])
            for array in (store.observations, store.actions, store.rewards)
        )
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

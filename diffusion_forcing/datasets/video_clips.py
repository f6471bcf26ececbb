"""Clips of T frames out of episodes, as a map-style data set whose `__getitems__` makes a whole batch.

A clip begins at raw frame s and takes frames s, s + f, …, s + (T-1) f with f = frame_skip; it spans T f raw frames, as the released code has it.
Training has every s from which a whole span follows. Validation has few and always the same: an episode is cut into as many spans as fit, spread
evenly, and clip k of every episode comes before clip k + 1 of any, so that the first N clips come from N different episodes. An episode shorter
than a span gives one clip, padded with its last frame and marked so.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, get_worker_info

from diffusion_forcing.datasets.video_batch import VideoBatch
from diffusion_forcing.datasets.video_inspect import Episode, Unusable
from diffusion_forcing.errors import UserError

_ATTEMPTS = 100
"""Unreadable clips in a row after which the data is taken to be gone."""


class Reader(Protocol):
    """Where the pixels come from."""

    def read(self, number: int, frames: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(n, h, w, 3): `frames` (rising) of episode `number`. `Unusable` or `OSError` where they cannot be read."""


class Clips(Dataset[VideoBatch]):
    """Clips of `length` frames, every `skip`-th, of `episodes`. `spread`: validation's few clips instead of all."""

    def __init__(
        self,
        episodes: Sequence[Episode],
        reader: Reader,
        actions: Sequence[NDArray[Any]] | None = None,
        *,
        length: int,
        skip: int = 1,
        spread: bool = False,
        choices: int = 0,
        shift: int = 1,
        threads: int = 1,
    ) -> None:
        """actions: of each episode, (n,) numbers of discrete actions below `choices`, or (n, a) continuous ones (`choices` 0); None:
        not used. shift: see `VideoDatasetOptions.action_shift`."""
        self.episodes = episodes
        self.length = length
        self.skip = skip
        self.unreadable: set[str] = set()
        """Files that could not be read since."""
        self._reader = reader
        self._actions = actions
        self._choices = choices
        self._shift = shift
        self._threads = threads
        self._frames = np.array([episode.frames for episode in episodes], dtype=np.int64)
        self._table = self._spread_out() if spread else None
        counts = np.maximum(self._frames - length * skip + 1, 1)
        self._first = np.concatenate([[0], np.cumsum(counts)])
        """(E + 1,) number of the first clip of each episode, and the number of all."""

    def __len__(self) -> int:
        return int(self._first[-1]) if self._table is None else len(self._table)

    def __getitem__(self, index: int) -> VideoBatch:
        """Clip `index` as a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> VideoBatch:
        """Clips `indices` as one batch; `IndexError` for one out of range. A clip that cannot be read is named, and another taken."""
        places = self.places(np.asarray(indices, dtype=np.int64))
        tasks = [(int(i), (int(number), int(start))) for i, (number, start) in zip(indices, places, strict=True)]
        if self._threads > 1 and len(tasks) > 1 and get_worker_info() is None:
            with ThreadPoolExecutor(min(self._threads, len(tasks))) as pool:
                clips = list(pool.map(self._read, *zip(*tasks, strict=True)))
        else:
            clips = [self._read(*task) for task in tasks]
        number, start = np.array([place for _, place in clips], dtype=np.int64).T
        raw = start[:, None] + self.skip * np.arange(self.length)
        valid = raw < self._frames[number][:, None]
        frames = torch.from_numpy(np.stack([pixels for pixels, _ in clips])).permute(0, 1, 4, 2, 3).contiguous()
        actions, known = self._conditions(number, raw, valid)
        return VideoBatch(frames, torch.from_numpy(actions), torch.from_numpy(known), torch.from_numpy(valid))

    def places(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """(b, 2) episode number and first raw frame of each clip."""
        if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"clip index out of range 0..{len(self) - 1}")
        if self._table is not None:
            return self._table[indices]
        number = np.searchsorted(self._first, indices, side="right") - 1
        return np.stack([number, indices - self._first[number]], axis=1)

    def _spread_out(self) -> NDArray[np.int64]:
        span = self.length * self.skip
        rows = []
        for number, frames in enumerate(self._frames.tolist()):
            count = max(frames // span, 1)
            starts = np.linspace(0, max(frames - span, 0), count).round().astype(np.int64)
            rows += [(turn, number, start) for turn, start in enumerate(starts.tolist())]
        return np.array([row[1:] for row in sorted(rows)], dtype=np.int64).reshape(-1, 2)

    def _read(self, index: int, place: tuple[int, int]) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """(T, h, w, 3) pixels of the clip at `place`, or of the next one after clip `index` that can be read; and its place."""
        reason: Exception | None = None
        for attempt in range(_ATTEMPTS):
            number, start = place
            episode = self.episodes[number]
            try:
                raw = np.minimum(start + self.skip * np.arange(self.length), episode.frames - 1)
                return self._reader.read(number, raw), place
            except (Unusable, OSError) as failure:
                reason = failure
                self._name(episode, failure)
            # a step that is prime and long, so that the next try is in another episode and none is asked for ever
            place = tuple(self.places(np.array([(index + (attempt + 1) * 7919) % len(self)]))[0].tolist())
        raise UserError(
            f"{_ATTEMPTS} clips in a row cannot be read, the last because: {reason}; check dataset.save_dir"
        )

    def _name(self, episode: Episode, reason: Exception) -> None:
        if episode.file not in self.unreadable:
            self.unreadable.add(episode.file)
            print(
                f"{episode.file}: {reason}; another clip is taken instead ({len(self.unreadable)} unreadable so far)",
                file=sys.stderr,
            )

    def _conditions(
        self, number: NDArray[np.int64], raw: NDArray[np.int64], valid: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(b, T, A) actions that led to raw frames `raw`, and (b, T) whether all of them are known."""
        if self._actions is None:
            return np.zeros((*raw.shape, 0), dtype=np.float32), np.zeros(raw.shape, dtype=bool)
        reached = raw[..., None] + np.arange(1 - self.skip, 1)  # (b, T, f): raw frames reached by each action of a row
        rows = reached - self._shift
        parts, known = [], valid & (reached[..., 0] >= 1)  # nothing is known to have led to an episode's first frame
        for i, episode in enumerate(number.tolist()):
            actions = self._actions[episode]
            known[i] &= (rows[i] >= 0).all(-1) & (rows[i] < len(actions)).all(-1)
            if not len(actions):
                actions = np.zeros((1, *actions.shape[1:]), dtype=actions.dtype)
            parts.append(actions[np.clip(rows[i], 0, len(actions) - 1)])  # (T, f) or (T, f, a)
        chosen = np.stack(parts)
        if self._choices:
            chosen = np.eye(self._choices, dtype=np.float32)[chosen].reshape(*raw.shape, -1)
        else:
            chosen = chosen.sum(axis=2, dtype=np.float32)
        return chosen * known[..., None], known

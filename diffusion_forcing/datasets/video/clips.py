"""Clips of T frames out of episodes, with their actions: a map-style data set whose `__getitems__` makes a batch.

A clip that starts at frame s of an episode takes frames s, s + f, …, s + (T-1) f with f = frame_skip. It spans T f
frames, as in the released code. Training has every s from which a whole span follows. Validation has few clips, always
the same: each episode is cut into as many spans as fit, spread evenly, and clip k of every episode comes before clip
k + 1 of any, so the first N clips come from N different episodes. An episode shorter than a span gives one clip, padded
with its last frame and marked in `valid`.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, get_worker_info

from diffusion_forcing.datasets.batch import VideoBatch
from diffusion_forcing.datasets.video.container import Pixels
from diffusion_forcing.datasets.video.decode import FrameReader
from diffusion_forcing.datasets.video.episode import Episode
from diffusion_forcing.errors import UserError
from diffusion_forcing.limits import Refused
from diffusion_forcing.terminal import tell

_ATTEMPTS = 100
"""Unreadable clips in a row after which the data must be gone."""
_STRIDE = 7919
"""A large prime: the clip taken instead of an unreadable one is in another episode, and no clip is tried twice."""


class Clips(Dataset[VideoBatch]):
    """Clips of `length` frames, every `skip`-th, of `episodes`; with `spread` the few clips of validation."""

    def __init__(
        self,
        episodes: Sequence[Episode],
        reader: FrameReader,
        actions: Sequence[NDArray[Any]] | None = None,
        *,
        length: int,
        skip: int = 1,
        spread: bool = False,
        choices: int = 0,
        shift: int = 1,
        threads: int = 1,
    ) -> None:
        """actions: of each episode, (n,) discrete actions below `choices`, or (n, a) continuous ones if `choices` is 0;
        None: not used. shift: see `VideoDatasetOptions.action_shift`. threads: for reading a batch outside a data
        loader's worker."""
        self.episodes = episodes
        self.length = length
        self.skip = skip
        self.unreadable: set[str] = set()
        """Files that could not be read so far."""
        self._reader = reader
        self._actions = actions
        self._choices = choices
        self._shift = shift
        self._threads = threads
        self._frames = np.array([episode.frames for episode in episodes], dtype=np.int64)
        self._table = self._spread_clips() if spread else None
        counts = np.maximum(self._frames - length * skip + 1, 1)
        self._first = np.concatenate([[0], np.cumsum(counts)])
        """(E + 1,) number of the first clip of each episode, and the number of all clips."""

    def __len__(self) -> int:
        return int(self._first[-1]) if self._table is None else len(self._table)

    def __getitem__(self, index: int) -> VideoBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> VideoBatch:
        """Clips `indices` as one batch; IndexError if out of range. Another clip replaces an unreadable one."""
        places = self.places(np.asarray(indices, dtype=np.int64)).tolist()
        if self._threads > 1 and len(indices) > 1 and get_worker_info() is None:
            with ThreadPoolExecutor(min(self._threads, len(indices))) as pool:
                clips = list(pool.map(self._read, indices, places))
        else:
            clips = list(map(self._read, indices, places))
        number, start = np.array([place for _, place in clips], dtype=np.int64).T
        raw = start[:, None] + self.skip * np.arange(self.length)  # (b, T) frame numbers in the episode
        valid = raw < self._frames[number][:, None]
        # (b, T, h, w, 3) to (b, T, 3, h, w)
        frames = torch.from_numpy(np.stack([pixels for pixels, _ in clips])).permute(0, 1, 4, 2, 3).contiguous()
        actions, known = self._actions_before(number, raw, valid)
        return VideoBatch(frames, torch.from_numpy(actions), torch.from_numpy(known), torch.from_numpy(valid))

    def places(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """(b, 2) episode number and first frame of each clip."""
        if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"clip index out of range 0..{len(self) - 1}")
        if self._table is not None:
            return self._table[indices]
        number = np.searchsorted(self._first, indices, side="right") - 1
        return np.stack([number, indices - self._first[number]], axis=1)

    def _spread_clips(self) -> NDArray[np.int64]:
        """(n, 2) episode number and first frame of validation's clips."""
        span = self.length * self.skip
        clips = []
        for number, frames in enumerate(self._frames.tolist()):
            starts = np.linspace(0, max(frames - span, 0), max(frames // span, 1)).round().astype(np.int64)
            clips += [(turn, number, start) for turn, start in enumerate(starts.tolist())]
        return np.array(sorted(clips), dtype=np.int64).reshape(-1, 3)[:, 1:]

    def _read(self, index: int, place: Sequence[int]) -> tuple[Pixels, Sequence[int]]:
        """(T, h, w, 3) pixels of clip `index` at `place`, or of a readable clip tried instead; and its place."""
        reason: Exception | None = None
        for attempt in range(_ATTEMPTS):
            number, start = place
            episode = self.episodes[number]
            try:
                raw = np.minimum(start + self.skip * np.arange(self.length), episode.frames - 1)
                return self._reader.read(number, raw), place
            except (Refused, OSError) as error:
                reason = error
                self._report(episode, error)
            place = self.places(np.array([(index + (attempt + 1) * _STRIDE) % len(self)]))[0].tolist()
        raise UserError(
            f"{_ATTEMPTS} clips in a row cannot be read, the last because: {reason}; check dataset.save_dir"
        )

    def _report(self, episode: Episode, reason: Exception) -> None:
        if episode.file not in self.unreadable:
            self.unreadable.add(episode.file)
            count = f"{len(self.unreadable)} unreadable so far"
            tell(f"{episode.file}: {reason}; another clip is taken instead ({count})")

    def _actions_before(
        self, number: NDArray[np.int64], raw: NDArray[np.int64], valid: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(b, T, A) actions that led to frames `raw`, and (b, T) whether all of them are known."""
        if self._actions is None:
            return np.zeros((*raw.shape, 0), dtype=np.float32), np.zeros(raw.shape, dtype=bool)
        # (b, T, f): the frame that each of a row's f actions led to, and where that action is on disk.
        led_to = raw[..., None] + np.arange(1 - self.skip, 1)
        index = led_to - self._shift
        known = valid & (led_to[..., 0] >= 1)  # no action led to the first frame of an episode
        chosen = []
        for i, episode in enumerate(number.tolist()):
            actions = self._actions[episode]
            known[i] &= ((index[i] >= 0) & (index[i] < len(actions))).all(-1)
            if len(actions) == 0:
                actions = np.zeros((1, *actions.shape[1:]), dtype=actions.dtype)
            chosen.append(actions[np.clip(index[i], 0, len(actions) - 1)])
        if self._choices:  # (b, T, f) to one-hot (b, T, f choices)
            rows = np.eye(self._choices, dtype=np.float32)[np.stack(chosen)].reshape(*raw.shape, -1)
        else:  # (b, T, f, a) to (b, T, a)
            rows = np.stack(chosen).sum(axis=2, dtype=np.float32)
        return rows * known[..., None], known

"""Clips of T frames out of episodes, with their actions: a map-style data set whose `__getitems__` makes a batch.

A clip that starts at frame s of an episode takes frames s, s + f, …, s + (T-1) f with f = frame_skip. It spans T f
frames, as in the released code. Training has every s from which a whole span follows. Validation has few clips, always
the same: each episode is cut into as many spans as fit, spread evenly, and clip k of every episode comes before clip
k + 1 of any, so the first N clips come from N different episodes. An episode shorter than a span gives one clip, padded
with its last frame and marked in `valid`.
"""

from __future__ import annotations

import glob
import itertools
import threading
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, get_worker_info

from diffusion_forcing.arrays import fill
from diffusion_forcing.datasets.batch import VideoBatch
from diffusion_forcing.datasets.video.container import (
    Converter,
    Pixels,
    all_times,
    decode_frames,
    decoded,
    opened,
    resize,
)
from diffusion_forcing.datasets.video.episode import Episode
from diffusion_forcing.errors import UserError, explaining_os_errors, require
from diffusion_forcing.files import free_bytes, locked, replacing
from diffusion_forcing.limits import Refused, refusing
from diffusion_forcing.progress import Bar
from diffusion_forcing.terminal import say, tell

# ------------------------------------------------------------------------------------------------------------- decoding
# Frames of an episode, each clip at the cost of its own frames, cropped and resized to the resolution asked for.
#
# Stored arrays and decoded caches are read by position, the bytes of the wanted frames and no others. A packed npz is
# decompressed up to the last wanted frame, a video decoded from the keyframe before the first.

_BLOCK_BYTES = 16 << 20
"""Bytes of frames held at once while a whole episode is decoded."""


@dataclass(frozen=True)
class FrameReader:
    """Square frames of `episodes` below `root`. cached[i]: file and offset of episode i's decoded frames, or None."""

    root: Path
    episodes: Sequence[Episode]
    resolution: int
    cached: Sequence[tuple[Path, int] | None]

    def read(self, number: int, frames: NDArray[np.int64]) -> Pixels:
        """(n, resolution, resolution, 3) `frames` (rising) of episode `number`. `Refused`, OSError if unreadable."""
        cached = self.cached[number]
        if cached is None:
            return fit(read_frames(self.root, self.episodes[number], frames), self.resolution)
        return _read_by_position(*cached, (self.resolution, self.resolution, 3), frames)


def read_frames(root: Path, episode: Episode, frames: NDArray[np.int64]) -> Pixels:
    """(n, h, w, 3): `frames` (rising, repeats allowed) of the episode's file. `Refused` or OSError if unreadable."""
    path, shape = root / episode.file, (episode.height, episode.width, 3)
    if episode.kind == "stored":
        return _read_by_position(path, episode.offset, shape, frames)
    wanted, places = np.unique(frames, return_inverse=True)
    if episode.kind == "packed":
        in_turn = itertools.islice(_array_frames(path, episode), int(wanted[-1]) + 1)
        numbers = set(wanted.tolist())
        found = {number: pixels for number, pixels in enumerate(in_turn) if number in numbers}
    else:
        found = decode_frames(path, wanted, all_times(episode.times, episode.frames), episode.keyframes)
    missing = [number for number in wanted.tolist() if number not in found]
    if missing:
        raise Refused(f"has {episode.frames} frames, but frame {missing[0]} cannot be decoded")
    return np.stack([_of_shape(found[number], shape) for number in wanted.tolist()])[places]


def blocks(root: Path, episode: Episode) -> Iterator[Pixels]:
    """All frames of an episode in blocks (n, h, w, 3) of about 16 MB. `Refused` or OSError if they cannot be read."""
    path, shape = root / episode.file, (episode.height, episode.width, 3)
    frames = _video_frames(path, episode) if episode.kind == "video" else _array_frames(path, episode)
    count = max(1, _BLOCK_BYTES // int(np.prod(shape)))
    while block := list(itertools.islice(frames, count)):
        yield np.stack([_of_shape(pixels, shape) for pixels in block])


def fit(frames: Pixels, resolution: int) -> Pixels:
    """(n, h, w, 3) to (n, resolution, resolution, 3): the middle square, reduced by antialiased bilinear filtering.

    Frames are never enlarged: a model would learn the interpolated pixels. If the rest is odd, one more row is cut
    below, or column on the right.
    """
    height, width = frames.shape[1:3]
    side = min(height, width)
    assert side >= resolution, "frames are never enlarged"
    top, left = (height - side) // 2, (width - side) // 2
    return np.ascontiguousarray(resize(frames[:, top : top + side, left : left + side], resolution))


def _read_by_position(path: Path, offset: int, shape: tuple[int, int, int], frames: NDArray[np.int64]) -> Pixels:
    """`frames` of uncompressed uint8 frames of `shape` that begin at byte `offset` of `path`."""
    out = np.empty((len(frames), *shape), dtype=np.uint8)
    size = int(np.prod(shape))
    # Runs of consecutive frames are read in one piece.
    borders = [0, *(np.flatnonzero(np.diff(frames) != 1) + 1).tolist(), len(frames)]
    with open(path, "rb", buffering=0) as file:
        for begin, end in itertools.pairwise(borders):
            file.seek(offset + int(frames[begin]) * size)
            fill(file, out[begin:end].reshape(-1).data)
    return out


def _array_frames(path: Path, episode: Episode) -> Iterator[Pixels]:
    """The frames of a stored or packed array in turn, (h, w, 3) each."""
    with _opened_array(path, episode) as file:
        for _ in range(episode.frames):
            frame = np.empty((episode.height, episode.width, 3), dtype=np.uint8)
            fill(file, frame.reshape(-1).data)
            yield frame
        file.read(1)  # at its end zipfile compares the checksum


@contextmanager
def _opened_array(path: Path, episode: Episode) -> Iterator[IO[bytes]]:
    """The array's file at its first frame; `Refused` instead of zipfile's errors."""
    if episode.kind == "stored":
        with open(path, "rb") as file:
            file.seek(episode.offset)
            yield file
        return
    with (
        refusing("is damaged or cut off", disk=True),
        zipfile.ZipFile(path) as archive,
        archive.open("video.npy") as member,
    ):
        member.read(episode.offset)
        yield member


def _video_frames(path: Path, episode: Episode) -> Iterator[Pixels]:
    """The frames of a video in turn, (h, w, 3) each."""
    convert, count = Converter(), 0
    with opened(path) as (container, stream):
        for frame in itertools.islice(decoded(container, stream), episode.frames):
            count += 1
            yield convert(frame)
    if count < episode.frames:
        raise Refused(f"is damaged: only {count} of its {episode.frames} frames can be decoded")


def _of_shape(pixels: Pixels, shape: tuple[int, int, int]) -> Pixels:
    if pixels.shape != shape:
        raise Refused("changes its frame size")
    return pixels


_HEADER_BYTES = 128
"""Bytes before the first frame: numpy's header of any array with sides of up to 10 digits."""
_SHARE_OF_FREE = 0.5
"""`cache=auto` uses at most this share of the free disk space."""


class VideoCache:
    """Compressed clips, decoded once into a file of uint8 frames, `resolution` × `resolution`, for each episode.

    root: of the clips; folder: of the files. A file is written whole or not at all, and its name holds the stamp of its
    source: an interrupted run continues with what is missing, and a changed source is decoded again. Uncompressed
    episodes of the right size need no copy.
    """

    def __init__(self, root: Path, folder: Path, resolution: int) -> None:
        self._root = root
        self._folder = folder / str(resolution)
        self._resolution = resolution

    def place(self, episode: Episode) -> tuple[Path, int] | None:
        """File and first byte of the decoded frames of an episode; None if it is not decoded yet."""
        if self.is_plain(episode):
            return self._root / episode.file, episode.offset
        file = self._file(episode)
        try:
            return (file, _HEADER_BYTES) if file.stat().st_size == _HEADER_BYTES + self._size(episode) else None
        except OSError:
            return None

    def is_plain(self, episode: Episode) -> bool:
        """Whether the episode's own file is uncompressed and of the right size."""
        return episode.kind == "stored" and episode.height == episode.width == self._resolution

    def _missing(self, episodes: Sequence[Episode]) -> list[Episode]:
        return [episode for episode in episodes if self.place(episode) is None]

    def build(
        self, episodes: Sequence[Episode], *, sparing: bool = False, workers: int = 1, progress: bool = True
    ) -> dict[str, Episode]:
        """Decode the missing `episodes`; returns, by stem, those that cannot be decoded, with the reason in `problem`.

        sparing: decode nothing, and print a line, if that takes more than half of the free disk space. `UserError`
        before anything is written if the disk has too little space, and if nothing can be written.
        """
        missing = self._missing(episodes)
        need, free = sum(map(self._size, missing)), free_bytes(self._folder)
        takes = (
            f"decoding {self._root} takes {_gigabytes(need)} of the {_gigabytes(free)} free in {self._folder.parent}"
        )
        if sparing and need > _SHARE_OF_FREE * free:
            say(f"{takes}: clips are decoded at every read (dataset.cache=memmap decodes them once all the same)")
            return {}
        require(need <= free, f"{takes}; make room, choose another dataset.save_dir, or dataset.cache=none")
        if not missing:
            return {}
        with locked(self._folder):
            for leftover in self._folder.rglob("*.tmp"):
                leftover.unlink(missing_ok=True)
            return self._decode(episodes, workers=workers, progress=progress)

    def _decode(self, episodes: Sequence[Episode], *, workers: int, progress: bool) -> dict[str, Episode]:
        missing = self._missing(episodes)  # another process may have decoded some
        done = len(episodes) - len(missing)
        damaged: dict[str, Episode] = {}
        stop = threading.Event()
        with (
            ThreadPoolExecutor(max(workers, 1)) as pool,
            Bar(f"decoding {self._root}", total=len(episodes), done=done, unit="clips", show=progress) as bar,
        ):
            tasks = {pool.submit(self._write, episode, stop): episode for episode in missing}
            try:
                for task in as_completed(tasks):
                    try:
                        task.result()
                    except Refused as reason:
                        episode = tasks[task]
                        damaged[episode.stem] = replace(episode, problem=str(reason), again=reason.again)
                    bar.advance()
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return damaged

    def _write(self, episode: Episode, stop: threading.Event) -> None:
        """Decode one episode into its file."""
        file = self._file(episode)
        remedy = "make room, choose another dataset.save_dir, or dataset.cache=none"
        with explaining_os_errors(f"cannot write the cache {self._folder}", remedy):
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as temporary:
                shape = (episode.frames, self._resolution, self._resolution, 3)
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                with open(temporary, "wb") as stream:
                    np.lib.format.write_array_header_1_0(stream, header)
                    assert stream.tell() == _HEADER_BYTES, "numpy's header has another length"
                    for frames in self._read(episode):
                        if stop.is_set():
                            raise CancelledError
                        stream.write(fit(frames, self._resolution).reshape(-1).data)
                # Remove the frames of an earlier version of the source.
                for old in file.parent.glob(f"{glob.escape(file.name[:-13])}.????????.npy"):
                    old.unlink(missing_ok=True)

    def _read(self, episode: Episode) -> Iterator[Pixels]:
        with refusing(disk=True):
            yield from blocks(self._root, episode)

    def _file(self, episode: Episode) -> Path:
        return self._folder / f"{episode.stem}.{episode.stamp[:8]}.npy"

    def _size(self, episode: Episode) -> int:
        return 0 if self.is_plain(episode) else episode.frames * self._resolution**2 * 3


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


# ---------------------------------------------------------------------------------------------------------------- clips

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

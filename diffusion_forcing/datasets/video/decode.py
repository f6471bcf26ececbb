"""Pixels of a few frames of an episode, at the cost of those frames.

Stored arrays and the cache are read by position: the bytes of the asked frames and no others. A packed npz is unpacked up to the last asked frame,
a film decoded from the keyframe before the first. `Frames` joins these: it knows for each episode whether its cache, its file or a decoder answers.
"""

from __future__ import annotations

import itertools
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from diffusion_forcing.datasets.video.episodes import Episode, Unusable

# Frames of any size made square: the middle square of the picture, then made smaller by area-true (antialiased) bilinear filtering.
#
# Frames are never made larger: pixels that are not in the data would be learnt as if they were.


def fits(height: int, width: int, resolution: int) -> bool:
    """Whether frames of this size need no change."""
    return height == width == resolution


def too_small(height: int, width: int, resolution: int) -> bool:
    """Whether frames of this size would have to be made larger."""
    return min(height, width) < resolution


def fit(frames: NDArray[np.uint8], resolution: int) -> NDArray[np.uint8]:
    """(n, h, w, 3) to (n, resolution, resolution, 3). Of an odd rest, the row or column more is cut off below or on the right."""
    height, width = frames.shape[1:3]
    if fits(height, width, resolution):
        return frames
    assert not too_small(height, width, resolution), "frames are never made larger"
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = frames[:, top : top + side, left : left + side]
    if side == resolution:
        return np.ascontiguousarray(square)
    pixels = torch.from_numpy(np.ascontiguousarray(square)).permute(0, 3, 1, 2)
    small = F.interpolate(pixels, (resolution, resolution), mode="bilinear", antialias=True, align_corners=False)
    return small.permute(0, 2, 3, 1).contiguous().numpy()


Pixels = NDArray[np.uint8]
_BLOCK = 1 << 20
"""Bytes unpacked at once."""
_BLOCKS = 16 << 20
"""Bytes of frames held at once when a whole episode is read."""


class Frames:
    """Frames of `episodes` below `root`, `resolution` pixels wide and high. `cached[i]`: the plain pixels of episode i, if there are."""

    def __init__(
        self, root: Path, episodes: Sequence[Episode], resolution: int, cached: Sequence[tuple[Path, int] | None]
    ) -> None:
        self._root = root
        self._episodes = episodes
        self._resolution = resolution
        self._cached = cached

    def read(self, number: int, frames: NDArray[np.int64]) -> Pixels:
        """(n, resolution, resolution, 3): `frames` (rising, repeats allowed) of episode `number`."""
        cached = self._cached[number]
        if cached is not None:
            path, offset = cached
            return read_stored(path, offset, (self._resolution, self._resolution), frames)
        return fit(read_frames(self._root, self._episodes[number], frames), self._resolution)


def read_frames(root: Path, episode: Episode, frames: NDArray[np.int64]) -> Pixels:
    """(n, h, w, 3): `frames` (rising, repeats allowed) of `episode`'s own file. `Unusable` or `OSError` if it cannot be read."""
    path, shape = root / episode.file, (episode.height, episode.width)
    if episode.kind == "stored":
        return read_stored(path, episode.offset, shape, frames)
    if episode.kind == "packed":
        return read_packed(path, episode.offset, shape, frames)
    from diffusion_forcing.datasets.video.episodes import read_film

    return read_film(path, episode, frames)


def read_stored(path: Path, offset: int, shape: tuple[int, int], frames: NDArray[np.int64]) -> Pixels:
    """`frames` of plain uint8 frames of `shape` that begin at byte `offset` of `path`. `Unusable` if it is cut off."""
    out = np.empty((len(frames), *shape, 3), dtype=np.uint8)
    size = shape[0] * shape[1] * 3
    with open(path, "rb", buffering=0) as file:
        for begin, end in _runs(frames):
            file.seek(offset + int(frames[begin]) * size)
            view = out[begin:end].reshape(-1).data
            while view:
                count = file.readinto(view)
                if not count:
                    raise Unusable("is cut off")
                view = view[count:]
    return out


def read_packed(path: Path, offset: int, shape: tuple[int, int], frames: NDArray[np.int64]) -> Pixels:
    """The same from the array `video` of a compressed npz, whose header is `offset` bytes long."""
    out = np.empty((len(frames), *shape, 3), dtype=np.uint8)
    size = shape[0] * shape[1] * 3
    with _unpacking(path) as file:
        place = 0
        for begin, end in _runs(frames):
            if begin and frames[begin] == frames[begin - 1]:
                out[begin:end] = out[begin - 1]  # one frame again
                continue
            target = offset + int(frames[begin]) * size
            while place < target:
                place += len(_some(file, target - place))
            place += _fill(file, out[begin:end])
    return out


def blocks(root: Path, episode: Episode) -> Iterator[Pixels]:
    """All frames of an episode in turn, some 16 MB at a time, (n, h, w, 3). `Unusable` or `OSError` where they cannot be read."""
    path, shape = root / episode.file, (episode.height, episode.width)
    count = max(1, _BLOCKS // (shape[0] * shape[1] * 3))
    if episode.kind == "film":
        from diffusion_forcing.datasets.video.episodes import film_blocks

        yield from film_blocks(path, episode, count)
        return
    begins = range(0, episode.frames, count)
    if episode.kind == "stored":
        for begin in begins:
            numbers = np.arange(begin, min(begin + count, episode.frames))
            yield read_stored(path, episode.offset, shape, numbers)
        return
    with _unpacking(path) as file:
        place = 0
        while place < episode.offset:
            place += len(_some(file, episode.offset - place))
        for begin in begins:
            out = np.empty((min(count, episode.frames - begin), *shape, 3), dtype=np.uint8)
            _fill(file, out)
            yield out
        file.read(1)  # its end: here the sum over all bytes is compared


@contextmanager
def _unpacking(path: Path) -> Iterator[IO[bytes]]:
    """The array `video` of a npz, its header first; `Unusable` in place of zip's errors."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("video.npy") as file:
            yield file
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise Unusable("is damaged or cut off") from error


def _some(file: IO[bytes], most: int) -> bytes:
    block = file.read(min(_BLOCK, most))
    if not block:
        raise Unusable("is cut off")
    return block


def _fill(file: IO[bytes], out: Pixels) -> int:
    """Fill `out` from `file`; the number of bytes that took."""
    view = out.reshape(-1).data
    place = 0
    while place < len(view):
        block = _some(file, len(view) - place)
        view[place : place + len(block)] = block
        place += len(block)
    return place


def _runs(frames: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Positions [begin, end) of neighbouring frame numbers, which come in one piece."""
    borders = [0, *(np.flatnonzero(np.diff(frames) != 1) + 1).tolist(), len(frames)]
    return list(itertools.pairwise(borders))

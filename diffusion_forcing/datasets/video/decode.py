"""Frames of an episode, each clip at the cost of its own frames, cropped and resized to the resolution asked for.

Stored arrays and decoded caches are read by position, the bytes of the wanted frames and no others. A packed npz is
decompressed up to the last wanted frame, a video decoded from the keyframe before the first.
"""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.arrays import fill
from diffusion_forcing.datasets.video.container import Converter, Pixels, all_times, decoded, opened, read_video, resize
from diffusion_forcing.datasets.video.episode import Episode
from diffusion_forcing.limits import Refused, refusing

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
        found = read_video(path, wanted, all_times(episode.times, episode.frames), episode.keyframes)
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

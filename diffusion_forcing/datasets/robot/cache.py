"""Pictures of demonstrations decoded once: `<set>/.frames/<size>/<split>-NNNNNN.<camera>.<stamp>.npy`, mapped into memory afterwards.

A file is written whole or not at all, and its name holds the stamp of what was decoded: a changed film is decoded again, a killed run goes on.
Where nothing can be written, pictures are kept in memory, and a line says so.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.robot.source import Demonstration, RobotSource, camera_of
from diffusion_forcing.errors import UserError
from diffusion_forcing.files import locked, replacing
from diffusion_forcing.progress import Bar

FOLDER = ".frames"


class FrameCache:
    """Pictures of `source`, `size` pixels a side. keep=False: nothing is written or looked for."""

    def __init__(self, source: RobotSource, size: int, *, keep: bool = True) -> None:
        self._source, self._size, self._keep = source, size, keep
        self._folder = source.root / FOLDER / str(size)

    def read(self, split: str, cameras: Sequence[str], bar: Bar, *, most: float) -> list[Demonstration]:
        """All demonstrations of a split, pictures (N + 1, size, size, 3) among their arrays. `UserError` for a damaged one, or for more than `most`
        bytes of pictures."""
        for camera in cameras:
            camera_of(self._source, camera)
        found, size = [], 0
        for index in range(self._source.counts.get(split, 0)):
            episode = self._source.arrays(split, index)
            size += len(cameras) * (len(episode["actions"]) + 1) * 3 * self._size**2
            if size > most:
                raise UserError(
                    f"the pictures of {self._source.root} at resolution {self._size} take more than {most / 1e9:.0f} GB; lower dataset.resolution"
                )
            for camera in cameras:
                episode[camera] = self._pictures(split, index, camera, len(episode["actions"]) + 1)
            found.append(episode)
            bar.advance(1)
        return found

    def _pictures(self, split: str, index: int, camera: str, count: int) -> NDArray[np.uint8]:
        if not self._keep:
            return self._source.pictures(split, index, camera, self._size)
        file = self._folder / f"{split}-{index:06d}.{camera}.{self._source.stamp(split, index, camera)}.npy"
        shape = (count, self._size, self._size, 3)
        kept = _mapped(file, shape)
        if kept is not None or not self._writable():
            return self._source.pictures(split, index, camera, self._size) if kept is None else kept
        with locked(self._folder):  # several processes that start together decode it once
            kept = _mapped(file, shape)
            if kept is None:
                kept = self._source.pictures(split, index, camera, self._size)
                self._write(file, kept)
                kept = _mapped(file, shape) if self._keep else kept
        assert kept is not None, f"{file} was written, but not as it is read"
        return kept

    def _write(self, file: Path, pictures: NDArray[np.uint8]) -> None:
        try:
            with replacing(file) as temporary:
                with open(temporary, "wb") as stream:
                    np.save(stream, pictures)
                for old in file.parent.glob(f"{glob.escape(file.name[:-13])}.????????.npy"):
                    old.unlink(missing_ok=True)
        except OSError as error:
            self._give_up(error)

    def _writable(self) -> bool:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._folder.with_name(f".{self._folder.name}.lock").touch()
        except OSError as error:
            self._give_up(error)
        return self._keep

    def _give_up(self, error: OSError) -> None:
        print(f"decoded pictures are kept in memory only, {self._folder} cannot be written: {error.strerror or error}")
        self._keep = False


def _mapped(file: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The array in `file`, not read yet; None where it is not there or not it."""
    try:
        kept: Any = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return np.asarray(kept) if kept.shape == shape and kept.dtype == np.uint8 else None

"""Decoded images of demonstrations: `<set>/.frames/<size>/<split>-NNNNNN.<camera>.<stamp>.npy`, memory-mapped once
written.

The stamp in the name changes with the source's files, so that changed videos are decoded again. Where nothing can be
written, images stay in memory and a line says so. `datasets.video.cache`, in contrast, decodes a whole data set ahead
of training and serves ranges of bytes.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.arrays import map_npy, write_npy
from diffusion_forcing.datasets.robot.source import Demonstration, RobotSource, check_camera
from diffusion_forcing.errors import require
from diffusion_forcing.files import replacing
from diffusion_forcing.limits import VARIABLE, Refused, limit
from diffusion_forcing.progress import Bar
from diffusion_forcing.terminal import say


class FrameCache:
    """Images of `source`, `size` pixels a side. write=False keeps them in memory only."""

    def __init__(self, source: RobotSource, size: int, *, write: bool = True) -> None:
        self._source, self._size, self._write = source, size, write
        self._folder = source.root / ".frames" / str(size)

    def read(self, split: str, cameras: Sequence[str], bar: Bar) -> list[Demonstration]:
        """All demonstrations of a split, with images (N + 1, size, size, 3). `UserError` where one is damaged, or
        images exceed the limit FRAMES_BYTES."""
        for camera in cameras:
            check_camera(self._source, camera)
        demonstrations, size = [], 0
        for index in range(self._source.counts.get(split, 0)):
            episode = self._source.arrays(split, index)
            shape = (len(episode["actions"]) + 1, self._size, self._size, 3)
            size += len(cameras) * int(np.prod(shape))
            require(
                size <= limit("FRAMES_BYTES"),
                f"the images of {self._source.root} at resolution {self._size} exceed {limit('FRAMES_BYTES') / 1e9:g} GB; "
                f"lower dataset.resolution, or raise {VARIABLE}FRAMES_BYTES",
            )
            for camera in cameras:
                episode[camera] = self._images(split, index, camera, shape)
            demonstrations.append(episode)
            bar.advance(1)
        return demonstrations

    def _images(self, split: str, index: int, camera: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        name = f"{split}-{index:06d}.{camera}"
        file = self._folder / f"{name}.{self._source.stamp(split, index, camera)}.npy"
        cached = _map(file, shape) if self._write else None
        if cached is not None:
            return cached
        images = self._source.images(split, index, camera, self._size)
        if self._write:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                for old in self._folder.glob(f"{glob.escape(name)}.????????.npy"):
                    old.unlink(missing_ok=True)
                with replacing(file) as temporary:
                    write_npy(temporary, images)
                cached = _map(file, shape)
            except OSError as error:
                say(f"decoded images are kept in memory only: cannot write {self._folder}: {error.strerror or error}")
                self._write = False
        return images if cached is None else cached


def _map(file: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The array in `file`, memory-mapped; None where it is missing or damaged."""
    try:
        array = map_npy(file)
    except (OSError, Refused):
        return None
    return array if array.shape == shape and array.dtype == np.uint8 else None

"""Our layout: {training,validation}/NNNNNN.npz with the arrays of a demonstration, and NNNNNN.<camera>.mp4 beside it.
The npz is written last.

Videos made here are lossless. Those of a converted set are copied as they were; `frames.<camera>` in the npz is the
length of a video that continues after the last action.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.arrays import read_npz, write_npz
from diffusion_forcing.datasets.robot.source import SPLITS, Demonstration, check_actions, check_fps, stamp_of
from diffusion_forcing.datasets.robot.video import read_video, write_video
from diffusion_forcing.errors import require
from diffusion_forcing.files import replacing
from diffusion_forcing.limits import Refused, load_json, reading

RATE = 10
"""Frames and actions per second of the demonstrations made here."""
NOTE = "converted.json"
"""In a converted set: its origin and fps."""
_REMEDY = "remove it, then generate or convert it again"


class RobotFiles:
    """A folder in our layout as a `RobotSource`. counts: demonstrations of each split to use; all by default."""

    def __init__(self, root: Path, counts: Mapping[str, int] | None = None) -> None:
        self.root = root
        self.fps = self._read_fps()
        self.counts = {split: self._count(split) for split in SPLITS} if counts is None else counts

    def cameras(self) -> list[str]:
        """The cameras of the first demonstration."""
        split = next((split for split, count in self.counts.items() if count), SPLITS[0])
        first = self.file(split, 0)
        return sorted(video.name[len(first.stem) + 1 : -4] for video in first.parent.glob(f"{first.stem}.*.mp4"))

    def file(self, split: str, index: int) -> Path:
        return self.root / split / f"{index:06d}.npz"

    def arrays(self, split: str, index: int) -> Demonstration:
        stored = _read_npz(self.file(split, index))
        return {name: array for name, array in stored.items() if not name.startswith("frames.")}

    def images(self, split: str, index: int, camera: str, size: int | None = None) -> NDArray[np.uint8]:
        path = self.file(split, index)
        stored = _read_npz(path)
        needed = len(stored["actions"]) + 1
        video = video_file(path, camera)
        with reading(video, _REMEDY):
            expected = int(stored.get(f"frames.{camera}", needed))
            frames = read_video(video, size, most=expected + 1)
            if len(frames) != expected or expected < needed:
                more = " or more" if len(frames) > expected else ""
                raise Refused(f"has {len(frames)} frames{more} for {needed - 1} actions, expected {expected}")
        return frames[:needed]

    def stamp(self, split: str, index: int, camera: str) -> str:
        path = self.file(split, index)
        return stamp_of(path, video_file(path, camera))

    def _count(self, split: str) -> int:
        names = sorted(file.name for file in (self.root / split).glob("*.npz"))
        for index, name in enumerate(names):
            require(
                name == f"{index:06d}.npz",
                f"{self.root / split} has {name}, expected {index:06d}.npz; number without gaps",
            )
        return len(names)

    def _read_fps(self) -> float:
        note = self.root / NOTE
        if not note.exists():
            return RATE
        with reading(note, "convert the set again"):
            return check_fps(load_json(note)["fps"])


def save_demonstration(path: Path, episode: Mapping[str, NDArray[Any]], fps: float = RATE) -> None:
    """Write images (n, h, w, 3) uint8 as videos beside `path`, then the other arrays as `path` (.npz)."""
    images = {name: array for name, array in episode.items() if array.ndim == 4 and array.dtype == np.uint8}
    for camera, frames in images.items():
        with replacing(video_file(path, camera)) as temporary:
            write_video(temporary, frames, fps)
    write_npz(path, {name: array for name, array in episode.items() if name not in images})


def video_file(path: Path, camera: str) -> Path:
    """The video of a camera beside the npz `path`."""
    return path.with_name(f"{path.stem}.{camera}.mp4")


def _read_npz(path: Path) -> Demonstration:
    with reading(path, _REMEDY):
        arrays = read_npz(path)
        return {**arrays, "actions": check_actions(arrays["actions"])}

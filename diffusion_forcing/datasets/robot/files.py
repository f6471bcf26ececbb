"""Demonstrations on disk, our layout: {training,validation}/NNNNNN.<camera>.mp4 and NNNNNN.npz with the arrays; what has its npz is whole.

Films made here are without loss. Those of a set that was converted are as they came, and `frames.<camera>` in the npz says how many frames a film has
where it goes on behind the last action.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.generate import Simulator
from diffusion_forcing.datasets.robot.source import SPLITS, Demonstration, check_actions
from diffusion_forcing.datasets.robot.video import TooSmall, read_film, write_film
from diffusion_forcing.errors import UserError
from diffusion_forcing.files import replacing

RATE = 10
"""Frames and actions a second of what is made here."""
NOTE = "converted.json"
"""In a set that was converted: from where, and its fps."""
_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, av.FFmpegError)


def save_demonstration(path: Path, episode: Mapping[str, NDArray[Any]], fps: float = RATE) -> None:
    """Write arrays as `path` (.npz), pictures (n, h, w, 3) uint8 among them as films beside it; the npz last."""
    pictures = {name: array for name, array in episode.items() if array.ndim == 4 and array.dtype == np.uint8}
    for name, frames in pictures.items():
        with replacing(film_of(path, name)) as temporary:
            write_film(temporary, frames, fps)
    save_arrays(path, {name: array for name, array in episode.items() if name not in pictures})


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write `path` (.npz), whole or not at all."""
    with replacing(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]


def film_of(path: Path, camera: str) -> Path:
    """Where a camera's film of the demonstration `path` lies."""
    return path.with_name(f"{path.stem}.{camera}.mp4")


def read_demonstration(path: Path, cameras: Sequence[str]) -> Demonstration:
    """The arrays of `path` and its cameras' pictures (n, h, w, 3) uint8. UserError for what is missing or damaged."""
    return {**_read_arrays(path), **{camera: _read_pictures(path, camera) for camera in cameras}}


class RobotFiles:
    """A folder in our layout as a `RobotSource`. counts: how many of each split, the first ones; else all that are there."""

    def __init__(self, root: Path, counts: Mapping[str, int] | None = None) -> None:
        self.root, self._counts = root, counts
        self.fps = self._fps()

    @property
    def counts(self) -> Mapping[str, int]:
        """Demonstrations of every split."""
        if self._counts is None:
            self._counts = {split: self._whole(split) for split in SPLITS}
        return self._counts

    def cameras(self) -> list[str]:
        """Those that the first demonstration was filmed by."""
        split = next((split for split, count in self.counts.items() if count), None)
        if split is None:
            return []
        first = self.file(split, 0)
        return sorted(film.name[len(first.stem) + 1 : -4] for film in first.parent.glob(f"{first.stem}.*.mp4"))

    def file(self, split: str, index: int) -> Path:
        """The npz of a demonstration."""
        return self.root / split / f"{index:06d}.npz"

    def arrays(self, split: str, index: int) -> Demonstration:
        """All of a demonstration but its pictures."""
        return _read_arrays(self.file(split, index))

    def pictures(self, split: str, index: int, camera: str, size: int | None = None) -> NDArray[np.uint8]:
        """(N + 1, h, w, 3)."""
        return _read_pictures(self.file(split, index), camera, size)

    def stamp(self, split: str, index: int, camera: str) -> str:
        """Of the film's and the arrays' size and time."""
        path = self.file(split, index)
        return stamp_of(path, film_of(path, camera))

    def _whole(self, split: str) -> int:
        names = {file.name for file in (self.root / split).glob("*.npz")}
        for count in range(len(names)):
            if f"{count:06d}.npz" not in names:
                raise UserError(
                    f"{self.root / split} holds {len(names)} demonstrations, but not {count:06d}.npz; they are numbered without gaps"
                )
        return len(names)

    def _fps(self) -> float:
        note = self.root / NOTE
        if not note.exists():
            return RATE
        try:
            return float(json.loads(note.read_text())["fps"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{note} is damaged ({error}); convert the set again") from error


@dataclass(frozen=True)
class Filming:
    """A simulator whose episodes are kept as demonstrations."""

    simulator: Simulator

    @property
    def frames(self) -> int:
        """Of an episode, about."""
        return self.simulator.frames

    @property
    def recipe(self) -> Mapping[str, str | int | float]:
        """The simulator's."""
        return self.simulator.recipe

    def make(self, split: str, index: int) -> Mapping[str, NDArray[Any]]:
        """The simulator's."""
        return self.simulator.make(split, index)

    def save(self, path: Path, episode: Mapping[str, NDArray[Any]]) -> None:
        """As films and an npz."""
        save_demonstration(path, episode)

    def close(self) -> None:
        """The simulator's."""
        self.simulator.close()


def stamp_of(*files: Path, facts: str = "") -> str:
    """Eight hex digits of files' names, sizes and times, and `facts`. `UserError` where one is missing."""
    stats: list[tuple[str, int, int]] = []
    for file in files:
        try:
            found = file.stat()
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
        stats.append((file.name, found.st_size, found.st_mtime_ns))
    return hashlib.sha256(repr((stats, facts)).encode()).hexdigest()[:8]


def _read_arrays(path: Path) -> Demonstration:
    try:
        with np.load(path, allow_pickle=False) as stored:
            episode = {name: stored[name] for name in stored.files}
        episode["actions"] = check_actions(episode["actions"])
    except _DAMAGE as failure:
        raise _unreadable(path, failure) from failure
    return {name: array for name, array in episode.items() if not name.startswith("frames.")}


def _read_pictures(path: Path, camera: str, size: int | None = None) -> NDArray[np.uint8]:
    film = film_of(path, camera)
    try:
        with np.load(path, allow_pickle=False) as stored:
            needed = len(stored["actions"]) + 1
            there = int(stored[f"frames.{camera}"]) if f"frames.{camera}" in stored.files else needed
        frames = read_film(film, size)
        if len(frames) != there or there < needed:
            raise ValueError(
                f"camera {camera} has {len(frames)} frames for {needed - 1} actions; {'one more is' if there == needed else f'{there} are'} needed"
            )
    except _DAMAGE as failure:
        raise _unreadable(path, failure) from failure
    return frames[:needed]


def _unreadable(path: Path, failure: Exception) -> UserError:
    if isinstance(failure, TooSmall):
        return UserError(f"{path}: {failure}; choose another dataset.save_dir or a lower dataset.resolution")
    said = f"there is no {failure}" if isinstance(failure, KeyError) else failure
    return UserError(f"{path} cannot be read: {said}; remove it, and generate or convert it again")

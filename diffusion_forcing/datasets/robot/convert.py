"""Demonstrations of one layout written in another: ours, LeRobot's, or from the authors' released one. The new folder is whole or not there.

Our layout is made in `.<name>.partial` beside the new folder, demonstration by demonstration, and renamed at the end: a killed conversion goes on.
Films of the released data are copied as they are, unless another size is asked for.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diffusion_forcing.datasets.robot.files import NOTE, RobotFiles, film_of, save_arrays
from diffusion_forcing.datasets.robot.lerobot import LeRobotSet, is_lerobot
from diffusion_forcing.datasets.robot.lerobot_writer import SWAP_TASK, LeRobotOptions, write_lerobot
from diffusion_forcing.datasets.robot.released import ReleasedFolders
from diffusion_forcing.datasets.robot.source import Demonstration, RobotSource, camera_of
from diffusion_forcing.datasets.robot.video import write_film
from diffusion_forcing.errors import UserError
from diffusion_forcing.files import locked, replacing, write_atomic
from diffusion_forcing.progress import Bar, progress_bar

LAYOUTS = ("ours", "lerobot")


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """to: ours | lerobot. cameras: those to take, all where empty; of the released data names for the films in order, or by name a film's name.
    resolution: pixels a side, as they are where None; fps: where a source says it wrongly. codec, task, …_mb: see LeRobotOptions."""

    to: str = "ours"
    cameras: Mapping[str, str] | Sequence[str] = field(default_factory=tuple)
    allow_pickle: bool = False
    resolution: int | None = None
    fps: float | None = None
    codec: str = "lossless"
    task: str = SWAP_TASK
    robot_type: str = "fetch"
    chunks_size: int = 1000
    data_files_size_in_mb: float = 100
    video_files_size_in_mb: float = 200

    def __post_init__(self) -> None:
        if self.to not in LAYOUTS:
            raise UserError(f"--to is {self.to!r}; allowed: {', '.join(LAYOUTS)}")
        if self.resolution is not None and not 8 <= self.resolution <= 4096:
            raise UserError(f"--resolution is {self.resolution}; pictures have 8 to 4096 pixels a side")
        self.lerobot(10)

    def lerobot(self, fps: float) -> LeRobotOptions:
        """How a LeRobot set is written. UserError for what is not allowed."""
        names = ("codec", "task", "robot_type", "chunks_size", "data_files_size_in_mb", "video_files_size_in_mb")
        return LeRobotOptions(
            fps=fps if self.fps is None else self.fps, **{name: getattr(self, name) for name in names}
        )


def open_source(root: Path, options: ConvertOptions) -> RobotSource:
    """The demonstrations in `root`, whatever their layout. `UserError` where there are none."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder")
    if is_lerobot(root):
        return LeRobotSet(root)
    if any((root / split).is_dir() for split in ("training", "validation")):
        return RobotFiles(root)
    return ReleasedFolders(root, options.cameras or ("front", "over"), allow_pickle=options.allow_pickle)


def convert_robot(
    source: Path, target: Path, options: ConvertOptions | None = None, *, progress: bool = True
) -> Mapping[str, int]:
    """Write the demonstrations of `source` as the new folder `target`; returns how many of each split. `UserError` for what cannot be done."""
    options = options or ConvertOptions()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists; choose a new folder")
    opened = open_source(source, options)
    cameras = [camera_of(opened, name) for name in options.cameras] or opened.cameras()
    counts = {split: count for split, count in opened.counts.items() if count}
    if not counts:
        raise UserError(f"{source} holds no demonstrations")
    total = sum(counts.values())
    with progress_bar(f"converting {source.name}", total=total, unit="demonstrations", show=progress) as bar:
        if options.to == "lerobot":
            write_lerobot(target, _read(opened, counts, cameras, options, bar), options.lerobot(opened.fps))
        else:
            with locked(target):
                _write_ours(opened, target, counts, cameras, options, bar)
    return counts


def _read(
    source: RobotSource, counts: Mapping[str, int], cameras: Sequence[str], options: ConvertOptions, bar: Bar
) -> Iterator[tuple[str, Demonstration]]:
    for split, count in counts.items():
        for index in range(count):
            arrays = source.arrays(split, index)
            episode = {name: array for name, array in arrays.items() if not name.startswith("frames.")}
            for camera in cameras:
                episode[camera] = source.pictures(split, index, camera, options.resolution)
            yield split, episode
            bar.advance(1)


def _write_ours(
    source: RobotSource,
    target: Path,
    counts: Mapping[str, int],
    cameras: Sequence[str],
    options: ConvertOptions,
    bar: Bar,
) -> None:
    partial = target.with_name(f".{target.name}.partial")
    fps = source.fps if options.fps is None else options.fps
    note = {
        "source": str(source.root.resolve()),
        "fps": fps,
        "counts": dict(counts),
        "cameras": list(cameras),
        "resolution": options.resolution,
    }
    try:
        _begin(partial, note)
        for split, count in counts.items():
            (partial / split).mkdir(exist_ok=True)
            for index in range(count):
                path = RobotFiles(partial, counts).file(split, index)
                if not path.exists():
                    _write_one(source, split, index, cameras, path, fps, options.resolution)
                bar.advance(1)
        if target.exists():
            target.rmdir()
        os.replace(partial, target)
    except OSError as error:
        raise UserError(
            f"cannot write {target}: {error.strerror or error}; make room, and run it again to go on"
        ) from error


def _begin(partial: Path, note: Mapping[str, object]) -> None:
    """The folder of a conversion, a new one or one that was begun with the same settings."""
    file = partial / NOTE
    text = json.dumps(note, indent=1) + "\n"
    if partial.exists() and (not file.exists() or file.read_text() != text):
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    for rest in partial.rglob("*.tmp"):
        rest.unlink()
    write_atomic(file, text)


def _write_one(
    source: RobotSource,
    split: str,
    index: int,
    cameras: Sequence[str],
    path: Path,
    fps: float,
    resolution: int | None,
) -> None:
    arrays = source.arrays(split, index)
    for camera in cameras:
        film = film_of(path, camera)
        if isinstance(source, ReleasedFolders) and resolution is None:
            with replacing(film) as temporary:
                shutil.copyfile(source.film(split, index, camera), temporary)
            continue
        pictures = source.pictures(split, index, camera, resolution)
        with replacing(film) as temporary:
            write_film(temporary, pictures, fps)
        arrays.pop(f"frames.{camera}", None)
    needed = len(arrays["actions"]) + 1
    kept = {
        name: array for name, array in arrays.items() if not (name.startswith("frames.") and np.all(array == needed))
    }
    save_arrays(path, kept)

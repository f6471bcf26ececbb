"""Converting demonstrations from any layout to ours or LeRobot's. The new folder appears when it is complete.

Videos of the released data are copied byte for byte, unless a resolution is given.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusion_forcing.arrays import write_npz
from diffusion_forcing.datasets.robot.lerobot import LeRobotSet, is_lerobot
from diffusion_forcing.datasets.robot.lerobot_writer import LeRobotOptions, write_lerobot
from diffusion_forcing.datasets.robot.released import ReleasedFolders
from diffusion_forcing.datasets.robot.source import (
    NOTE,
    SPLITS,
    Demonstration,
    RobotFiles,
    RobotSource,
    check_camera,
    read_demonstration,
    video_file,
)
from diffusion_forcing.datasets.robot.video import write_video
from diffusion_forcing.errors import check_choice, check_range, explaining_os_errors, require
from diffusion_forcing.files import remove_leftovers, replacing, write_json
from diffusion_forcing.progress import Bar


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(LeRobotOptions):
    """to: ours | lerobot. cameras: those to convert, all by default; of the released data see `ReleasedFolders`.
    resolution: pixels a side, unchanged where None. fps: overrides the source's. The others are of lerobot."""

    to: str = "ours"
    cameras: Mapping[str, str] | Sequence[str] = ()
    allow_pickle: bool = False
    resolution: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("--to", self.to, ("ours", "lerobot"))
        check_range("--resolution", self.resolution or 8, 8, 4096)


def open_source(root: Path, options: ConvertOptions) -> RobotSource:
    """The demonstrations in `root`, in any layout. `UserError` where there are none."""
    require(root.is_dir(), f"{root} is not a folder")
    if is_lerobot(root):
        return LeRobotSet(root)
    if any((root / split).is_dir() for split in SPLITS):
        return RobotFiles(root)
    return ReleasedFolders(root, options.cameras or ("front", "over"), allow_pickle=options.allow_pickle)


def convert_robot(
    source: Path, target: Path, options: ConvertOptions | None = None, *, progress: bool = True
) -> Mapping[str, int]:
    """Convert the demonstrations of `source` to the new folder `target`; returns how many there are of each split.
    `UserError` where that fails."""
    options = options or ConvertOptions()
    is_new = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    require(is_new, f"{target} exists; choose a new folder")
    opened = open_source(source, options)
    options = dataclasses.replace(
        options,
        cameras=[check_camera(opened, name) for name in options.cameras] or opened.cameras(),
        fps=opened.fps if options.fps is None else options.fps,
    )
    counts = {split: count for split, count in opened.counts.items() if count}
    require(bool(counts), f"{source} has no demonstrations")
    tasks = [(split, index) for split, count in counts.items() for index in range(count)]
    with Bar(f"converting {source.name}", total=len(tasks), unit="demonstrations", show=progress) as bar:
        if options.to == "lerobot":
            write_lerobot(target, _read_all(opened, tasks, options, bar), options)
        else:
            _write_ours(opened, target, tasks, options, bar)
    return counts


def _read_all(
    source: RobotSource, tasks: Sequence[tuple[str, int]], options: ConvertOptions, bar: Bar
) -> Iterator[tuple[str, Demonstration]]:
    for split, index in tasks:
        episode = read_demonstration(source, split, index, list(options.cameras), options.resolution)
        yield split, {name: array for name, array in episode.items() if not name.startswith("frames.")}
        bar.advance(1)


def _write_ours(
    source: RobotSource, target: Path, tasks: Sequence[tuple[str, int]], options: ConvertOptions, bar: Bar
) -> None:
    remove_leftovers(target.parent)
    with (
        explaining_os_errors(f"cannot write {target}", "make room or choose another folder"),
        replacing(target) as folder,
    ):
        for split, index in tasks:
            path = RobotFiles(folder, {}).file(split, index)
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_one(source, split, index, path, options)
            bar.advance(1)
        write_json(folder / NOTE, {"source": str(source.root.resolve()), "fps": options.fps})
        if target.exists():
            target.rmdir()  # fails where something has been put there meanwhile


def _write_one(source: RobotSource, split: str, index: int, path: Path, options: ConvertOptions) -> None:
    arrays = source.arrays(split, index)
    for camera in options.cameras:
        video = video_file(path, camera)
        if isinstance(source, ReleasedFolders) and options.resolution is None:
            shutil.copyfile(source.video(split, index, camera), video)
            continue
        write_video(video, source.images(split, index, camera, options.resolution), options.fps or source.fps)
        arrays.pop(f"frames.{camera}", None)
    # The length of a video is stored only where it exceeds that of the demonstration.
    needed = len(arrays["actions"]) + 1
    write_npz(path, {key: array for key, array in arrays.items() if not key.startswith("frames.") or array != needed})

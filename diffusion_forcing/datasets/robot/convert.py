"""Converting demonstrations from any layout to ours or LeRobot's. The new folder appears when it is complete.

Videos of the released data are copied byte for byte, unless a resolution is given.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.arrays import write_npz
from diffusion_forcing.datasets.parquet import import_pyarrow
from diffusion_forcing.datasets.robot import lerobot as layout
from diffusion_forcing.datasets.robot.lerobot import LeRobotSet, is_lerobot
from diffusion_forcing.datasets.robot.source import (
    ACTION,
    NOTE,
    RATE,
    SPLITS,
    Demonstration,
    ReleasedFolders,
    RobotFiles,
    RobotSource,
    check_camera,
    read_demonstration,
    video_file,
)
from diffusion_forcing.datasets.video.container import CODECS, VideoWriter, write_video
from diffusion_forcing.errors import check_choice, check_range, explaining_os_errors, require
from diffusion_forcing.files import remove_leftovers, replacing, write_json
from diffusion_forcing.progress import Bar

# ------------------------------------------------------------------------------------------------------ writing LeRobot
# Writing a LeRobot data set v3.0, the whole folder or nothing.
#
# LeRobot has one action per frame, a demonstration one frame more than actions: the last row repeats the last action and
# sets `next.done`. A reader that drops the last row's action has the demonstration back. Arrays without a name in LeRobot
# become `frame.<name>`, where they have one row per frame, or `episode.<name>`, repeated in each row.

DONE = "next.done"
SWAP_TASK = "Exchange the two fruits."
_SPLITS = {"training": "train"}
_MB = 1024**2

Columns = dict[str, NDArray[Any]]
Statistics = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class LeRobotOptions:
    """How a set is written. codec: lossless | h264 | av1; task: what the robot does, in words; fps: 10 where None;
    …_mb: approximate size of a file."""

    codec: str = "lossless"
    fps: float | None = None
    task: str = SWAP_TASK
    robot_type: str = "fetch"
    chunks_size: int = 1000
    data_files_size_in_mb: float = 100
    video_files_size_in_mb: float = 200

    def __post_init__(self) -> None:
        check_choice("codec", self.codec, CODECS)
        for name in ("fps", "chunks_size", "data_files_size_in_mb", "video_files_size_in_mb"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} is {value}; it must be above 0")


def write_lerobot(
    root: Path, demonstrations: Iterable[tuple[str, Demonstration]], options: LeRobotOptions | None = None
) -> Path:
    """Write (split, demonstration) pairs, one split after the other, as the new folder `root`. UserError where it
    exists or one cannot be written."""
    require(not root.exists() or not any(root.iterdir()), f"{root} exists; choose a new folder")
    with (
        explaining_os_errors(f"cannot write {root}", "make room or choose another folder"),
        replacing(root) as temporary,
    ):
        temporary.mkdir(parents=True)
        _Writer(temporary, options or LeRobotOptions()).write(demonstrations)
    return root


class _Writer:
    """A set being written in `root`."""

    def __init__(self, root: Path, options: LeRobotOptions) -> None:
        self.root, self.options, self.fps = root, options, options.fps or RATE
        self.features: dict[str, dict[str, Any]] = {}
        self.splits: dict[str, list[int]] = {}
        self.episodes: list[dict[str, Any]] = []
        self.statistics: list[dict[str, Statistics]] = []
        self.frames = 0
        self.data = _Files(root, layout.DATA, options.chunks_size, options.data_files_size_in_mb)
        self.videos: dict[str, _Files] = {}

    def write(self, demonstrations: Iterable[tuple[str, Demonstration]]) -> None:
        try:
            for split, demonstration in demonstrations:
                columns, images = self._columns(demonstration)
                self._check_features(columns, images)
                self._add(split, columns, images)
        finally:
            for files in (self.data, *self.videos.values()):
                files.close()
        require(bool(self.episodes), "there are no demonstrations to write")
        self._write_metadata()

    def _columns(self, demonstration: Demonstration) -> tuple[Columns, Columns]:
        """Columns with one row per frame, and images (n, h, w, 3), by feature."""
        number, actions = len(self.episodes), demonstration["actions"]
        count = len(actions) + 1
        columns: Columns = {"action": np.concatenate([actions, actions[-1:]])}
        images: Columns = {}
        for name, array in demonstration.items():
            if array.ndim == 4 and array.dtype == np.uint8:
                images[layout.IMAGES + name] = array
            elif name == "states":
                columns[layout.STATE] = array.astype(np.float32)
            elif len(array) == count and array.ndim <= 2:
                columns[f"frame.{name}"] = array
            elif name != "actions":
                require(array.ndim == 1, f"array {name} of shape {array.shape} has no place in a LeRobot set")
                columns[f"episode.{name}"] = np.repeat(array[None], count, axis=0)
        for key, array in {**columns, **images}.items():
            require(len(array) == count, f"{key} of demonstration {number} has {len(array)} rows for {count} frames")
        frame = np.arange(count)
        columns |= {DONE: frame == count - 1, "timestamp": (frame / self.fps).astype(np.float32), "frame_index": frame}
        columns |= {"episode_index": np.full(count, number), "index": self.frames + frame}
        return {**columns, "task_index": np.zeros(count, np.int64)}, images

    def _check_features(self, columns: Columns, images: Columns) -> None:
        """Take the features of the first demonstration; UserError where a later one has others."""
        features, options = _features(columns, images), self.options
        self.features = self.features or features
        other = [key for key in {**features, **self.features} if features.get(key) != self.features.get(key)]
        require(not other, f"demonstration {len(self.episodes)} differs from the first in {', '.join(sorted(other))}")
        for key, array in images.items():
            height, width = array.shape[1:3]
            require(
                CODECS[options.codec].pixel_format != "yuv420p" or height % 2 == width % 2 == 0,
                f"codec {options.codec} needs even sides, images are {height} x {width}; use codec lossless",
            )
            template = layout.VIDEOS.replace("{video_key}", key)
            files = _Files(self.root, template, options.chunks_size, options.video_files_size_in_mb)
            self.videos.setdefault(key, files)

    def _add(self, split: str, columns: Columns, images: Columns) -> None:
        number, count = len(self.episodes), len(columns["action"])
        span = self.splits.setdefault(_SPLITS.get(split, split), [number, number])
        require(span[1] == number, f"split {split} comes twice; give all demonstrations of a split one after the other")
        span[1] = number + 1
        episode: dict[str, Any] = {"episode_index": number, "tasks": [self.options.task], "length": count}
        episode |= {f"data/{name}": value for name, value in self._add_rows(columns).items()}
        episode |= {"dataset_from_index": self.frames, "dataset_to_index": self.frames + count}
        for key, array in images.items():
            episode |= {f"videos/{key}/{name}": value for name, value in self._add_video(key, array).items()}
        statistics = {key: row_statistics(array) for key, array in columns.items()}
        statistics |= {key: image_statistics(array) for key, array in images.items()}
        for key, values in statistics.items():
            episode |= {f"stats/{key}/{name}": value.tolist() for name, value in values.items()}
        self.episodes.append(episode)
        self.statistics.append(statistics)
        self.frames += count

    def _add_rows(self, columns: Columns) -> dict[str, int]:
        """Write an episode's rows; returns their chunk and file."""
        arrow, files = import_pyarrow(), self.data
        table = arrow.table({key: _arrow_column(array) for key, array in columns.items()})
        if files.begins(len(table), files.path.stat().st_size if files.rows else 0):
            files.writer = arrow.parquet.ParquetWriter(files.path, table.schema, compression="snappy")
        files.writer.write_table(table)
        return files.place

    def _add_video(self, key: str, images: NDArray[np.uint8]) -> dict[str, Any]:
        """Write an episode's images (n, h, w, 3) of one camera; returns their chunk, file and times."""
        files, size = self.videos[key], (images.shape[1], images.shape[2])
        start = files.rows / self.fps
        if files.begins(len(images), files.writer.bytes if files.rows else 0):
            start, files.writer = 0.0, VideoWriter(files.path, size, self.fps, self.options.codec)
        files.writer.add(images)
        return {**files.place, "from_timestamp": start, "to_timestamp": files.rows / self.fps}

    def _write_metadata(self) -> None:
        import pandas as pd

        arrow, options = import_pyarrow(), self.options
        # meta/episodes: each row has its own place as well.
        row_bytes = max(1, arrow.Table.from_pylist(self.episodes).nbytes / len(self.episodes))
        rows = max(1, int(options.data_files_size_in_mb * _MB / row_bytes))
        files = _Files(self.root, layout.EPISODES, options.chunks_size, 0)
        for begin in range(0, len(self.episodes), rows):
            files.begins(rows, 0)
            own = {f"meta/episodes/{name}": number for name, number in files.place.items()}
            table = arrow.Table.from_pylist([{**episode, **own} for episode in self.episodes[begin : begin + rows]])
            arrow.parquet.write_table(table, files.path, compression="snappy")
        pd.DataFrame({"task_index": [0]}, index=[options.task]).to_parquet(self.root / layout.TASKS)
        codec = CODECS[options.codec]
        for key in self.videos:
            height, width, channels = self.features[key]["shape"]
            self.features[key]["info"] = {
                "video.height": height,
                "video.width": width,
                "video.codec": "av1" if codec.encoder == "libsvtav1" else "h264",
                "video.pix_fmt": "gbrp" if codec.pixel_format == "rgb24" else codec.pixel_format,
                "video.is_depth_map": False,
                "video.fps": round(self.fps),
                "video.channels": channels,
                "has_audio": False,
            }
        info = {
            "codebase_version": layout.VERSION,
            "robot_type": options.robot_type,
            "total_episodes": len(self.episodes),
            "total_frames": self.frames,
            "total_tasks": 1,
            "chunks_size": options.chunks_size,
            "data_files_size_in_mb": options.data_files_size_in_mb,
            "video_files_size_in_mb": options.video_files_size_in_mb,
            "fps": int(self.fps) if float(self.fps).is_integer() else self.fps,
            "splits": {split: f"{begin}:{end}" for split, (begin, end) in self.splits.items()},
            "data_path": layout.DATA,
            "video_path": layout.VIDEOS if self.videos else None,
            "features": self.features,
        }
        joined = {key: join_statistics([one[key] for one in self.statistics]) for key in self.statistics[0]}
        total = {key: {name: value.tolist() for name, value in one.items()} for key, one in joined.items()}
        for name, content in ((layout.STATISTICS, total), (layout.INFO, info)):
            (self.root / name).write_text(json.dumps(content, indent=4, ensure_ascii=False), encoding="utf-8")


def _features(columns: Columns, images: Columns) -> dict[str, dict[str, Any]]:
    """The `features` of info.json."""
    features: dict[str, dict[str, Any]] = {}
    for key, array in images.items():
        features[key] = {"dtype": "video", "shape": list(array.shape[1:]), "names": ["height", "width", "channels"]}
    for key, array in columns.items():
        shape = list(array.shape[1:]) or [1]
        named = key in ("action", layout.STATE) and shape == [len(ACTION)]
        features[key] = {"dtype": str(array.dtype), "shape": shape, "names": list(ACTION) if named else None}
    return features


class _Files:
    """Files of one kind, one after the other, `chunks_size` in a chunk, of about `size_mb` each."""

    def __init__(self, root: Path, template: str, chunks_size: int, size_mb: float) -> None:
        self._root, self._template, self._chunks_size, self._most = root, template, chunks_size, size_mb * _MB
        self._number = -1
        self.rows = 0
        """In the present file."""
        self.writer: Any = None
        """What writes it, closed before the next begins."""

    @property
    def place(self) -> dict[str, int]:
        """The numbers in its name."""
        return dict(zip(("chunk_index", "file_index"), divmod(self._number, self._chunks_size), strict=True))

    @property
    def path(self) -> Path:
        return self._root / self._template.format(**self.place)

    def begins(self, rows: int, size: int) -> bool:
        """Whether `rows` more begin a new file: where they would exceed the size, judging by the `size` so far."""
        new = not self.rows or size * (1 + rows / self.rows) >= self._most
        if new:
            self.close()
            self._number, self.rows = self._number + 1, 0
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self.rows += rows
        return new

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None


def _arrow_column(array: NDArray[Any]) -> Any:
    arrow = import_pyarrow()
    flat = arrow.array(np.ascontiguousarray(array).reshape(-1))
    return flat if array.size == len(array) else arrow.FixedSizeListArray.from_arrays(flat, array.shape[1])


QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
"""Besides min, max, mean, std and count, what LeRobot stores of every feature, per episode and per set."""


def row_statistics(rows: NDArray[Any]) -> Statistics:
    """Of rows (n, …), for each of their values."""
    values = rows.reshape(len(rows), -1).astype(np.float64)
    return {
        "min": values.min(0),
        "max": values.max(0),
        "mean": values.mean(0),
        "std": values.std(0),
        "count": np.array([len(values)]),
        **{name: np.quantile(values, share, axis=0) for name, share in QUANTILES.items()},
    }


def image_statistics(images: NDArray[np.uint8]) -> Statistics:
    """Of images (n, h, w, 3) in [0, 1], (3, 1, 1) for the channels, from histograms; `count` is frames."""
    levels = np.arange(256) / 255
    counts = np.stack([np.bincount(channel, minlength=256) for channel in images.reshape(-1, 3).T])  # (3, 256)
    share = counts / counts.sum(1, keepdims=True)
    cumulative = share.cumsum(1)
    mean = share @ levels
    values = {
        "min": levels[(counts > 0).argmax(1)],
        "max": levels[255 - (counts[:, ::-1] > 0).argmax(1)],
        "mean": mean,
        "std": np.sqrt((share * (levels - mean[:, None]) ** 2).sum(1)),
        **{name: levels[(cumulative < part).sum(1).clip(max=255)] for name, part in QUANTILES.items()},
    }
    return {**{name: value.reshape(3, 1, 1) for name, value in values.items()}, "count": np.array([len(images)])}


def join_statistics(parts: Sequence[Mapping[str, NDArray[Any]]]) -> Statistics:
    """Of several episodes together: mean and std exactly, quantiles as LeRobot does, by their mean weighted with the
    count."""
    counts = np.array([part["count"][0] for part in parts], np.float64)

    def weighted(values: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
        return np.tensordot(counts / counts.sum(), np.stack(values).astype(np.float64), axes=1)

    mean = weighted([part["mean"] for part in parts])
    variance = weighted([part["std"] ** 2 + (part["mean"] - mean) ** 2 for part in parts])
    return {
        "min": np.min([part["min"] for part in parts], axis=0),
        "max": np.max([part["max"] for part in parts], axis=0),
        "mean": mean,
        "std": np.sqrt(variance),
        "count": np.array([int(counts.sum())]),
        **{name: weighted([part[name] for part in parts]) for name in QUANTILES},
    }


# ---------------------------------------------------------------------------------------------------------- the command


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

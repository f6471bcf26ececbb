"""Writing a LeRobot data set v3.0, the whole folder or nothing.

LeRobot has one action per frame, a demonstration one frame more than actions: the last row repeats the last action and
sets `next.done`. A reader that drops the last row's action has the demonstration back. Arrays without a name in LeRobot
become `frame.<name>`, where they have one row per frame, or `episode.<name>`, repeated in each row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.parquet import import_pyarrow
from diffusion_forcing.datasets.robot import lerobot as layout
from diffusion_forcing.datasets.robot.files import RATE
from diffusion_forcing.datasets.robot.source import ACTION, Demonstration
from diffusion_forcing.datasets.robot.video import CODECS, VideoWriter
from diffusion_forcing.errors import UserError, check_choice, explaining_os_errors, require
from diffusion_forcing.files import replacing

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
        self.root, self.options = root, options
        self.fps = options.fps or RATE
        self.features: dict[str, dict[str, Any]] = {}
        self.splits: dict[str, list[int]] = {}
        self.episodes: list[dict[str, Any]] = []
        self.statistics: list[dict[str, Statistics]] = []
        self.frames = 0
        self.rows = _RowFiles(root, options)
        self.videos: dict[str, _VideoFiles] = {}

    def write(self, demonstrations: Iterable[tuple[str, Demonstration]]) -> None:
        try:
            for split, demonstration in demonstrations:
                columns, images = self._columns(demonstration)
                self._check_features(columns, images)
                self._add(split, columns, images)
        finally:
            self.rows.close()
            for video in self.videos.values():
                video.close()
        require(bool(self.episodes), "there are no demonstrations to write")
        self._write_metadata()

    def _columns(self, demonstration: Demonstration) -> tuple[Columns, Columns]:
        """Columns with one row per frame, and images (n, h, w, 3), by feature."""
        number, actions = len(self.episodes), demonstration["actions"]
        count = len(actions) + 1
        columns: Columns = {"action": np.concatenate([actions, actions[-1:]])}
        images: Columns = {}
        for name, array in demonstration.items():
            if name == "actions":
                continue
            if array.ndim == 4 and array.dtype == np.uint8:
                images[layout.IMAGES + name] = array
            elif name == "states":
                columns[layout.STATE] = array.astype(np.float32)
            elif len(array) == count and array.ndim <= 2:
                columns[f"frame.{name}"] = array
            elif array.ndim == 1:
                columns[f"episode.{name}"] = np.repeat(array[None], count, axis=0)
            else:
                raise UserError(f"array {name} of shape {array.shape} has no place in a LeRobot set")
        for key, array in {**columns, **images}.items():
            require(len(array) == count, f"{key} of demonstration {number} has {len(array)} rows for {count} frames")
        frame = np.arange(count)
        columns[DONE] = frame == count - 1
        columns["timestamp"] = (frame / self.fps).astype(np.float32)
        columns["frame_index"], columns["episode_index"] = frame, np.full(count, number)
        columns["index"], columns["task_index"] = self.frames + frame, np.zeros(count, np.int64)
        return columns, images

    def _check_features(self, columns: Columns, images: Columns) -> None:
        """Take the features of the first demonstration; UserError where a later one has others."""
        features = _features(columns, images)
        if not self.features:
            self.features = features
            for key, array in images.items():
                self.videos[key] = _VideoFiles(self.root, key, array.shape[1:3], self.options, self.fps)
        other = [key for key in {**features, **self.features} if features.get(key) != self.features.get(key)]
        require(not other, f"demonstration {len(self.episodes)} differs from the first in {', '.join(sorted(other))}")

    def _add(self, split: str, columns: Columns, images: Columns) -> None:
        number, count = len(self.episodes), len(columns["action"])
        span = self.splits.setdefault(_SPLITS.get(split, split), [number, number])
        require(span[1] == number, f"split {split} comes twice; give all demonstrations of a split one after the other")
        span[1] = number + 1
        statistics = {key: row_statistics(array) for key, array in columns.items()}
        statistics |= {key: image_statistics(array) for key, array in images.items()}
        episode: dict[str, Any] = {
            "episode_index": number,
            "tasks": [self.options.task],
            "length": count,
            **self.rows.add(columns),
            "dataset_from_index": self.frames,
            "dataset_to_index": self.frames + count,
        }
        for key, video in self.videos.items():
            episode |= video.add(images[key])
        for key, values in statistics.items():
            episode |= {f"stats/{key}/{name}": value.tolist() for name, value in values.items()}
        self.episodes.append(episode)
        self.statistics.append(statistics)
        self.frames += count

    def _write_metadata(self) -> None:
        import pandas as pd

        options = self.options
        _write_episodes(self.root, self.episodes, options)
        pd.DataFrame({"task_index": [0]}, index=[options.task]).to_parquet(self.root / layout.TASKS)
        for key, video in self.videos.items():
            self.features[key]["info"] = video.metadata()
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


class _Names:
    """Names of files one after the other, `chunks_size` files in a chunk."""

    def __init__(self, root: Path, template: str, chunks_size: int) -> None:
        self._root, self._template, self._chunks_size = root, template, chunks_size
        self._number = -1

    @property
    def place(self) -> dict[str, int]:
        """The numbers in the present name."""
        chunk, file = divmod(self._number, self._chunks_size)
        return {"chunk_index": chunk, "file_index": file}

    def next(self) -> Path:
        """The next file, its folder made."""
        self._number += 1
        path = self._root / self._template.format(**self.place)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


class _RowFiles:
    """The data files. A new one starts where an episode is expected to exceed the size, judging by the rows so far."""

    def __init__(self, root: Path, options: LeRobotOptions) -> None:
        self._names = _Names(root, layout.DATA, options.chunks_size)
        self._max_bytes = options.data_files_size_in_mb * _MB
        self._file = root
        self._writer: Any = None
        self._count = 0

    def add(self, columns: Columns) -> dict[str, int]:
        """Write an episode; returns its chunk and file for meta/episodes."""
        arrow = import_pyarrow()
        table = arrow.table({key: _arrow_column(array) for key, array in columns.items()})
        if self._writer is None or self._file.stat().st_size * (1 + len(table) / self._count) >= self._max_bytes:
            self.close()
            self._file, self._count = self._names.next(), 0
            self._writer = arrow.parquet.ParquetWriter(self._file, table.schema, compression="snappy")
        self._writer.write_table(table)
        self._count += len(table)
        return {f"data/{name}": number for name, number in self._names.place.items()}

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _VideoFiles:
    """The videos of one camera, its episodes end to end; a new one starts as a new data file does."""

    def __init__(self, root: Path, key: str, size: tuple[int, int], options: LeRobotOptions, fps: float) -> None:
        self._names = _Names(root, layout.VIDEOS.replace("{video_key}", key), options.chunks_size)
        self._key, self._size, self._codec, self._fps = key, size, options.codec, fps
        self._max_bytes = options.video_files_size_in_mb * _MB
        self._video: VideoWriter | None = None
        require(
            CODECS[self._codec].pixel_format != "yuv420p" or size[0] % 2 == size[1] % 2 == 0,
            f"codec {self._codec} needs even sides, images are {size[0]} x {size[1]}; use codec lossless",
        )

    def add(self, images: NDArray[np.uint8]) -> dict[str, Any]:
        """Write an episode (n, h, w, 3); returns its place for meta/episodes."""
        video = self._video
        if video is None or video.bytes * (1 + len(images) / video.frames) >= self._max_bytes:
            self.close()
            video = self._video = VideoWriter(self._names.next(), self._size, self._fps, self._codec)
        start = video.frames / self._fps
        video.add(images)
        place = {**self._names.place, "from_timestamp": start, "to_timestamp": video.frames / self._fps}
        return {f"videos/{self._key}/{name}": value for name, value in place.items()}

    def close(self) -> None:
        if self._video is not None:
            self._video.close()
            self._video = None

    def metadata(self) -> dict[str, Any]:
        """The `info` of the feature in info.json."""
        codec = CODECS[self._codec]
        return {
            "video.height": self._size[0],
            "video.width": self._size[1],
            "video.codec": "av1" if codec.encoder == "libsvtav1" else "h264",
            "video.pix_fmt": "gbrp" if codec.pixel_format == "rgb24" else codec.pixel_format,
            "video.is_depth_map": False,
            "video.fps": round(self._fps),
            "video.channels": 3,
            "has_audio": False,
        }


def _write_episodes(root: Path, episodes: Sequence[dict[str, Any]], options: LeRobotOptions) -> None:
    """meta/episodes, each row with its own place as well."""
    arrow = import_pyarrow()
    bytes_per_row = max(1, arrow.Table.from_pylist(list(episodes)).nbytes / len(episodes))
    rows = max(1, int(options.data_files_size_in_mb * _MB / bytes_per_row))
    names = _Names(root, layout.EPISODES, options.chunks_size)
    for begin in range(0, len(episodes), rows):
        path = names.next()
        own = {f"meta/episodes/{name}": number for name, number in names.place.items()}
        table = arrow.Table.from_pylist([{**episode, **own} for episode in episodes[begin : begin + rows]])
        arrow.parquet.write_table(table, path, compression="snappy")


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

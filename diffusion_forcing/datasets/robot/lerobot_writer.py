"""Demonstrations written as a LeRobot set v3.0, the whole folder or nothing.

LeRobot has an action for every frame, a demonstration one frame more than actions: its last row repeats the last action and says `next.done`. Whoever
reads drops the last row's action, which leads to nothing that was seen, and has the demonstration back. Arrays that LeRobot has no name for are
`frame.<name>` where they have a row a frame, and `episode.<name>`, the same in each row, where they do not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.robot import lerobot as names
from diffusion_forcing.datasets.robot.lerobot import DATA, VIDEOS, file_places, import_pyarrow
from diffusion_forcing.datasets.robot.source import ACTION, Demonstration, check_actions
from diffusion_forcing.datasets.robot.video import CODECS, FilmWriter
from diffusion_forcing.errors import UserError
from diffusion_forcing.files import replacing

# Statistics as LeRobot keeps them for each episode and the whole set: min, max, mean, std, count and five quantiles of every feature.
#
# Of an episode they are exact, of pictures a channel over all pixels in [0, 1], counted in frames. The set's are joined from the episodes': mean and
# std exactly, quantiles as LeRobot joins them, by their mean weighted with the count.

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}

Statistics = dict[str, NDArray[Any]]


def of_rows(rows: NDArray[Any]) -> Statistics:
    """Of values (n, …), for each of them."""
    values = rows.reshape(len(rows), -1).astype(np.float64)
    return {
        "min": values.min(0),
        "max": values.max(0),
        "mean": values.mean(0),
        "std": values.std(0),
        "count": np.array([len(values)]),
        **{name: np.quantile(values, share, axis=0) for name, share in QUANTILES.items()},
    }


def of_pictures(pictures: NDArray[np.uint8]) -> Statistics:
    """Of pictures (n, h, w, 3), for each channel (3, 1, 1)."""
    levels = np.arange(256) / 255.0
    columns = []
    for channel in range(3):
        counts = np.bincount(pictures[..., channel].reshape(-1), minlength=256).astype(np.float64)
        share = counts / counts.sum()
        seen, upto = np.flatnonzero(counts), np.cumsum(share)
        mean = float(levels @ share)
        columns.append(
            {
                "min": levels[seen[0]],
                "max": levels[seen[-1]],
                "mean": mean,
                "std": float(np.sqrt(max(0.0, float((levels - mean) ** 2 @ share)))),
                **{name: levels[min(255, int(np.searchsorted(upto, part)))] for name, part in QUANTILES.items()},
            }
        )
    joined: Statistics = {name: np.array([column[name] for column in columns]).reshape(3, 1, 1) for name in columns[0]}
    return {**joined, "count": np.array([len(pictures)])}


def joined(parts: Sequence[Statistics]) -> Statistics:
    """Of several episodes together."""
    counts = np.array([part["count"][0] for part in parts], np.float64)
    weights = counts / counts.sum()

    def mean(values: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
        return np.tensordot(weights, np.stack(values).astype(np.float64), axes=1)

    middle = mean([part["mean"] for part in parts])
    spread = mean([part["std"] ** 2 + (part["mean"] - middle) ** 2 for part in parts])
    return {
        "min": np.min([part["min"] for part in parts], axis=0),
        "max": np.max([part["max"] for part in parts], axis=0),
        "mean": middle,
        "std": np.sqrt(spread),
        "count": np.array([int(counts.sum())]),
        **{name: mean([part[name] for part in parts]) for name in QUANTILES},
    }


def plain(statistics: Mapping[str, Statistics]) -> dict[str, dict[str, Any]]:
    """As nested lists, for json."""
    return {key: {name: value.tolist() for name, value in facts.items()} for key, facts in statistics.items()}


# The files of a LeRobot set that is being written: rows in parquet, pictures in films, each up to a size, and then the next.
#
# Where the next file begins is decided before an episode is written, by what a frame took on the average so far: files end at about their size.

_MB = 1024**2


class RowFiles:
    """Parquet files below `root`, of about `size` MB each."""

    def __init__(self, root: Path, chunks_size: int, size: float, *, template: str = DATA) -> None:
        self._root, self._template, self._most = root, template, size * _MB
        self._arrow = import_pyarrow()
        self._places = file_places(chunks_size)
        self._place = (0, 0)
        self._writer: Any = None
        self._file = root
        self._rows = 0

    def add(self, columns: Mapping[str, NDArray[Any]]) -> tuple[int, int]:
        """Write an episode's columns, equally long; returns its chunk and file."""
        count = len(next(iter(columns.values())))
        size = self._file.stat().st_size if self._writer else 0
        if self._writer is None or size * (1 + count / max(self._rows, 1)) >= self._most:
            self.close()
            self._place, self._rows = next(self._places), 0
            self._file = self._path()
        table = self._arrow.table({key: self._column(array) for key, array in columns.items()})
        if self._writer is None:
            self._writer = self._arrow.parquet.ParquetWriter(self._file, table.schema, compression="snappy")
        self._writer.write_table(table)
        self._rows += count
        return self._place

    def add_dicts(self, rows: Sequence[dict[str, Any]], *, place: str) -> None:
        """Write rows, and in each `<place>/chunk_index` and `<place>/file_index`, where it lies."""
        size = self._arrow.Table.from_pylist(list(rows)).nbytes / len(rows)
        each = max(1, int(self._most / max(size, 1)))
        for begin in range(0, len(rows), each):
            self._place = next(self._places)
            where = {f"{place}/chunk_index": self._place[0], f"{place}/file_index": self._place[1]}
            table = self._arrow.Table.from_pylist([{**row, **where} for row in rows[begin : begin + each]])
            self._arrow.parquet.write_table(table, self._path(), compression="snappy")

    def close(self) -> None:
        """End the file that is open."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _path(self) -> Path:
        path = self._root / self._template.format(chunk_index=self._place[0], file_index=self._place[1])
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _column(self, array: NDArray[Any]) -> Any:
        if array.ndim == 1 or array.shape[1:] == (1,):
            return self._arrow.array(array.reshape(-1))
        flat = self._arrow.array(np.ascontiguousarray(array).reshape(-1))
        return self._arrow.FixedSizeListArray.from_arrays(flat, array.shape[1])


class FilmFiles:
    """A camera's films below `root`: its episodes end to end."""

    def __init__(self, root: Path, key: str, options: LeRobotOptions) -> None:
        self._root, self._key, self._options = root, key, options
        self._places = file_places(options.chunks_size)
        self._place = (0, 0)
        self._film: FilmWriter | None = None
        self._size = (0, 0)

    def add(self, pictures: NDArray[np.uint8]) -> dict[str, Any]:
        """Write an episode's pictures (n, h, w, 3); returns where they are, as meta/episodes says it."""
        film, most = self._film, self._options.video_files_size_in_mb * _MB
        if film is None or film.bytes * (1 + len(pictures) / max(film.frames, 1)) >= most:
            film = self._next((pictures.shape[1], pictures.shape[2]))
        fps, begin = self._options.fps, film.frames
        film.add(pictures)
        at = f"videos/{self._key}"
        return {
            f"{at}/chunk_index": self._place[0],
            f"{at}/file_index": self._place[1],
            f"{at}/from_timestamp": begin / fps,
            f"{at}/to_timestamp": film.frames / fps,
        }

    def facts(self) -> dict[str, Any]:
        """info.json's account of the films."""
        codec = CODECS[self._options.codec]
        return {
            "video.height": self._size[0],
            "video.width": self._size[1],
            "video.codec": "av1" if codec.encoder == "libsvtav1" else "h264",
            "video.pix_fmt": "gbrp" if codec.pixels == "rgb24" else codec.pixels,
            "video.is_depth_map": False,
            "video.fps": round(self._options.fps),
            "video.channels": 3,
            "has_audio": False,
        }

    def close(self) -> None:
        """End the film that is open."""
        if self._film is not None:
            self._film.close()
            self._film = None

    def _next(self, size: tuple[int, int]) -> FilmWriter:
        self.close()
        if CODECS[self._options.codec].pixels == "yuv420p" and (size[0] % 2 or size[1] % 2):
            raise UserError(
                f"pictures of {size[0]} x {size[1]} have no {self._options.codec} film, which needs even sides; use codec lossless"
            )
        self._place, self._size = next(self._places), size
        path = self._root / VIDEOS.format(video_key=self._key, chunk_index=self._place[0], file_index=self._place[1])
        path.parent.mkdir(parents=True, exist_ok=True)
        self._film = FilmWriter(path, size, self._options.fps, self._options.codec)
        return self._film


def write_tasks(path: Path, tasks: Sequence[str]) -> None:
    """meta/tasks.parquet: the tasks are the index of a pandas table with the column task_index."""
    arrow = import_pyarrow()
    index = "__index_level_0__"
    table = arrow.table({"task_index": arrow.array(range(len(tasks)), arrow.int64()), index: arrow.array(tasks)})
    kinds = {"task_index": ("int64", "int64"), index: ("unicode", "object")}
    columns = [
        {
            "name": None if key == index else key,
            "field_name": key,
            "pandas_type": kind,
            "numpy_type": stored,
            "metadata": None,
        }
        for key, (kind, stored) in kinds.items()
    ]
    pandas = {
        "index_columns": [index],
        "column_indexes": [],
        "columns": columns,
        "creator": {"library": "pyarrow", "version": arrow.__version__},
        "pandas_version": "2.0.0",
    }
    arrow.parquet.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)


DONE = "next.done"
SWAP_TASK = "Exchange the two fruits."
_LEROBOT_SPLITS = {"training": "train"}


@dataclass(frozen=True, kw_only=True)
class LeRobotOptions:
    """How a set is written. codec: lossless | h264 | av1; task: what the robot does, in words; …_mb: where a file ends and the next begins, about."""

    codec: str = "lossless"
    fps: float = 10
    task: str = SWAP_TASK
    robot_type: str = "fetch"
    chunks_size: int = 1000
    data_files_size_in_mb: float = 100
    video_files_size_in_mb: float = 200

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise UserError(f"codec is {self.codec!r}; allowed: {', '.join(CODECS)}")
        for name in ("fps", "chunks_size", "data_files_size_in_mb", "video_files_size_in_mb"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be more than 0")


def write_lerobot(
    root: Path, demonstrations: Iterable[tuple[str, Demonstration]], options: LeRobotOptions | None = None
) -> Path:
    """Write (split, demonstration)s, a split's after another's, as the new folder `root`. UserError where it exists or a demonstration is none."""
    options = options or LeRobotOptions()
    if root.exists() and any(root.iterdir()):
        raise UserError(f"{root} exists; choose a new folder")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with replacing(root) as temporary:
            temporary.mkdir()
            _Set(temporary, options).write(demonstrations)
    except (OSError, av.FFmpegError) as error:
        raise UserError(
            f"cannot write {root}: {error.strerror or error}; make room or choose another folder"
        ) from error
    return root


class _Set:
    """A set in `root`, while it is written."""

    def __init__(self, root: Path, options: LeRobotOptions) -> None:
        self.root, self.options = root, options
        self.features: dict[str, dict[str, Any]] = {}
        self.splits: dict[str, list[int]] = {}
        self.episodes: list[dict[str, Any]] = []
        self.statistics: list[dict[str, Statistics]] = []
        self.rows = 0

    def write(self, demonstrations: Iterable[tuple[str, Demonstration]]) -> None:
        options = self.options
        rows = RowFiles(self.root, options.chunks_size, options.data_files_size_in_mb)
        films: dict[str, FilmFiles] = {}
        try:
            for split, demonstration in demonstrations:
                table, pictures = self._parts(demonstration)
                if not self.features:
                    self.features = _features(table, pictures)
                    films = {key: FilmFiles(self.root, key, options) for key in pictures}
                self._check(table, pictures)
                self._add(split, table, pictures, rows, films)
        finally:
            rows.close()
            for film in films.values():
                film.close()
        if not self.episodes:
            raise UserError("there are no demonstrations to write")
        self._write_meta({key: film.facts() for key, film in films.items()})

    def _parts(self, demonstration: Demonstration) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[np.uint8]]]:
        """Columns, a row a frame, and pictures by feature."""
        try:
            actions = check_actions(demonstration["actions"])
        except (ValueError, KeyError) as error:
            raise UserError(f"demonstration {len(self.episodes)} cannot be written: {error}") from error
        count = len(actions) + 1
        table = {"action": np.concatenate([actions, actions[-1:]])}
        pictures = {}
        for name, array in demonstration.items():
            if name == "actions":
                continue
            if array.ndim == 4 and array.dtype == np.uint8:
                pictures[names.IMAGES + name] = array
            elif name == "states":
                table[names.STATE] = array.astype(np.float32)
            elif len(array) == count and array.ndim <= 2:
                table[f"frame.{name}"] = array
            elif array.ndim == 1:
                table[f"episode.{name}"] = np.repeat(array[None], count, axis=0)
            else:
                raise UserError(f"{name} of shape {array.shape} has no place in a LeRobot set")
        for key, array in {**table, **pictures}.items():
            if len(array) != count:
                raise UserError(f"{key} of demonstration {len(self.episodes)} has {len(array)} rows for {count} frames")
        number, done = np.arange(count), np.arange(count) == count - 1
        table[DONE] = done
        table["timestamp"] = (number / self.options.fps).astype(np.float32)
        table["frame_index"], table["episode_index"] = number, np.full(count, len(self.episodes))
        table["index"], table["task_index"] = self.rows + number, np.zeros(count, np.int64)
        return table, pictures

    def _check(self, table: Mapping[str, NDArray[Any]], pictures: Mapping[str, NDArray[Any]]) -> None:
        found = _features(table, pictures)
        other = [key for key in {**found, **self.features} if found.get(key) != self.features.get(key)]
        if other:
            raise UserError(
                f"demonstration {len(self.episodes)} differs from those before in {', '.join(sorted(other))}; a set has one shape of each"
            )

    def _add(
        self,
        split: str,
        table: Mapping[str, NDArray[Any]],
        pictures: Mapping[str, NDArray[np.uint8]],
        rows: RowFiles,
        films: Mapping[str, FilmFiles],
    ) -> None:
        number, count = len(self.episodes), len(table["action"])
        stretch = self.splits.setdefault(_LEROBOT_SPLITS.get(split, split), [number, number])
        if stretch[1] != number:
            raise UserError(f"split {split} comes twice; give the demonstrations of a split one after the other")
        stretch[1] = number + 1
        place = rows.add(table)
        row: dict[str, Any] = {
            "episode_index": number,
            "tasks": [self.options.task],
            "length": count,
            "data/chunk_index": place[0],
            "data/file_index": place[1],
            "dataset_from_index": self.rows,
            "dataset_to_index": self.rows + count,
        }
        for key, film in films.items():
            row |= film.add(pictures[key])
        facts = {key: of_rows(array) for key, array in table.items()}
        facts |= {key: of_pictures(array) for key, array in pictures.items()}
        row |= {f"stats/{key}/{name}": value.tolist() for key, found in facts.items() for name, value in found.items()}
        self.episodes.append(row)
        self.statistics.append(facts)
        self.rows += count

    def _write_meta(self, films: Mapping[str, Mapping[str, Any]]) -> None:
        options = self.options
        rows = RowFiles(self.root, options.chunks_size, options.data_files_size_in_mb, template=names.EPISODES)
        rows.add_dicts(self.episodes, place="meta/episodes")
        write_tasks(self.root / names.TASKS, [options.task])
        for key, facts in films.items():
            self.features[key]["info"] = facts
        info = {
            "codebase_version": names.VERSION,
            "robot_type": options.robot_type,
            "total_episodes": len(self.episodes),
            "total_frames": self.rows,
            "total_tasks": 1,
            "chunks_size": options.chunks_size,
            "data_files_size_in_mb": options.data_files_size_in_mb,
            "video_files_size_in_mb": options.video_files_size_in_mb,
            "fps": int(options.fps) if float(options.fps).is_integer() else options.fps,
            "splits": {split: f"{begin}:{end}" for split, (begin, end) in self.splits.items()},
            "data_path": names.DATA,
            "video_path": names.VIDEOS if films else None,
            "features": self.features,
        }
        total = {key: joined([facts[key] for facts in self.statistics]) for key in self.statistics[0]}
        (self.root / names.STATISTICS).write_text(json.dumps(plain(total), indent=4), encoding="utf-8")
        (self.root / names.INFO).write_text(json.dumps(info, indent=4, ensure_ascii=False), encoding="utf-8")


def _features(table: Mapping[str, NDArray[Any]], pictures: Mapping[str, NDArray[Any]]) -> dict[str, dict[str, Any]]:
    """info.json's account of columns and pictures."""
    found: dict[str, dict[str, Any]] = {}
    for key, array in pictures.items():
        found[key] = {"dtype": "video", "shape": list(array.shape[1:]), "names": ["height", "width", "channels"]}
    for key, array in table.items():
        shape = list(array.shape[1:]) or [1]
        ours = key in ("action", names.STATE) and shape == [len(ACTION)]
        found[key] = {"dtype": str(array.dtype), "shape": shape, "names": list(ACTION) if ours else None}
    return found

"""Reading LeRobot data sets v3.0 whose action is ours (x y z qx qy qz qw grasp), at any fps, with any cameras, in any
number of files.

A set is meta/info.json (fps, features, templates of file names), meta/episodes (per episode: its files and its range
there), data (one row per frame) and videos (the episodes of a camera end to end). Images are videos or, of dtype
"image", files inside the rows. A row holds an observation and the action taken then. The action of the last row leads
to nothing observed; it is dropped, and the last frame ends the demonstration (see `convert.py`). Read with pyarrow
and PyAV; the package lerobot is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.parquet import import_pyarrow, read_schema, read_table
from diffusion_forcing.datasets.robot.source import (
    ACTION,
    Demonstration,
    check_actions,
    check_camera,
    check_fps,
    check_quaternions,
    default_splits,
    stamp_of,
)
from diffusion_forcing.datasets.video.container import read_image, read_segment, stack
from diffusion_forcing.errors import UserError, require
from diffusion_forcing.files import is_plain
from diffusion_forcing.limits import Refused, load_json, reading
from diffusion_forcing.terminal import say

VERSION = "v3.0"
INFO = "meta/info.json"
STATISTICS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
CHUNK_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
EPISODES = f"meta/episodes/{CHUNK_FILE}.parquet"
DATA = f"data/{CHUNK_FILE}.parquet"
VIDEOS = f"videos/{{video_key}}/{CHUNK_FILE}.mp4"
IMAGES = "observation.images."
"""Prefix of a camera's feature."""
STATE = "observation.state"
_VALIDATION = ("validation", "val", "valid", "test")
"""Names of the split used for validation; the first that exists."""
_FIELD = re.compile(r"\{(?P<name>chunk_index|file_index|video_key)(?::0?(?P<width>[0-9])d)?\}")
"""What a template of file names may hold, such as {chunk_index:03d}."""
_EXTRA = re.compile(r"(?P<kind>frame|episode)\.(?P<name>[A-Za-z_]\w*)", re.ASCII)
"""Columns beside LeRobot's that are kept in a demonstration."""
_MOST = 2**53
"""Numbers of episodes and files are below it."""
_CONVERTER = "python -m lerobot.datasets.v30.convert_dataset_v21_to_v30"


def is_lerobot(root: Path) -> bool:
    """Whether a folder is a LeRobot set, of any version."""
    return (root / INFO).exists() or (root / "meta" / "episodes.jsonl").exists()


class LeRobotSet:
    """The LeRobot set in `root` as a `RobotSource`. UserError where it cannot be read, or its robot does not act as ours."""

    def __init__(self, root: Path) -> None:
        import_pyarrow()
        self.root = root
        info = self._read_info()
        with reading(root / INFO):
            self.fps = check_fps(info["fps"])
            self._features = {str(key): dict(feature) for key, feature in info["features"].items()}
            self._data_path, self._video_path = info.get("data_path") or DATA, info.get("video_path") or VIDEOS
            self.splits = _splits(info.get("splits") or {}, _count(info["total_episodes"]))
            self._cameras = _cameras(self._features)
            self._orders = {"action": self._action_order(), STATE: _order(_names(self._features.get(STATE, {})))}
        self.counts = {split: len(numbers) for split, numbers in self.splits.items()}
        self._episodes = self._read_episodes()
        self._rows = lru_cache(1)(self._read_rows)

    def cameras(self) -> list[str]:
        """Names of all cameras, without `observation.images.`."""
        return list(self._cameras)

    def arrays(self, split: str, index: int) -> Demonstration:
        episode = self._episode(split, index)
        number, path = episode["episode_index"], self._data_file(episode)
        rows = self._rows(path)
        with reading(path):
            own = np.flatnonzero(rows["episode_index"] == number)
            require(
                len(own) == episode["length"] >= 2,
                f"{path} has {len(own)} rows of episode {number}, meta/episodes says {episode['length']} (at least 2)",
            )
            if "frame_index" in rows:
                own = own[np.argsort(rows["frame_index"][own], kind="stable")]
        with reading(path, f"episode {number} has other actions than ours"):
            actions = check_actions(rows["action"][own])[:, self._orders["action"]]
            check_quaternions(actions)
        demonstration: Demonstration = {"actions": np.ascontiguousarray(actions[:-1])}
        with reading(path):
            for key, values in rows.items():
                kind, _, name = key.partition(".")
                if key == STATE:
                    order = self._orders[STATE]
                    demonstration["states"] = values[own] if order is None else values[own][:, order]
                elif kind in ("frame", "episode"):
                    demonstration[name] = values[own] if kind == "frame" else values[own[0]].reshape(-1)
            for name, array in demonstration.items():
                if not np.isfinite(array).all():
                    raise Refused(f"has {name} that are not finite in episode {number}")
        return demonstration

    def images(self, split: str, index: int, camera: str, size: int | None = None) -> NDArray[np.uint8]:
        key, episode = self._cameras[check_camera(self, camera)], self._episode(split, index)
        path = self._images_file(key, episode)
        with reading(path):
            if self._features[key]["dtype"] == "video":
                start = self._number(episode, f"videos/{key}/from_timestamp")
                return read_segment(path, start, episode["length"], self.fps, size)
            return stack(map(read_image, self._image_files(path, key, episode)), size)

    def stamp(self, split: str, index: int, camera: str) -> str:
        """See `RobotSource`. The metadata count too: they say where in a file the images are."""
        key = self._cameras[check_camera(self, camera)]
        return stamp_of(self._images_file(key, self._episode(split, index)), extra=self._metadata_stamp)

    @cached_property
    def _metadata_stamp(self) -> str:
        return stamp_of(self.root / INFO, *sorted((self.root / "meta" / "episodes").rglob("*.parquet")))

    def _read_info(self) -> dict[str, Any]:
        """meta/info.json, of version 3."""
        path, remedy = self.root / INFO, f"convert older sets with LeRobot's own {_CONVERTER}"
        require(path.exists(), f"{self.root} is not a LeRobot set of version {VERSION}: {INFO} is missing; {remedy}")
        with reading(path):
            info = load_json(path)
            version = str(info["codebase_version"])
        require(version.startswith("v3."), f"{self.root} has LeRobot version {version}, expected {VERSION}; {remedy}")
        return info

    def _file(self, template: str, episode: Mapping[str, Any], kind: str, **parts: str) -> Path:
        """The file of an episode that `template` names. kind: prefix of its numbers in meta/episodes."""
        numbers = {name: int(self._number(episode, f"{kind}/{name}")) for name in ("chunk_index", "file_index")}
        values: dict[str, Any] = {**numbers, **parts}

        def fill(field: re.Match[str]) -> str:
            width, value = int(field["width"] or 0), values.get(field["name"], field[0])
            return f"{value:0{width}d}" if isinstance(value, int) else str(value)

        name = _FIELD.sub(fill, str(template))
        is_name = name.isprintable() and not {"{", "}", "\\"} & set(name)
        require(is_name, f"{self.root / INFO}: {str(template)[:80]!r} is not a template of file names")
        is_outside = Path(name).is_absolute() or ".." in Path(name).parts
        require(not is_outside, f"{self.root / INFO}: {str(template)[:80]!r} points outside the set")
        return self.root / name

    def _action_order(self) -> list[int]:
        """The place of each number of our action in theirs."""
        feature = self._features.get("action", {})
        shape = feature.get("shape")
        require(
            shape == [len(ACTION)],
            f"{self.root}: its feature 'action' has shape {str(shape)[:40]}, expected [8], numbers: {' '.join(ACTION)}",
        )
        names = _names(feature)
        order = _order(names)
        if order is not None:
            return order
        require(
            not any(_meaning(name) for name in names),
            f"{self.root}: the names of its action, {' '.join(names)}, are not {' '.join(ACTION)} in some order; "
            f"correct features.action.names in {INFO}",
        )
        say(f"{self.root}: its action has no names that are understood; it is taken as {' '.join(ACTION)}")
        return list(range(len(ACTION)))

    def _read_episodes(self) -> dict[int, dict[str, Any]]:
        folder = self.root / "meta" / "episodes"
        files = sorted(folder.rglob("*.parquet"))
        require(
            bool(files), f"{folder} has no parquet file; a LeRobot set of version {VERSION} lists its episodes there"
        )
        episodes = {}
        for file in files:
            with reading(file):
                names = [
                    name for name in _columns(file) if name.startswith(("episode_index", "length", "data/", "videos/"))
                ]
                columns = {
                    name: column.to_pylist() for name, column in zip(names, read_table(file, names), strict=True)
                }
            for number in range(len(next(iter(columns.values()), []))):
                row = {name: column[number] for name, column in columns.items()}
                for name in ("episode_index", "length"):
                    row[name] = int(self._number(row, name))
                episodes[row["episode_index"]] = row
        return episodes

    def _episode(self, split: str, index: int) -> dict[str, Any]:
        with reading(self.root / "meta" / "episodes"):
            return self._episodes[self.splits[split][index]]

    def _number(self, episode: Mapping[str, Any], column: str) -> float:
        """A number of meta/episodes; pandas may have stored a whole one as a float."""
        value = episode.get(column)
        if not isinstance(value, int | float) or not 0 <= value < _MOST:
            raise UserError(
                f"{self.root}: {column} of episode {episode.get('episode_index')} in meta/episodes is {value}, "
                "expected a number from 0 on; download the set again"
            )
        return value

    def _data_file(self, episode: Mapping[str, Any]) -> Path:
        return self._file(self._data_path, episode, "data")

    def _images_file(self, key: str, episode: Mapping[str, Any]) -> Path:
        if self._features[key]["dtype"] == "image":
            return self._data_file(episode)
        return self._file(self._video_path, episode, f"videos/{key}", video_key=key)

    def _read_rows(self, path: Path) -> dict[str, NDArray[Any]]:
        """The needed columns of a data file as arrays, one row per frame."""
        reserved = {"actions", "states", "file", *self._cameras}
        with reading(path):
            optional = [
                name
                for name in _columns(path)
                if name in ("frame_index", STATE)
                or ((found := _EXTRA.fullmatch(name)) and found["name"] not in reserved)
            ]
            columns = ["action", "episode_index", *optional]
            table = read_table(path, columns)
            return {name: _array(table.column(name)) for name in columns}

    def _image_files(self, path: Path, key: str, episode: Mapping[str, Any]) -> list[bytes]:
        """The images of a feature of dtype "image", each as the bytes of a file."""
        sorting = [name for name in ("frame_index",) if name in read_schema(path).names]
        number = episode["episode_index"]
        table = read_table(path, [key, "episode_index", *sorting], only=("episode_index", number))
        cells = (table.sort_by("frame_index") if sorting else table).column(key).to_pylist()
        contents = [cell.get("bytes") if isinstance(cell, dict) else cell for cell in cells]
        data = [content for content in contents if isinstance(content, bytes)]
        if len(data) != episode["length"]:
            raise Refused(f"has {len(data)} images of {key}, expected {episode['length']}")
        return data


def _columns(path: Path) -> list[str]:
    """The columns of a Parquet file that hold numbers, or lists of numbers."""
    types = import_pyarrow().types

    def is_number(kind: Any) -> bool:
        return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)

    schema = read_schema(path)
    inner = [getattr(field.type, "value_type", field.type) for field in schema]
    return [name for name, kind in zip(schema.names, inner, strict=True) if is_number(kind)]


def _count(value: Any) -> int:
    """A whole number from 0 on. ValueError for anything else."""
    if not isinstance(value, int | float) or not 0 <= value < _MOST or value != int(value):
        raise ValueError(f"total_episodes is {str(value)[:40]}")
    return int(value)


def _cameras(features: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Camera: its feature. A camera's name becomes part of the names of files."""
    keys = [key for key, feature in features.items() if feature.get("dtype") in ("video", "image")]
    for key in keys:
        if not is_plain(key) or not is_plain(key.removeprefix(IMAGES)):
            raise ValueError(f"the camera {key[:80]!r} cannot be part of a file's name")
    return {key.removeprefix(IMAGES): key for key in keys}


def _splits(splits: Mapping[str, Any], total: int) -> dict[str, range]:
    """`{"train": "0:150", …}` under our names; without a validation split, the first episodes."""
    ranges: dict[str, range] = {}
    for name, text in splits.items():
        begin, _, end = str(text).partition(":")
        ranges[name] = range(int(begin), min(int(end), total))
    training = ranges.get("train") or ranges.get("training") or range(total)
    validation = next((ranges[name] for name in _VALIDATION if ranges.get(name)), None)
    if validation is None:
        return {split: training[part.start : part.stop] for split, part in default_splits(len(training)).items()}
    return {"training": training, "validation": validation}


def _array(column: Any) -> NDArray[Any]:
    """A parquet column of numbers (n,), or of lists of equal length (n, k)."""
    column = column.combine_chunks()
    if not hasattr(column.type, "value_type"):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    flat = np.asarray(column.flatten().to_numpy(zero_copy_only=False))
    if len(column) == 0 or len(flat) % len(column):
        raise ValueError("the lists of a column differ in length")
    return flat.reshape(len(column), -1)


def _names(feature: Mapping[str, Any]) -> list[str]:
    """The names of a feature's numbers, where they lie in nested lists or dicts with the keys before them:
    `orientation.w`."""

    def flatten(names: Any, prefix: str = "") -> Iterator[str]:
        if isinstance(names, Mapping):
            for key, inner in names.items():
                yield from flatten(inner, f"{prefix}{key}.")
        elif isinstance(names, list):
            for inner in names:
                yield from flatten(inner, prefix)
        elif names is not None:
            yield f"{prefix}{names}"

    return list(flatten(feature.get("names")))


def _order(names: list[str]) -> list[int] | None:
    """The place of each of `ACTION` among `names`; None where they are not the same eight."""
    meanings = [_meaning(name) for name in names]
    return [meanings.index(name) for name in ACTION] if sorted(map(str, meanings)) == sorted(ACTION) else None


_COORDINATE = re.compile(r"(?P<kind>q|quat|quaternion|rot|p|pos)?(?P<axis>[xyzw])")
_ROTATION = {"q", "quat", "quaternion", "rot", "rotation", "ori", "orientation"}
_GRASP = {"grasp", "grip", "gripper"}
_NOT_GRASP = {"open", "opened", "opening", "width", "vel", "velocity", "force", "effort", "torque"}
"""With one of these, a number of the gripper is not 0 open … 1 closed."""


def _meaning(name: str) -> str | None:
    """Which of `ACTION` a name like `qw`, `ee.qw`, `EE_QUAT_W`, `orientation.w` or `gripper.pos` means, if any."""
    *before, last = re.findall(r"[a-z]+", name.lower()) or [""]
    coordinate = _COORDINATE.fullmatch(last)
    if coordinate:
        axis = coordinate["axis"]
        turns = axis == "w" or bool({*before, str(coordinate["kind"])} & _ROTATION)
        return f"q{axis}" if turns else axis
    words = {*before, last}
    return "grasp" if words & _GRASP and not words & _NOT_GRASP else None

"""A LeRobot set v3.0 as demonstrations: any whose action is ours (x y z qx qy qz qw grasp), of any fps, any cameras, in any number of files.

A row is what is seen and the action taken then. The last row's action leads to nothing that was seen; it is left out, and the last frame ends the
demonstration (see lerobot_writer). Pictures are films or, of the dtype "image", files in the rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.robot.files import stamp_of
from diffusion_forcing.datasets.robot.source import (
    ACTION,
    Demonstration,
    camera_of,
    check_actions,
    check_turns,
    validation_first,
)
from diffusion_forcing.datasets.robot.video import read_picture, read_stretch, squeeze
from diffusion_forcing.errors import UserError

# LeRobot's data-set layout v3.0: the names of its files, what meta/info.json says, and where each episode lies.
#
# A set is meta/info.json (fps, features, templates of file names), meta/episodes (a row an episode: its file, its stretch
# there), data (a row a frame) and videos (a camera's episodes end to end). Written here with pyarrow and PyAV; the package lerobot is not needed.

VERSION = "v3.0"
INFO = "meta/info.json"
STATISTICS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
CHUNK_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
EPISODES = f"meta/episodes/{CHUNK_FILE}.parquet"
DATA = f"data/{CHUNK_FILE}.parquet"
VIDEOS = f"videos/{{video_key}}/{CHUNK_FILE}.mp4"
IMAGES = "observation.images."
"""Before a camera's name."""
STATE = "observation.state"
_VALIDATION = ("validation", "val", "valid", "test")
"""Names of a split that is for validation, the first that is there."""
_CONVERTER = "python -m lerobot.datasets.v30.convert_dataset_v21_to_v30"


def is_lerobot(root: Path) -> bool:
    """Whether a folder is a LeRobot set, of whatever version."""
    return (root / INFO).exists() or (root / "meta" / "episodes.jsonl").exists()


def import_pyarrow() -> Any:
    """pyarrow with its parquet; UserError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as missing:
        raise UserError("LeRobot's data sets need pyarrow: pip install -c constraints.txt -e '.[robot]'") from missing
    return pyarrow


@dataclass(frozen=True)
class Camera:
    """A feature of pictures: its key, and whether they are films or files in the rows."""

    key: str
    film: bool

    @property
    def name(self) -> str:
        """The key without what all cameras' begin with."""
        return self.key.removeprefix(IMAGES)


@dataclass(frozen=True)
class Info:
    """What of meta/info.json is needed to read a set."""

    root: Path
    fps: float
    features: Mapping[str, Mapping[str, Any]]
    data_path: str
    video_path: str
    splits: Mapping[str, range]
    """Episodes of "training", "validation" and others."""

    @property
    def cameras(self) -> list[Camera]:
        """All features of pictures."""
        kinds = {key: feature.get("dtype") for key, feature in self.features.items()}
        return [Camera(key, kind == "video") for key, kind in kinds.items() if kind in ("video", "image")]

    def data_file(self, chunk: int, file: int) -> Path:
        """Where rows lie."""
        return self._file(self.data_path, chunk_index=chunk, file_index=file)

    def video_file(self, key: str, chunk: int, file: int) -> Path:
        """Where a camera's film lies."""
        return self._file(self.video_path, video_key=key, chunk_index=chunk, file_index=file)

    def _file(self, template: str, **parts: Any) -> Path:
        try:
            name = Path(template.format(**parts))
        except (KeyError, ValueError, IndexError, AttributeError) as error:
            raise UserError(f"{self.root / INFO}: {template!r} is no template of a file's name ({error})") from error
        if name.is_absolute() or ".." in name.parts:
            raise UserError(f"{self.root / INFO}: {template!r} leads out of {self.root}")
        return self.root / name


def read_info(root: Path) -> Info:
    """meta/info.json of the set in `root`. UserError for one that is missing, damaged, or of another version."""
    path = root / INFO
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        version = str(facts["codebase_version"])
        if not version.startswith("v3."):
            raise UserError(
                f"{root} is a LeRobot set of version {version}; this reads {VERSION}: convert it with LeRobot's own {_CONVERTER}"
            )
        total = int(facts["total_episodes"])
        info = Info(
            root=root,
            fps=float(facts["fps"]),
            features={str(key): dict(feature) for key, feature in facts["features"].items()},
            data_path=str(facts.get("data_path") or DATA),
            video_path=str(facts.get("video_path") or VIDEOS),
            splits=_splits(facts.get("splits") or {}, total),
        )
    except FileNotFoundError as error:
        older = (root / "meta" / "episodes.jsonl").exists()
        raise UserError(
            f"{root} is no LeRobot set of version {VERSION}: there is no {INFO}"
            + (f"; it looks like an older one: convert it with LeRobot's own {_CONVERTER}" if older else "")
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = f"there is no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{path} cannot be read: {said}") from error
    if not 0 < info.fps < 1e4:
        raise UserError(f"{path}: fps is {info.fps}, frames a second are needed")
    return info


def file_places(chunks_size: int) -> Iterator[tuple[int, int]]:
    """(chunk, file) of one file after the other."""
    chunk, file = 0, 0
    while True:
        yield chunk, file
        file += 1
        if file == chunks_size:
            chunk, file = chunk + 1, 0


def _splits(splits: Mapping[str, Any], total: int) -> dict[str, range]:
    """`{"train": "0:150", …}` with our names; where nothing is for validation the first episodes are."""
    found: dict[str, range] = {}
    for name, stretch in splits.items():
        begin, _, end = str(stretch).partition(":")
        found[name] = range(int(begin), min(int(end), total))
    training = found.pop("train", None) or found.pop("training", None) or range(total)
    kept_back = next((found[name] for name in _VALIDATION if found.get(name)), None)
    if kept_back is None:
        places = validation_first(len(training))
        return {split: training[place.start : place.stop] for split, place in places.items()}
    return {"training": training, "validation": kept_back}


_ALIASES = {"gripper": "grasp"}


class LeRobotSet:
    """The LeRobot set in `root` as a `RobotSource`. UserError for one that cannot be read, or whose robot does not act as ours."""

    def __init__(self, root: Path) -> None:
        self.root, self.info = root, read_info(root)
        self.fps = self.info.fps
        self._arrow = import_pyarrow()
        self._order = self._check_action()
        self._episodes = self._read_episodes()
        self._rows = lru_cache(1)(self._read_rows)

    @property
    def counts(self) -> Mapping[str, int]:
        """Demonstrations of every split."""
        return {split: len(numbers) for split, numbers in self.info.splits.items()}

    def cameras(self) -> list[str]:
        """Names of all cameras, without `observation.images.`."""
        return [camera.name for camera in self.info.cameras]

    def arrays(self, split: str, index: int) -> Demonstration:
        """All of a demonstration but its pictures."""
        episode = self._episode(split, index)
        path = self._data_file(episode)
        rows = self._rows(path)
        mine = np.flatnonzero(rows["episode_index"] == episode["episode_index"])
        if len(mine) != episode["length"] or len(mine) < 2:
            raise UserError(
                f"{path} has {len(mine)} rows of episode {episode['episode_index']}, meta/episodes says {episode['length']}; 2 or more are needed"
            )
        try:
            actions = check_actions(rows["action"][mine])[:, self._order]
            check_turns(actions)
        except ValueError as error:
            raise UserError(f"episode {episode['episode_index']} of {self.root}: {error}") from error
        found: Demonstration = {"actions": np.ascontiguousarray(actions[:-1])}
        for key, values in rows.items():
            if key == STATE:
                found["states"] = values[mine]
            elif key.startswith("frame."):
                found[key.removeprefix("frame.")] = values[mine]
            elif key.startswith("episode."):
                found[key.removeprefix("episode.")] = values[mine[0]].reshape(-1)
        return found

    def pictures(self, split: str, index: int, camera: str, size: int | None = None) -> NDArray[np.uint8]:
        """(length, h, w, 3)."""
        found, episode = self._camera(camera), self._episode(split, index)
        path = self._pictures_file(found, episode)
        try:
            if found.film:
                begin = float(episode[f"videos/{found.key}/from_timestamp"])
                return read_stretch(path, begin, episode["length"], self.fps, size)
            pictures = [read_picture(data) for data in self._files(path, found.key, episode)]
            if len({picture.shape for picture in pictures}) != 1:
                raise ValueError("its pictures are of several sizes")
            frames = np.stack(pictures)
            return frames if size is None else squeeze(frames, size)
        except (OSError, ValueError, av.FFmpegError) as error:
            said = "it does not exist" if isinstance(error, FileNotFoundError) else error
            raise UserError(
                f"{path} cannot be read at episode {episode['episode_index']}: {said}; get the set again"
            ) from error

    def stamp(self, split: str, index: int, camera: str) -> str:
        """Of the picture's file and of what says where in it they are."""
        file = self._pictures_file(self._camera(camera), self._episode(split, index))
        return stamp_of(file, facts=self._meta_stamp)

    # ------------------------------------------------------------------------------------------------ how

    @cached_property
    def _meta_stamp(self) -> str:
        return stamp_of(self.root / INFO, *sorted((self.root / "meta" / "episodes").rglob("*.parquet")))

    def _camera(self, name: str) -> Camera:
        camera_of(self, name)
        return next(camera for camera in self.info.cameras if camera.name == name)

    def _episode(self, split: str, index: int) -> dict[str, Any]:
        number = self.info.splits[split][index]
        if number not in self._episodes:
            raise UserError(f"{self.root}: episode {number} is not in meta/episodes; get the set again")
        return self._episodes[number]

    def _data_file(self, episode: Mapping[str, Any]) -> Path:
        return self.info.data_file(episode["data/chunk_index"], episode["data/file_index"])

    def _pictures_file(self, camera: Camera, episode: Mapping[str, Any]) -> Path:
        if not camera.film:
            return self._data_file(episode)
        at = f"videos/{camera.key}"
        if f"{at}/chunk_index" not in episode:
            raise UserError(f"{self.root}: meta/episodes does not say where the films of {camera.name} are")
        return self.info.video_file(camera.key, episode[f"{at}/chunk_index"], episode[f"{at}/file_index"])

    def _check_action(self) -> list[int]:
        """Where each of our action's numbers is in theirs."""
        feature = self.info.features.get("action")
        if feature is None:
            raise UserError(f"{self.root} has no feature 'action'; a demonstration needs one")
        shape = list(feature.get("shape") or [])
        if shape != [len(ACTION)]:
            raise UserError(
                f"{self.root}: its action has shape {shape}, this robot's has 8 numbers: {' '.join(ACTION)}; bring it into that form first"
            )
        given = feature.get("names")
        if isinstance(given, Mapping):
            given = next(iter(given.values()), None)
        said = [_ALIASES.get(str(name), str(name)) for name in given] if isinstance(given, list) else []
        return [said.index(name) for name in ACTION] if sorted(said) == sorted(ACTION) else list(range(len(ACTION)))

    def _read_episodes(self) -> dict[int, dict[str, Any]]:
        folder = self.root / "meta" / "episodes"
        files = sorted(folder.rglob("*.parquet"))
        if not files:
            raise UserError(
                f"{folder} holds no parquet file; a LeRobot set of version {VERSION} has its episodes there"
            )
        found = {}
        for file in files:
            with _reading(file, self._arrow):
                parquet = self._arrow.parquet.ParquetFile(file)
                wanted = [name for name in parquet.schema_arrow.names if not name.startswith("stats/")]
                rows = parquet.read(columns=wanted).to_pylist()
                for row in rows:
                    row["length"] = int(row["length"])
                    found[int(row["episode_index"])] = row
        return found

    def _read_rows(self, path: Path) -> dict[str, NDArray[Any]]:
        """The columns of a file that are needed, as arrays of a row a frame."""
        with _reading(path, self._arrow):
            parquet = self._arrow.parquet.ParquetFile(path)
            there = parquet.schema_arrow.names
            wanted = [
                name
                for name in there
                if name in ("action", "episode_index", STATE) or name.startswith(("frame.", "episode."))
            ]
            table = parquet.read(columns=wanted)
            for needed in ("action", "episode_index"):
                if needed not in there:
                    raise ValueError(f"it has no column {needed!r}")
            return {name: _array(table.column(name)) for name in wanted}

    def _files(self, path: Path, key: str, episode: Mapping[str, Any]) -> list[bytes]:
        """The pictures of a feature of the dtype "image", each as its file's bytes."""
        only = [("episode_index", "=", episode["episode_index"])]
        with _reading(path, self._arrow):
            cells = self._arrow.parquet.read_table(path, columns=[key], filters=only).column(key).to_pylist()
        every = [cell.get("bytes") if isinstance(cell, dict) else cell for cell in cells]
        data = [one for one in every if isinstance(one, bytes)]
        if len(data) != episode["length"]:
            raise ValueError(f"{key} has {len(data)} pictures of {episode['length']}")
        return data


class _reading:
    """Errors in here are of a damaged parquet file."""

    def __init__(self, path: Path, arrow: Any) -> None:
        self._path, self._kinds = path, (OSError, ValueError, KeyError, TypeError, arrow.ArrowException)

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: Any) -> None:
        if isinstance(error, self._kinds):
            said = "it does not exist" if isinstance(error, FileNotFoundError) else error
            raise UserError(f"{self._path} cannot be read: {said}; get the set again") from error


def _array(column: Any) -> NDArray[Any]:
    """A parquet column of numbers, or of equally long lists of them, as an array (n,) or (n, k)."""
    column = column.combine_chunks()
    if not hasattr(column.type, "value_type"):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    flat = np.asarray(column.flatten().to_numpy(zero_copy_only=False))
    if len(column) == 0 or len(flat) % len(column):
        raise ValueError("a column's lists are not equally long")
    return flat.reshape(len(column), -1)

"""Demonstrations written as a LeRobot set v3.0, the whole folder or nothing.

LeRobot has an action for every frame, a demonstration one frame more than actions: its last row repeats the last action and says `next.done`. Whoever
reads drops the last row's action, which leads to nothing that was seen, and has the demonstration back. Arrays that LeRobot has no name for are
`frame.<name>` where they have a row a frame, and `episode.<name>`, the same in each row, where they do not.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets import lerobot_info as names
from diffusion_forcing.datasets import lerobot_statistics as statistics
from diffusion_forcing.datasets.lerobot_tables import FilmFiles, RowFiles, write_tasks
from diffusion_forcing.datasets.robot_films import CODECS
from diffusion_forcing.datasets.robot_source import ACTION, Demonstration, check_actions
from diffusion_forcing.errors import UserError

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
    temporary = root.with_name(f".{root.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        _Set(temporary, options).write(demonstrations)
        if root.exists():
            root.rmdir()
        os.replace(temporary, root)
    except (OSError, av.FFmpegError) as error:
        raise UserError(
            f"cannot write {root}: {error.strerror or error}; make room or choose another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return root


class _Set:
    """A set in `root`, while it is written."""

    def __init__(self, root: Path, options: LeRobotOptions) -> None:
        self.root, self.options = root, options
        self.features: dict[str, dict[str, Any]] = {}
        self.splits: dict[str, list[int]] = {}
        self.episodes: list[dict[str, Any]] = []
        self.statistics: list[dict[str, statistics.Statistics]] = []
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
        facts = {key: statistics.of_rows(array) for key, array in table.items()}
        facts |= {key: statistics.of_pictures(array) for key, array in pictures.items()}
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
        total = {key: statistics.joined([facts[key] for facts in self.statistics]) for key in self.statistics[0]}
        (self.root / names.STATISTICS).write_text(json.dumps(statistics.plain(total), indent=4), encoding="utf-8")
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

"""The authors' released layout: a folder per demonstration, with one mp4 per camera (in the order of their names) and
one trajectory file.

The trajectory is a dict with one value per frame: the targets `ee_pos_target` (3,), `ee_quat_target` (4,) x y z w and
`grasp`, and the state `ee_pos`, `ee_quat`. The released code unpickles it; here it is npz or json, or, on request, a
pickle read without executing it. Action t follows frame t. As in the released code, the last action, after which
nothing was filmed, is dropped, and the first twentieth of the folders is for validation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.arrays import read_npz
from diffusion_forcing.datasets.robot.source import (
    Demonstration,
    check_actions,
    check_camera,
    check_quaternions,
    default_splits,
    stamp_of,
)
from diffusion_forcing.datasets.robot.video import read_video, video_metadata
from diffusion_forcing.errors import explaining_os_errors, require
from diffusion_forcing.limits import load_json, reading
from diffusion_forcing.pickles import read_arrays

TRAJECTORIES = (".npz", ".json", ".pkl", ".pickle")
"""Endings of a trajectory file, the preferred first."""
_PICKLES = (".pkl", ".pickle")
_MAX_DIFFERENCE = 15
"""Frames by which the lengths of videos and trajectory may differ; they are cut to the shortest."""
_WIDTHS = {"ee_pos_target": 3, "ee_quat_target": 4, "grasp": 1, "ee_pos": 3, "ee_quat": 4}
_ACTION = ("ee_pos_target", "ee_quat_target", "grasp")
_STATE = ("ee_pos", "ee_quat", "grasp")


def is_released(root: Path) -> bool:
    """Whether a folder looks like the released data: it has folders with videos and a trajectory."""
    return any(_trajectories(folder) and any(folder.glob("*.mp4")) for folder in _folders(root))


class ReleasedFolders:
    """The released data in `root` as a `RobotSource`.

    cameras: a mapping from our names to names of videos without ending, or our names alone, for the videos in the order
    of their names. allow_pickle: read trajectories that are pickles.
    """

    def __init__(self, root: Path, cameras: Mapping[str, str] | Sequence[str], *, allow_pickle: bool = False) -> None:
        self.root, self._cameras, self._allow_pickle = root, cameras, allow_pickle
        self.folders = [folder for folder in _folders(root) if _trajectories(folder)]
        require(
            bool(self.folders),
            f"{root} has no demonstrations: folders with one mp4 per camera and a trajectory ({', '.join(TRAJECTORIES)})",
        )
        self._splits = default_splits(len(self.folders))
        self.counts = {split: len(numbers) for split, numbers in self._splits.items()}
        self.fps = _metadata(next(iter(self._videos(self.folders[0]).values())))[1]

    def cameras(self) -> list[str]:
        return list(self._cameras)

    def video(self, split: str, index: int, camera: str) -> Path:
        return self._videos(self._folder(split, index))[check_camera(self, camera)]

    def arrays(self, split: str, index: int) -> Demonstration:
        """See `RobotSource`; also the length of every video, as `frames.<camera>`."""
        folder = self._folder(split, index)
        path = self._trajectory(folder)
        actions, states = self._read(path)
        lengths = {camera: _metadata(video)[0] for camera, video in self._videos(folder).items()}
        shortest, longest = min(len(actions), *lengths.values()), max(len(actions), *lengths.values())
        require(
            longest - shortest <= _MAX_DIFFERENCE and shortest >= 2,
            f"{folder}: {path.name} has {len(actions)} steps, the videos {lengths} frames; they may differ by "
            f"{_MAX_DIFFERENCE}",
        )
        count = min(len(actions), *(length - 1 for length in lengths.values()))
        demonstration: Demonstration = {"actions": actions[:count]}
        if states is not None:
            demonstration["states"] = np.concatenate([states, states[-1:]])[: count + 1]
        return {**demonstration, **{f"frames.{camera}": np.array(length) for camera, length in lengths.items()}}

    def images(self, split: str, index: int, camera: str, size: int | None = None) -> NDArray[np.uint8]:
        video = self.video(split, index, camera)
        count = len(self.arrays(split, index)["actions"]) + 1
        with reading(video):
            return read_video(video, size, most=count)

    def stamp(self, split: str, index: int, camera: str) -> str:
        return stamp_of(self.video(split, index, camera), self._trajectory(self._folder(split, index)))

    def _folder(self, split: str, index: int) -> Path:
        return self.folders[self._splits[split][index]]

    def _videos(self, folder: Path) -> dict[str, Path]:
        """The videos of a folder by our names."""
        videos = {video.stem: video for video in sorted(folder.glob("*.mp4"))}
        if isinstance(self._cameras, Mapping):
            stems, names = list(self._cameras.values()), [f"{ours}={stem}" for ours, stem in self._cameras.items()]
            fits = {*stems} <= videos.keys()
        else:  # in the order of their names
            stems, names = list(videos), list(self._cameras)
            fits = len(stems) == len(names)
        require(
            fits,
            f"{folder} has the videos {', '.join(videos)} for the cameras {', '.join(names)}; "
            "name them: --cameras front=<video>,over=<video>",
        )
        return {camera: videos[stem] for camera, stem in zip(self._cameras, stems, strict=True)}

    def _trajectory(self, folder: Path) -> Path:
        path = _trajectories(folder)[0]
        require(
            self._allow_pickle or path.suffix.lower() not in _PICKLES,
            f"{path} is a pickle, which can run any program when it is opened; --allow-pickle reads arrays and plain "
            "containers from it and executes nothing",
        )
        return path

    def _read(self, path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Actions (n, 8), and states (n, 8) where the file has them."""
        with reading(path):
            content = _load(path)
            columns = {key: _column(content, key, width) for key, width in _WIDTHS.items() if key in content}
            lengths = {key: len(column) for key, column in columns.items()}
            if len({*lengths.values()}) > 1:
                raise ValueError(f"its values differ in length: {lengths}")
            actions = check_actions(np.concatenate([columns[key] for key in _ACTION], axis=1))
            check_quaternions(actions)
        has_states = {*_STATE} <= columns.keys()
        return actions, np.concatenate([columns[key] for key in _STATE], axis=1) if has_states else None


def _folders(root: Path) -> list[Path]:
    with explaining_os_errors(f"cannot read the folder {root}", "choose another"):
        return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _trajectories(folder: Path) -> list[Path]:
    """The trajectory files of a folder, pickles last."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in TRAJECTORIES]
    return sorted(files, key=lambda path: (TRAJECTORIES.index(path.suffix.lower()), path.name))


def _metadata(video: Path) -> tuple[int, float]:
    """Frames and frames per second."""
    with reading(video):
        return video_metadata(video)


def _load(path: Path) -> Mapping[str, Any]:
    ending = path.suffix.lower()
    if ending in _PICKLES:
        content = read_arrays(path)
    elif ending == ".npz":
        content = read_npz(path)
    else:
        content = load_json(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"it contains a {type(content).__name__}, expected a dict")
    return content


def _column(content: Mapping[str, Any], key: str, width: int) -> NDArray[np.float32]:
    """(n, width) from a list of values, a list of arrays, or an array."""
    values = content[key]
    if not isinstance(values, list | np.ndarray):
        raise ValueError(f"{key!r} is a {type(values).__name__}, expected a list or an array")
    try:
        array = np.asarray(values, np.float32).reshape(len(values), -1)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{key!r} does not have {width} numbers per frame") from error
    if array.shape[1] != width or not np.isfinite(array).all():
        raise ValueError(f"{key!r} has shape {array.shape}, expected (n, {width}) finite numbers")
    return array

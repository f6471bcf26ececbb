"""The interface of a set of demonstrations, whatever its layout on disk: our files, a LeRobot set, or the authors'
released layout.

A *demonstration* is a dict of arrays: `actions` (N, 8) float32 [x, y, z, qx, qy, qz, qw, grasp]; under each camera's
name N + 1 images (N + 1, h, w, 3) uint8, one before every action and one after the last; and optionally `states` (N +
1, s), `blocked` (N + 1, cameras) bool and `slots` (2,).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.arrays import read_arrays, read_npz, write_npz
from diffusion_forcing.datasets.video.container import read_video, video_metadata, write_video
from diffusion_forcing.errors import UserError, explaining_os_errors, require
from diffusion_forcing.files import replacing
from diffusion_forcing.limits import Refused, load_json, reading

ACTION = ("x", "y", "z", "qx", "qy", "qz", "qw", "grasp")
SPLITS = ("training", "validation")
VALIDATION_SHARE = 0.05
"""Of a set without a validation split: its first demonstrations, as in the released code."""
_UNIT = 0.02
"""How far the norm of a quaternion may be from 1."""
_DECODER = 2
"""Raised when the same files would be decoded to other images, so that cached images are decoded again."""

Demonstration = dict[str, NDArray[Any]]


class RobotSource(Protocol):
    """A set of demonstrations, addressed by split ("training", "validation", …) and index."""

    root: Path
    fps: float

    @property
    def counts(self) -> Mapping[str, int]:
        """Number of demonstrations in every split."""

    def cameras(self) -> list[str]:
        """Names of all cameras."""

    def arrays(self, split: str, index: int) -> Demonstration:
        """A demonstration without its images. `UserError` for missing or damaged files."""

    def images(self, split: str, index: int, camera: str, size: int | None = None) -> NDArray[np.uint8]:
        """(N + 1, h, w, 3), or (N + 1, size, size, 3). `UserError` for missing or damaged files."""

    def stamp(self, split: str, index: int, camera: str) -> str:
        """Eight hex digits that change when the files behind `images` change. `UserError` where one is missing."""


def check_fps(value: Any) -> float:
    """`value` as frames per second; ValueError where it is none."""
    if not isinstance(value, int | float) or not 0 < value < 1e4:
        raise ValueError(f"fps is {str(value)[:40]}, expected frames per second")
    return float(value)


def check_actions(actions: NDArray[Any]) -> NDArray[np.float32]:
    """Actions (n, 8) as float32; ValueError for another shape or values that are not finite."""
    is_numeric = actions.dtype.kind in "fiub" and actions.ndim == 2
    numbers = np.ascontiguousarray(actions, np.float32) if is_numeric else np.zeros((0, 0), np.float32)
    if numbers.shape[1] != len(ACTION) or not len(numbers) or not np.isfinite(numbers).all():
        raise ValueError(f"actions have shape {actions.shape}; expected (n, 8) finite numbers: {' '.join(ACTION)}")
    return numbers


def check_quaternions(actions: NDArray[Any]) -> None:
    """ValueError unless numbers 3 to 6 of actions (n, 8) are unit quaternions: eight joint angles have the same
    shape."""
    norms = np.linalg.norm(actions[:, 3:7].astype(np.float64), axis=1)
    worst = norms[np.abs(norms - 1).argmax()]
    if abs(worst - 1) > _UNIT:
        raise ValueError(
            f"numbers 3 to 6 of its actions are not a unit quaternion (norm {worst:.3g}); expected {' '.join(ACTION)}"
        )


def check_camera(source: RobotSource, name: str) -> str:
    """`name`, if `source` has such a camera; `UserError` otherwise."""
    names = source.cameras()
    if name not in names:
        few = names[:8]
        raise UserError(
            f"{source.root} has no camera {name!r}; it has {', '.join(names) or 'none'}: "
            f"set dataset.cameras=[{','.join(few)}] dataset.n_cameras={len(few)}"
        )
    return name


def default_splits(count: int) -> dict[str, range]:
    """The splits of a set that defines none: the first twentieth, at least one, is for validation."""
    first = max(1, int(count * VALIDATION_SHARE)) if count > 1 else 0
    return {"training": range(first, count), "validation": range(first)}


def stamp_of(*files: Path, extra: str = "") -> str:
    """Eight hex digits from the names, sizes and modification times of `files`, and from `extra`. `UserError` where
    a file is missing."""
    stats = []
    for file in files:
        with reading(file, "restore it"):
            stats.append((file.name, file.stat().st_size, file.stat().st_mtime_ns))
    return hashlib.sha256(repr((_DECODER, stats, extra)).encode()).hexdigest()[:8]


def read_demonstration(
    source: RobotSource, split: str, index: int, cameras: Sequence[str], size: int | None = None
) -> Demonstration:
    """A demonstration with the images of `cameras`."""
    images = {camera: source.images(split, index, camera, size) for camera in cameras}
    return {**source.arrays(split, index), **images}


RATE = 10
"""Frames and actions per second of the demonstrations made here."""
NOTE = "converted.json"
"""In a converted set: its origin and fps."""
_REMEDY = "remove it, then generate or convert it again"


class RobotFiles:
    """A folder in our layout as a `RobotSource`: {training,validation}/NNNNNN.npz with the arrays of a demonstration,
    written last, and NNNNNN.<camera>.mp4 beside it. counts: demonstrations of each split to use; all by default.

    Videos made here are lossless. Those of a converted set are copied as they were; `frames.<camera>` in the npz is the
    length of a video that continues after the last action.
    """

    def __init__(self, root: Path, counts: Mapping[str, int] | None = None) -> None:
        self.root = root
        self.fps = self._read_fps()
        self.counts = {split: self._count(split) for split in SPLITS} if counts is None else counts

    def cameras(self) -> list[str]:
        """The cameras of the first demonstration."""
        split = next((split for split, count in self.counts.items() if count), SPLITS[0])
        first = self.file(split, 0)
        return sorted(video.name[len(first.stem) + 1 : -4] for video in first.parent.glob(f"{first.stem}.*.mp4"))

    def file(self, split: str, index: int) -> Path:
        return self.root / split / f"{index:06d}.npz"

    def arrays(self, split: str, index: int) -> Demonstration:
        stored = _read_npz(self.file(split, index))
        return {name: array for name, array in stored.items() if not name.startswith("frames.")}

    def images(self, split: str, index: int, camera: str, size: int | None = None) -> NDArray[np.uint8]:
        path = self.file(split, index)
        stored = _read_npz(path)
        needed = len(stored["actions"]) + 1
        video = video_file(path, camera)
        with reading(video, _REMEDY):
            expected = int(stored.get(f"frames.{camera}", needed))
            frames = read_video(video, size, most=expected + 1)
            if len(frames) != expected or expected < needed:
                more = " or more" if len(frames) > expected else ""
                raise Refused(f"has {len(frames)} frames{more} for {needed - 1} actions, expected {expected}")
        return frames[:needed]

    def stamp(self, split: str, index: int, camera: str) -> str:
        path = self.file(split, index)
        return stamp_of(path, video_file(path, camera))

    def _count(self, split: str) -> int:
        names = sorted(file.name for file in (self.root / split).glob("*.npz"))
        for index, name in enumerate(names):
            require(name == f"{index:06d}.npz", f"{self.root / split} has {name}, expected {index:06d}.npz: no gaps")
        return len(names)

    def _read_fps(self) -> float:
        note = self.root / NOTE
        if not note.exists():
            return RATE
        with reading(note, "convert the set again"):
            return check_fps(load_json(note)["fps"])


def save_demonstration(path: Path, episode: Mapping[str, NDArray[Any]]) -> None:
    """Write images (n, h, w, 3) uint8 as videos beside `path`, then the other arrays as `path` (.npz)."""
    images = {name: array for name, array in episode.items() if array.ndim == 4 and array.dtype == np.uint8}
    for camera, frames in images.items():
        with replacing(video_file(path, camera)) as temporary:
            write_video(temporary, frames, RATE)
    write_npz(path, {name: array for name, array in episode.items() if name not in images})


def video_file(path: Path, camera: str) -> Path:
    """The video of a camera beside the npz `path`."""
    return path.with_name(f"{path.stem}.{camera}.mp4")


def _read_npz(path: Path) -> Demonstration:
    with reading(path, _REMEDY):
        arrays = read_npz(path)
        return {**arrays, "actions": check_actions(arrays["actions"])}


# -------------------------------------------------------------------------------------------------- the released layout
# The authors' released layout: a folder per demonstration, with one mp4 per camera (in the order of their names) and
# one trajectory file.
#
# The trajectory is a dict with one value per frame: the targets `ee_pos_target` (3,), `ee_quat_target` (4,) x y z w and
# `grasp`, and the state `ee_pos`, `ee_quat`. The released code unpickles it; here it is npz or json, or, on request, a
# pickle read without executing it. Action t follows frame t. As in the released code, the last action, after which
# nothing was filmed, is dropped, and the first twentieth of the folders is for validation.

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

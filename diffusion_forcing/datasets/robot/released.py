"""The released robot data: a folder for each demonstration, in it a film of every camera (mp4, in the order of their names) and one trajectory file.

The trajectory is a dict of one value a frame: `ee_pos_target` (3,), `ee_quat_target` (4,) x y z w, `grasp`; where the arm was: `ee_pos`, `ee_quat`.
The released code unpickles it; here it is npz or json, or a pickle (`pickles.py`) where that is asked for. Action t follows frame t. The last one,
behind which nothing was seen, is left out, as there; and the first twentieth of the folders is for validation.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.robot.files import stamp_of
from diffusion_forcing.datasets.robot.source import (
    Demonstration,
    camera_of,
    check_actions,
    check_turns,
    validation_first,
)
from diffusion_forcing.datasets.robot.video import film_facts, read_film
from diffusion_forcing.errors import UserError
from diffusion_forcing.pickles import MAX_BYTES, Refused, read_arrays

TRAJECTORIES = (".npz", ".json", ".pkl", ".pickle")
_PICKLES = (".pkl", ".pickle")
MOST_APART = 15
"""Frames by which films and trajectory may differ in length; they are cut to the shortest."""
_SHAPES = {"ee_pos_target": 3, "ee_quat_target": 4, "grasp": 1, "ee_pos": 3, "ee_quat": 4}


def is_released(root: Path) -> bool:
    """Whether a folder looks like the released data: folders with films and a trajectory in them."""
    return any(_trajectories(folder) and any(folder.glob("*.mp4")) for folder in _folders(root))


class ReleasedFolders:
    """The released data in `root` as a `RobotSource`. cameras: by our name a film's name without its ending; or names alone, for the films in the
    order of theirs. allow_pickle: read trajectories that are pickles."""

    def __init__(self, root: Path, cameras: Mapping[str, str] | Sequence[str], *, allow_pickle: bool = False) -> None:
        self.root, self._cameras, self._allow_pickle = root, cameras, allow_pickle
        self.folders = [folder for folder in _folders(root) if _trajectories(folder)]
        if not self.folders:
            raise UserError(
                f"{root} holds no demonstrations: each is a folder with a film of every camera (mp4) and a trajectory ({', '.join(TRAJECTORIES)})"
            )
        self._splits = validation_first(len(self.folders))
        self.fps = self._rate()

    @property
    def counts(self) -> Mapping[str, int]:
        """Demonstrations of every split."""
        return {split: len(numbers) for split, numbers in self._splits.items()}

    @property
    def pickles(self) -> int:
        """How many trajectories are pickles."""
        return sum(_trajectories(folder)[0].suffix.lower() in _PICKLES for folder in self.folders)

    def cameras(self) -> list[str]:
        """Our names of them."""
        return list(self._cameras)

    def film(self, split: str, index: int, camera: str) -> Path:
        """A camera's film."""
        return self._films(self._folder(split, index))[camera_of(self, camera)]

    def arrays(self, split: str, index: int) -> Demonstration:
        """Actions, states, and of every film how many frames it has, where those are more: `frames.<camera>`."""
        folder = self._folder(split, index)
        path = self._trajectory(folder)
        actions, states = self._read(path)
        lengths = {}
        for camera, film in self._films(folder).items():
            try:
                lengths[camera] = film_facts(film)[0]
            except (OSError, ValueError, av.FFmpegError) as error:
                raise UserError(f"{film} cannot be read: {error}; get it again") from error
        every = [len(actions), *lengths.values()]
        if max(every) - min(every) > MOST_APART or min(every) < 2:
            said = ", ".join(f"{camera} {length} frames" for camera, length in lengths.items())
            raise UserError(
                f"{folder} does not fit together: {path.name} {len(actions)} steps, {said}; at most {MOST_APART} may be between them"
            )
        count = min(len(actions) + 1, *lengths.values()) - 1
        found: Demonstration = {"actions": actions[:count]}
        if states is not None:
            found["states"] = np.concatenate([states, states[-1:]])[: count + 1]
        return {**found, **{f"frames.{camera}": np.array(length) for camera, length in lengths.items()}}

    def pictures(self, split: str, index: int, camera: str, size: int | None = None) -> NDArray[np.uint8]:
        """(N + 1, h, w, 3)."""
        film = self.film(split, index, camera)
        try:
            return read_film(film, size)[: len(self.arrays(split, index)["actions"]) + 1]
        except (OSError, ValueError, av.FFmpegError) as error:
            raise UserError(f"{film} cannot be read: {error}; get it again") from error

    def stamp(self, split: str, index: int, camera: str) -> str:
        """Of film and trajectory."""
        return stamp_of(self.film(split, index, camera), self._trajectory(self._folder(split, index)))

    # ------------------------------------------------------------------------------------------------ how

    def _folder(self, split: str, index: int) -> Path:
        return self.folders[self._splits[split][index]]

    def _films(self, folder: Path) -> dict[str, Path]:
        films = sorted(folder.glob("*.mp4"))
        stems = {film.stem: film for film in films}
        if isinstance(self._cameras, Mapping):
            missing = [stem for stem in self._cameras.values() if stem not in stems]
            if missing:
                raise UserError(
                    f"{folder} has no film {missing[0]}.mp4; it has {', '.join(film.name for film in films)}"
                )
            return {name: stems[stem] for name, stem in self._cameras.items()}
        if len(films) != len(self._cameras):
            raise UserError(
                f"{folder} has {len(films)} films ({', '.join(film.name for film in films)}) for the cameras {', '.join(self._cameras)}; "
                "name them: --cameras front=<film>,over=<film>"
            )
        return dict(zip(self._cameras, films, strict=True))

    def _trajectory(self, folder: Path) -> Path:
        path = _trajectories(folder)[0]
        if path.suffix.lower() in _PICKLES and not self._allow_pickle:
            raise UserError(
                f"{path} is a pickle, a program that could do anything when it is opened; --allow-pickle reads it without executing it: "
                "arrays and plain containers, nothing else"
            )
        return path

    def _rate(self) -> float:
        film = next(iter(self._films(self.folders[0]).values()))
        try:
            return film_facts(film)[1]
        except (OSError, ValueError, av.FFmpegError) as error:
            raise UserError(f"{film} cannot be read: {error}; get it again") from error

    def _read(self, path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Actions (n, 8), and states (n, 8) where the file has them."""
        try:
            found = _contents(path)
            columns = {key: _column(found, key, width) for key, width in _SHAPES.items() if key in found}
            missing = [key for key in ("ee_pos_target", "ee_quat_target", "grasp") if key not in columns]
            if missing:
                raise ValueError(f"it has no {missing[0]!r}; it has {', '.join(sorted(map(str, found)))[:200]}")
            if len({len(column) for column in columns.values()}) != 1:
                raise ValueError(
                    "its values are of several lengths: "
                    + ", ".join(f"{key} {len(column)}" for key, column in columns.items())
                )
            parts = [columns["ee_pos_target"], columns["ee_quat_target"], columns["grasp"]]
            actions = check_actions(np.concatenate(parts, axis=1))
            check_turns(actions)
        except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile, EOFError) as error:
            kind = "refused" if isinstance(error, Refused) else "cannot be read"
            raise UserError(f"{path} {kind}: {error}") from error
        if not {"ee_pos", "ee_quat"} <= columns.keys():
            return actions, None
        return actions, np.concatenate([columns["ee_pos"], columns["ee_quat"], columns["grasp"]], axis=1)


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot read the folder {root}: {error.strerror or error}") from error


def _trajectories(folder: Path) -> list[Path]:
    """A folder's trajectory files, those first that are no pickles."""
    return sorted(
        (path for path in folder.iterdir() if path.suffix.lower() in TRAJECTORIES),
        key=lambda path: (TRAJECTORIES.index(path.suffix.lower()), path.name),
    )


def _contents(path: Path) -> Mapping[str, Any]:
    ending = path.suffix.lower()
    if ending in _PICKLES:
        found = read_arrays(path)
    elif ending == ".npz":
        with np.load(path, allow_pickle=False) as stored:
            found = {name: stored[name] for name in stored.files}
    else:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES >> 20} MB")
        found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, Mapping):
        raise ValueError(f"it holds a {type(found).__name__}, a dict is needed")
    return found


def _column(found: Mapping[str, Any], key: str, width: int) -> NDArray[np.float32]:
    """(n, width) from a list of values, or of arrays, or one array."""
    values = found[key]
    if not isinstance(values, list | np.ndarray):
        raise ValueError(f"its {key!r} is a {type(values).__name__}, a list or an array is needed")
    try:
        array = np.asarray(values, np.float32).reshape(len(values), -1)
    except (ValueError, TypeError) as error:
        raise ValueError(f"its {key!r} is not one row of {width} numbers a frame") from error
    if array.shape[1] != width or not np.isfinite(array).all():
        raise ValueError(f"its {key!r} has shape {array.shape}, (n, {width}) finite numbers are needed")
    return array

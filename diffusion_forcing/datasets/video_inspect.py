"""What one episode's files hold, read without decoding it: size, length, where its pixels lie, its keyframes, its actions.

| kind | files | reading a clip |
|---|---|---|
| stored | npz without compression, npy | its bytes lie in one piece from `offset` on |
| packed | npz with compression | unpacked from the beginning up to the clip's end |
| film | mp4, webm, mkv, avi, mov, gif | decoded from the last keyframe before the clip |

A file that cannot be used is no exception but an `Episode` whose `problem` says why: one bad file must not stop a run.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.video_files import ACTIONS, FILMS, Group

Kind = Literal["stored", "packed", "film"]
Array = NDArray[Any]

_NOTHING = np.zeros(0, dtype=np.int64)
_HEADER_ROOM = 4096
"""Bytes of a .npy that surely hold its header."""


class Unusable(Exception):
    """This file cannot be used; the message says why, without its name."""


@dataclass(frozen=True)
class Episode:
    """One recording. `problem` is empty where it can be read."""

    stem: str
    stamp: str
    file: str = ""
    """The clip's file below the root."""
    kind: Kind = "stored"
    frames: int = 0
    height: int = 0
    width: int = 0
    offset: int = 0
    """Stored: bytes before the first frame."""
    actions: Array | None = None
    """(n,) or (n, a) numbers as they lie on disk, or None."""
    action_problem: str = ""
    """Why there are none, where a file of them is broken."""
    keyframes: NDArray[np.int64] = field(default_factory=lambda: _NOTHING)
    """Film: numbers of the frames decoding can begin at."""
    times: NDArray[np.int64] = field(default_factory=lambda: _NOTHING)
    """Film: presentation times of all frames; [first, step] where they are evenly spaced."""
    problem: str = ""
    again: bool = False
    """The problem may pass (no permission, a disk that is away): look again next time."""

    @property
    def pixels(self) -> int:
        """Bytes of all frames as uint8."""
        return self.frames * self.height * self.width * 3


def inspect(root: Path, group: Group) -> Episode:
    """The episode of `group`. Anything wrong with its files is in `problem`, or in `action_problem` where only actions are."""
    ending = _clip_of(root, group)
    path = group.path(root, ending)
    names: dict[str, Any] = {"stem": group.stem, "stamp": group.stamp, "file": path.relative_to(root).as_posix()}
    try:
        if ending in FILMS:
            from diffusion_forcing.datasets.video_film import inspect_film

            facts = inspect_film(path)
        else:
            facts = _inspect_npz(path) if ending == ".npz" else _inspect_npy(path)
        if facts["frames"] < 1:
            raise Unusable("holds no frames")
    except Unusable as reason:
        return Episode(**names, problem=str(reason))
    except OSError as error:
        return Episode(**names, problem=f"cannot be read: {error.strerror or error}", again=True)
    try:
        return Episode(**names, **facts, actions=_read_actions(root, group, ending))
    except Unusable as reason:
        return Episode(**names, **facts, action_problem=str(reason))
    except OSError as error:
        return Episode(**names, **facts, action_problem=f"cannot be read: {error.strerror or error}", again=True)


def _clip_of(root: Path, group: Group) -> str:
    """The ending of the group's clip: a film, else the npz that holds `video`, else the npy."""
    for ending in FILMS:
        if ending in group.endings:
            return ending
    if ".npz" in group.endings and ".npy" in group.endings:
        try:
            with zipfile.ZipFile(group.path(root, ".npz")) as archive:
                return ".npz" if "video.npy" in archive.namelist() else ".npy"
        except (zipfile.BadZipFile, OSError):
            return ".npy"
    return ".npz" if ".npz" in group.endings else ".npy"


def _inspect_npz(path: Path) -> dict[str, Any]:
    with _opened(path) as archive:
        try:
            member = archive.getinfo("video.npy")
        except KeyError:
            names = ", ".join(name.removesuffix(".npy") for name in archive.namelist()) or "nothing"
            raise Unusable(f"has no array 'video' (it holds {names})") from None
        stored = member.compress_type == zipfile.ZIP_STORED
        with _member(archive, member) as file:
            shape, header = _read_header(file)
        if member.file_size < header + int(np.prod(shape)):
            raise Unusable("is cut off: its array 'video' is shorter than it says")
        offset = _data_begin(path, member) + header if stored else header
    return {"kind": "stored" if stored else "packed", "offset": offset} | _sizes(shape)


def _inspect_npy(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        shape, header = _read_header(file)
    if path.stat().st_size < header + int(np.prod(shape)):
        raise Unusable("is cut off: the file is shorter than its header says")
    return {"kind": "stored", "offset": header} | _sizes(shape)


def _sizes(shape: tuple[int, ...]) -> dict[str, int]:
    return {"frames": shape[0], "height": shape[1], "width": shape[2]}


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise Unusable("is not a readable npz file (cut off or damaged?)") from error


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    try:
        return archive.open(member)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise Unusable(f"is damaged at its array '{member.filename.removesuffix('.npy')}'") from error


def _data_begin(path: Path, member: zipfile.ZipInfo) -> int:
    """Where the bytes of a zip member begin: behind its local header, whose two lengths only that header knows."""
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise Unusable("is damaged at its array 'video'")
    name, extra = struct.unpack("<HH", header[26:30])
    return member.header_offset + 30 + int(name) + int(extra)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], int]:
    """Shape of the frames in a .npy and the length of its header. `Unusable` for anything but uint8 (t, h, w, 3) in C order."""
    shape, fortran, dtype, length = npy_header(file)
    if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or fortran:
        raise Unusable(f"holds {dtype} {shape}, expected uint8 frames of shape (t, h, w, 3)")
    return shape, length


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether in Fortran order, type, and length of the header of the .npy that begins at `file`."""
    from io import BytesIO

    try:
        begin = BytesIO(file.read(_HEADER_ROOM))
        version = np.lib.format.read_magic(begin)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = reader(begin)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise Unusable("is not a readable npy array (cut off or damaged?)") from error
    return tuple(shape), fortran, dtype, begin.tell()


def _read_actions(root: Path, group: Group, clip: str) -> Array | None:
    """The episode's actions: from the npz that is the clip, else from the first of `ACTIONS` beside it."""
    if clip == ".npz":
        inside = _actions_in(group.path(root, clip), optional=True)
        if inside is not None:
            return inside
    for ending in ACTIONS:
        if ending in group.endings and ending != clip:
            path = group.path(root, ending)
            return _checked(_actions_in(path) if ending.endswith("npz") else _actions_of(path), path)
    return None


def _actions_in(path: Path, *, optional: bool = False) -> Array | None:
    """The array 'actions' of a npz; None where it is not there and may be missing."""
    with _opened(path) as archive:
        if "actions.npy" not in archive.namelist():
            if optional:
                return None
            raise Unusable(f"{path.name} has no array 'actions'")
        try:
            with archive.open("actions.npy") as file:
                return _checked(np.lib.format.read_array(file, allow_pickle=False), path)
        except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise Unusable(f"the actions in {path.name} cannot be read ({error})") from error


def _actions_of(path: Path) -> Array:
    """Actions of a npy, or of a csv with a row a frame, commas between columns and perhaps one line of names above."""
    try:
        if path.suffix.lower() == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        try:
            [float(value) for value in lines[0].split(",")]
        except ValueError:
            lines = lines[1:]
        values = np.array([[float(value) for value in line.split(",")] for line in lines])
        whole = bool((values == np.round(values)).all())
        return (values.astype(np.int64) if whole else values)[:, 0 if values.shape[1] == 1 else slice(None)]
    except (ValueError, EOFError, IndexError, UnicodeError) as error:
        raise Unusable(f"the actions in {path.name} cannot be read ({error})") from error


def _checked(actions: Array | None, path: Path) -> Array | None:
    if actions is None:
        return None
    if actions.dtype.kind not in "iubf" or actions.ndim not in (1, 2):
        raise Unusable(
            f"the actions in {path.name} are {actions.dtype} {actions.shape}, expected numbers (t,) or (t, a)"
        )
    if actions.dtype.kind == "f" and not np.isfinite(actions).all():
        raise Unusable(f"the actions in {path.name} are not finite (NaN or infinity)")
    return actions.astype(np.float32) if actions.dtype.kind == "f" else actions.astype(np.int64)

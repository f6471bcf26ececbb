"""What the files of one episode hold, found without decoding: size, length, where the pixels lie, keyframes, actions.

| kind | files | reading a clip |
|---|---|---|
| stored | npz without compression, npy | its bytes, in one piece from `offset` on |
| packed | npz with compression | decompressed from the beginning to the end of the clip |
| video | mp4, webm, mkv, avi, mov, gif | decoded from the last keyframe before the clip |

A file that cannot be used raises nothing here: its `Episode` has the reason in `problem`, since one bad file must not
stop a run.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.arrays import read_header, read_npy, read_npz
from diffusion_forcing.datasets.video.container import inspect_video
from diffusion_forcing.errors import UserError, explaining_os_errors, require
from diffusion_forcing.files import locked, write_atomic
from diffusion_forcing.limits import Refused, bytes_of, check_limit, refusing
from diffusion_forcing.progress import Bar

# ---------------------------------------------------------------------------------------------------------------- files
# Which files of a folder are clips, which hold their actions, and to which split a clip belongs.
#
# All files of one stem in one folder are one episode: `a.mp4` with `a.npz` beside it (TECO's Minecraft), `a.npz` alone
# (TECO's DMLab), `a.gif` with `a.csv`, and so on. Hidden folders and unfinished files (`*.tmp`, `*.part`) are ignored.
# The folders training (or train), validation (valid, val) and test are the splits, at the top or below one folder that
# holds everything. Without such folders a hash of each clip's name decides, so that adding or removing clips never moves
# another clip to a different split.

VIDEOS = (".mp4", ".webm", ".mkv", ".avi", ".mov", ".gif")
"""Encoded videos."""
ARRAYS = (".npz", ".npy")
"""Arrays of frames; beside a video of the same stem they hold its actions."""
ACTIONS = (".actions.npz", ".actions.npy", ".actions.csv", ".npz", ".npy", ".csv")
"""Where the actions of a clip are: the first that exists and is not the clip itself."""
SPLITS = {"training": ("training", "train"), "validation": ("validation", "valid", "val"), "test": ("test",)}
"""Split: names of its folder."""


@dataclass(frozen=True)
class Group:
    """The files of one stem."""

    stem: str
    """Path below the root without its ending, with forward slashes."""
    endings: dict[str, str]
    """Ending in lower case: the ending as it is written."""
    stamp: str
    """Changes when a file of the group is changed, added or removed."""

    def path(self, root: Path, ending: str) -> Path:
        """The file with `ending` (lower case)."""
        return root / f"{self.stem}{self.endings[ending]}"


def find_groups(root: Path) -> list[Group]:
    """Every stem below `root` that may hold a clip, sorted. `UserError` if `root` is not a readable folder."""
    require(root.is_dir(), f"{root} is not a folder; place clips there, or give dataset.path=<folder of clips>")
    found: dict[str, list[tuple[str, int, int]]] = {}
    for name, size, time in _walk(root):
        ending = next((ending for ending in (*VIDEOS, *ACTIONS) if name.lower().endswith(ending)), "")
        if ending:
            found.setdefault(name[: -len(ending)], []).append((name[-len(ending) :], size, time))
    groups = []
    for stem in sorted(found):
        files = sorted(found[stem])
        endings = {written.lower(): written for written, _, _ in files}
        if any(ending in endings for ending in (*VIDEOS, *ARRAYS)):
            groups.append(Group(stem, endings, hashlib.sha256(repr(files).encode()).hexdigest()[:16]))
    return groups


def has_clips(root: Path) -> bool:
    """Whether any file below `root` may be a clip; stops at the first."""
    return root.is_dir() and any(name.lower().endswith((*VIDEOS, *ARRAYS)) for name, _, _ in _walk(root))


def splits_of(stems: Sequence[str], validation_fraction: float) -> dict[str, list[int]]:
    """Positions in `stems` of the clips of each split; an empty list for a split without clips.

    TECO has the folders train and test only: test clips are then the validation clips as well. With a training folder
    alone, or without split folders, `validation_fraction` of the clips are for validation, by hash, and at least one;
    if it is 0, all clips are in both.
    """
    folders = {folder: split for split, names in SPLITS.items() for folder in names}
    parts = [stem.split("/")[:-1] for stem in stems]
    # Descend while one folder holds everything.
    depth = 0
    while len({tuple(part[depth : depth + 1]) for part in parts}) == 1 and len(parts[0]) > depth:
        if parts[0][depth].lower() in folders:
            break
        depth += 1
    places: dict[str, list[int]] = {split: [] for split in SPLITS}
    for i, part in enumerate(parts):
        split = folders.get(part[depth].lower()) if len(part) > depth else None
        if split:
            places[split].append(i)
    if not any(places.values()):
        places["training"] = list(range(len(stems)))
    places["validation"] = places["validation"] or list(places["test"])
    if not places["validation"]:
        places["training"], places["validation"] = _by_hash(places["training"], stems, validation_fraction)
    return places


def place_of(stem: str) -> float:
    """A number in [0, 1) that depends on the clip's name only."""
    return int.from_bytes(hashlib.sha256(stem.encode()).digest()[:8], "big") / 2**64


def _by_hash(clips: list[int], stems: Sequence[str], fraction: float) -> tuple[list[int], list[int]]:
    if fraction == 0 or len(clips) < 2:
        return clips, list(clips)
    order = sorted(clips, key=lambda i: place_of(stems[i]))
    count = sum(place_of(stems[i]) < fraction for i in order)
    count = min(max(count, 1), len(order) - 1)
    return sorted(order[count:]), sorted(order[:count])


def _walk(root: Path) -> Iterator[tuple[str, int, int]]:
    """(path below root with forward slashes, size, modification time in ns) of every file."""
    folders, seen = [""], {os.path.realpath(root)}
    while folders:
        below = folders.pop()
        try:
            with os.scandir(root / below) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        real = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                        if real not in seen:  # a link to a parent folder would never end
                            seen.add(real)
                            folders.append(f"{below}{entry.name}/")
                    elif entry.is_file():
                        stat = entry.stat()
                        yield f"{below}{entry.name}", stat.st_size, stat.st_mtime_ns
        except OSError as error:
            raise UserError(f"cannot read the folder {root / below}: {error.strerror or error}") from error


# ------------------------------------------------------------------------------------------------------------- episodes

Array = NDArray[Any]

_MOST = 2**53
"""Largest action: up to it float64 holds integers exactly, as the index does."""
_DAMAGED_NPZ = "is not a readable npz file (cut off or damaged?)"


def _no_numbers() -> NDArray[np.int64]:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Episode:
    """One recording. `problem` is empty if it can be read."""

    stem: str
    stamp: str
    file: str = ""
    """The clip's file below the root."""
    kind: Literal["stored", "packed", "video"] = "stored"
    frames: int = 0
    height: int = 0
    width: int = 0
    offset: int = 0
    """Stored and packed: bytes before the first frame."""
    actions: Array | None = None
    """(n,) or (n, a) numbers as on disk, or None."""
    action_problem: str = ""
    """Why a file of actions cannot be read."""
    keyframes: NDArray[np.int64] = field(default_factory=_no_numbers)
    """Video: numbers of the frames at which decoding can start."""
    times: NDArray[np.int64] = field(default_factory=_no_numbers)
    """Video: presentation times, see `container.all_times`."""
    problem: str = ""
    again: bool = False
    """The problem may pass (missing permission, unmounted disk): inspect the file again next time."""


def inspect(root: Path, group: Group) -> Episode:
    """The episode of `group`. Errors are in `problem`, or in `action_problem` if they concern only the actions."""
    ending = _clip_of(root, group)
    path = group.path(root, ending)
    fields: dict[str, Any] = {"stem": group.stem, "stamp": group.stamp, "file": path.relative_to(root).as_posix()}
    try:
        with refusing(disk=True):
            inspect_file = inspect_video if ending in VIDEOS else _inspect_npz if ending == ".npz" else _inspect_npy
            fields |= inspect_file(path)
        if fields["frames"] < 1:
            raise Refused("holds no frames")
    except Refused as reason:
        return Episode(**fields, problem=str(reason), again=reason.again)
    try:
        with refusing(disk=True):
            return Episode(**fields, actions=_read_actions(root, group, ending))
    except Refused as reason:
        return Episode(**fields, action_problem=str(reason), again=reason.again)


def _clip_of(root: Path, group: Group) -> str:
    """The ending of the group's clip: a video, otherwise the npz that has `video`, otherwise the npy."""
    for ending in VIDEOS:
        if ending in group.endings:
            return ending
    if ".npz" in group.endings and ".npy" in group.endings:
        try:
            with zipfile.ZipFile(group.path(root, ".npz")) as archive:
                return ".npz" if "video.npy" in archive.namelist() else ".npy"
        except Exception:  # a damaged npz
            return ".npy"
    return ".npz" if ".npz" in group.endings else ".npy"


def _inspect_npz(path: Path) -> dict[str, Any]:
    with refusing(_DAMAGED_NPZ), zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if "video" not in names:
            raise Refused(f"has no array 'video' (it holds {', '.join(names[:8]) or 'nothing'})")
        member = archive.getinfo("video.npy")
        with refusing("is damaged at its array 'video'"), archive.open(member) as file:
            fields = _read_fields(file, member.file_size)
    if member.compress_type != zipfile.ZIP_STORED:
        return {**fields, "kind": "packed"}
    return {**fields, "offset": fields["offset"] + _member_offset(path, member)}


def _inspect_npy(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return _read_fields(file, path.stat().st_size)


def _read_fields(file: IO[bytes], size: int) -> dict[str, Any]:
    """Fields of `Episode` from the .npy of `size` bytes at `file`. `Refused` unless uint8 (t, h, w, 3) in C order."""
    shape, is_fortran, dtype, offset = read_header(file, size)
    if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or is_fortran:
        raise Refused(f"holds {dtype} {shape}, expected uint8 frames of shape (t, h, w, 3)")
    frames, height, width, _ = shape
    check_limit("PIXELS", height * width, "frames")
    return {"kind": "stored", "frames": frames, "height": height, "width": width, "offset": offset}


def _member_offset(path: Path, member: zipfile.ZipInfo) -> int:
    """First byte of an uncompressed zip member, behind its local header, which alone knows its own length."""
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise Refused("is damaged at its array 'video'")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    return member.header_offset + 30 + int(name_length) + int(extra_length)


def _read_actions(root: Path, group: Group, clip: str) -> Array | None:
    """The episode's actions: from the npz that is the clip, otherwise from the first of `ACTIONS` beside it."""
    beside = [ending for ending in ACTIONS if ending in group.endings and ending != clip][:1]
    for ending in [*([clip] if clip == ".npz" else []), *beside]:
        path = group.path(root, ending)
        try:
            found = read_npz(path, ("actions",)).get("actions") if ending.endswith("npz") else _numbers_in(path)
        except Refused as reason:
            raise Refused(f"the actions in {path.name} cannot be read: it {reason}") from reason
        if found is not None:
            return _checked(found, path)
        if ending != clip:
            raise Refused(f"{path.name} has no array 'actions'")
    return None


def _numbers_in(path: Path) -> Array:
    """The array of a npy, or of a csv with one row for each frame, commas between columns and at most one header line."""
    if path.suffix.lower() == ".npy":
        return read_npy(path)
    check_limit("TEXT_BYTES", path.stat().st_size, "text")
    with refusing("holds other things than numbers"):
        rows = [line.split(",") for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        values = np.array(rows if _is_numeric(rows[0]) else rows[1:], dtype=np.float64)
    if (values == np.round(values)).all() and np.abs(values).max(initial=0) <= _MOST:
        values = values.astype(np.int64)
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values


def _is_numeric(row: list[str]) -> bool:
    try:
        np.array(row, dtype=np.float64)
    except ValueError:
        return False
    return True


def _checked(actions: Array, path: Path) -> Array:
    if actions.dtype.kind not in "iubf" or actions.ndim not in (1, 2):
        raise Refused(
            f"the actions in {path.name} are {actions.dtype} {actions.shape}, expected numbers (t,) or (t, a)"
        )
    with np.errstate(over="ignore"):
        numbers = actions.astype(np.float32 if actions.dtype.kind == "f" else np.int64)
    if not np.isfinite(numbers).all() or (
        numbers.dtype == np.int64 and np.abs(actions.astype(np.float64)).max(initial=0) > _MOST
    ):
        raise Refused(f"the actions in {path.name} are not finite (NaN or infinity), or too large")
    return numbers


INDEX_VERSION = 2
_ARRAYS = ("keyframes", "times", "actions")
"""Fields of `Episode` that are kept in one array, one after the other; the others are kept as JSON."""


def open_index(root: Path, file: Path, *, workers: int = 1, progress: bool = True) -> list[Episode]:
    """All episodes below `root`, sorted by stem, from the index `file`, in which only new or changed files are inspected again.

    A file that cannot be used stays there with its reason. `UserError` if `root` holds no clips or `file` cannot be written.
    """
    groups = find_groups(root)
    require(bool(groups), f"{root} holds no clips (videos, npz or npy); place some there, or give dataset.path")
    known = _load(file)
    if not _is_current(known, groups):
        with locked(file):
            known = _load(file)  # another process may have updated it
            if not _is_current(known, groups):
                known = _inspect_new(root, groups, known, workers=workers, progress=progress)
                save_index(file, list(known.values()))
    return [known[group.stem] for group in groups]


def save_index(file: Path, episodes: Sequence[Episode]) -> None:
    """Write the index. `UserError` if that fails."""
    rows: list[dict[str, Any]] = []
    numbers: list[NDArray[np.float64]] = [np.zeros(0)]  # float64 holds int64 below 2^53 and float32 exactly
    for episode in episodes:
        row = {field.name: getattr(episode, field.name) for field in fields(Episode)}
        for name in _ARRAYS:
            values = row[name]
            if values is not None:
                numbers.append(values.reshape(-1).astype(np.float64))
                row[name] = [values.dtype.str, *values.shape]
        rows.append(row)
    text = json.dumps({"version": INDEX_VERSION, "episodes": rows}).encode()
    stream = BytesIO()
    np.savez_compressed(stream, text=np.frombuffer(text, np.uint8), numbers=np.concatenate(numbers))
    with explaining_os_errors(f"cannot write the index {file}", "make room or choose another dataset.save_dir"):
        write_atomic(file, stream.getvalue())


def _load(file: Path) -> dict[str, Episode]:
    """Episodes of an index file by stem; empty if it is missing, damaged or of another version."""
    try:
        arrays = read_npz(file, ("text", "numbers"))
        index, numbers = json.loads(arrays["text"].tobytes()), arrays["numbers"]
        if index["version"] != INDEX_VERSION:
            return {}
        begin, episodes = 0, {}
        for row in index["episodes"]:
            bytes_of([row[name] for name in ("frames", "height", "width", "offset")])
            check_limit("PIXELS", row["height"] * row["width"], "frames")
            for name in _ARRAYS:
                if row[name] is not None:
                    dtype, *shape = row[name]
                    end = begin + int(np.prod(shape))
                    row[name] = numbers[begin:end].astype(dtype).reshape(shape)
                    begin = end
            episodes[row["stem"]] = Episode(**row)
        return episodes
    except Exception:  # whatever a damaged index raises, it is made again
        return {}


def _is_current(known: dict[str, Episode], groups: Sequence[Group]) -> bool:
    return len(known) == len(groups) and all(_is_known(known, group) for group in groups)


def _is_known(known: dict[str, Episode], group: Group) -> bool:
    episode = known.get(group.stem)
    if episode is None or episode.stamp != group.stamp or episode.again:
        return False
    return episode.file in {f"{group.stem}{ending}" for ending in group.endings.values()}


def _inspect_new(
    root: Path, groups: Sequence[Group], known: dict[str, Episode], *, workers: int, progress: bool
) -> dict[str, Episode]:
    """Episodes of `groups` by stem; only those that are not `known` are inspected."""
    found = {group.stem: known[group.stem] for group in groups if _is_known(known, group)}
    missing = [group for group in groups if group.stem not in found]
    with (
        ThreadPoolExecutor(max(workers, 1)) as pool,
        Bar(f"inspecting {root}", total=len(groups), done=len(found), unit="clips", show=progress) as bar,
    ):
        for episode in pool.map(lambda group: inspect(root, group), missing):
            found[episode.stem] = episode
            bar.advance()
    return {group.stem: found[group.stem] for group in groups}

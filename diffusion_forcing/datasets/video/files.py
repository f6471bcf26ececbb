"""Which files of a folder are clips, which hold their actions, and to which split a clip belongs.

All files of one stem in one folder are one episode: `a.mp4` with `a.npz` beside it (TECO's Minecraft), `a.npz` alone
(TECO's DMLab), `a.gif` with `a.csv`, and so on. Hidden folders and unfinished files (`*.tmp`, `*.part`) are ignored.
The folders training (or train), validation (valid, val) and test are the splits, at the top or below one folder that
holds everything. Without such folders a hash of each clip's name decides, so that adding or removing clips never moves
another clip to a different split.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusion_forcing.errors import UserError, require

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

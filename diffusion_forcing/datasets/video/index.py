"""The episodes of a folder, kept in one file: only new or changed files are inspected again.

A file that cannot be used stays in the index with its reason, so it is inspected once and reported every time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.arrays import read_npz
from diffusion_forcing.datasets.video.episode import Episode, inspect
from diffusion_forcing.datasets.video.files import Group, find_groups
from diffusion_forcing.errors import explaining_os_errors, require
from diffusion_forcing.files import locked, write_atomic
from diffusion_forcing.limits import bytes_of, check_limit
from diffusion_forcing.progress import Bar

INDEX_VERSION = 2
_ARRAYS = ("keyframes", "times", "actions")
"""Fields of `Episode` that are kept in one array, one after the other; the others are kept as JSON."""


def open_index(root: Path, file: Path, *, workers: int = 1, progress: bool = True) -> list[Episode]:
    """All episodes below `root`, sorted by stem, from the index `file`, which is written or updated first if necessary.

    `UserError` if `root` holds no clips or `file` cannot be written.
    """
    groups = find_groups(root)
    require(
        bool(groups),
        f"{root} holds no clips (mp4, webm, mkv, avi, mov, gif, npz or npy); place some there, or give dataset.path",
    )
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

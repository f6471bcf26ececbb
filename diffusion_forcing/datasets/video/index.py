"""The list of all episodes of a folder, made by itself and kept in one file: only files that are new or changed are looked into again.

A file that cannot be used stays in the list with its reason, so that it is named every time and looked into once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.video.episodes import Episode, inspect
from diffusion_forcing.datasets.video.files import Group, find_groups
from diffusion_forcing.errors import UserError
from diffusion_forcing.files import locked, replacing
from diffusion_forcing.progress import progress_bar

INDEX_VERSION = 1
_PLAIN = ("stem", "stamp", "file", "kind", "frames", "height", "width", "offset", "action_problem", "problem", "again")
"""Fields of an episode that are kept as text; its arrays are kept end to end, with their lengths in the text."""


def open_index(root: Path, file: Path, *, workers: int = 1, progress: bool = True) -> list[Episode]:
    """All episodes below `root`, sorted by stem, from the index at `file`, which is made or brought up to date first.

    Raises `UserError` where `root` holds no clips or `file` cannot be written.
    """
    groups = find_groups(root)
    if not groups:
        raise UserError(
            f"{root} holds no clips (mp4, webm, mkv, avi, mov, gif, npz or npy); place some there, or give dataset.path"
        )
    known = _load(file)
    if not _is_current(known, groups):
        with locked(file):
            known = _load(file)
            if not _is_current(known, groups):
                known = _look(root, groups, known, workers=workers, progress=progress)
                save_index(file, list(known.values()))
    return [known[group.stem] for group in groups]


def _is_current(known: dict[str, Episode], groups: Sequence[Group]) -> bool:
    return len(known) == len(groups) and all(_is_known(known, group) for group in groups)


def _is_known(known: dict[str, Episode], group: Group) -> bool:
    episode = known.get(group.stem)
    return episode is not None and episode.stamp == group.stamp and not episode.again


def _look(
    root: Path, groups: Sequence[Group], known: dict[str, Episode], *, workers: int, progress: bool
) -> dict[str, Episode]:
    """Episodes of `groups`, those in `known` with the same stamp taken from there."""
    found = {group.stem: known[group.stem] for group in groups if _is_known(known, group)}
    missing = [group for group in groups if group.stem not in found]
    with (
        ThreadPoolExecutor(max(workers, 1)) as pool,
        progress_bar(f"looking into {root}", total=len(groups), done=len(found), unit="clips", show=progress) as bar,
    ):
        for episode in pool.map(lambda group: inspect(root, group), missing):
            found[episode.stem] = episode
            bar.advance(1)
    return {group.stem: found[group.stem] for group in groups}


def save_index(file: Path, episodes: Sequence[Episode]) -> None:
    """Write the index, whole or not at all. `UserError` where that fails."""
    facts: list[dict[str, Any]] = []
    ints: list[NDArray[Any]] = [np.zeros(0, np.int64)]
    floats: list[NDArray[Any]] = [np.zeros(0, np.float32)]
    for episode in episodes:
        row = {name: getattr(episode, name) for name in _PLAIN}
        for name in ("keyframes", "times", "actions"):
            values = getattr(episode, name)
            if values is not None:
                (floats if values.dtype.kind == "f" else ints).append(values.reshape(-1))
                row[name] = [values.dtype.kind, *values.shape]
        facts.append(row)
    text = json.dumps({"version": INDEX_VERSION, "episodes": facts}).encode()
    try:
        with replacing(file) as temporary, open(temporary, "wb") as stream:
            np.savez_compressed(
                stream, facts=np.frombuffer(text, np.uint8), ints=np.concatenate(ints), floats=np.concatenate(floats)
            )
    except OSError as error:
        raise UserError(
            f"cannot write the index {file}: {error.strerror or error}; make room or choose another dataset.save_dir"
        ) from error


def _load(file: Path) -> dict[str, Episode]:
    """The episodes in an index file; none where it is not there, damaged or of another version."""
    try:
        with np.load(file) as arrays:
            facts = json.loads(arrays["facts"].tobytes())
            flat = {"i": arrays["ints"], "f": arrays["floats"]}
        if facts["version"] != INDEX_VERSION:
            return {}
        begins = {"i": 0, "f": 0}
        episodes = {}
        for row in facts["episodes"]:
            for name in ("keyframes", "times", "actions"):
                if name in row:
                    kind, *shape = row[name]
                    begin, count = begins[kind], int(np.prod(shape))
                    row[name] = flat[kind][begin : begin + count].reshape(shape)
                    begins[kind] = begin + count
            episodes[row["stem"]] = Episode(**row)
        return episodes
    except Exception:  # whatever a damaged index raises, it is made again
        return {}

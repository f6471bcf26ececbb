"""Read and write D4RL's HDF5 schema for maze2d: one run of N steps.

| key | shape | |
|---|---|---|
| observations | (N, 4) float32 | x, y, vx, vy in metres and m/s, in D4RL's frame |
| actions | (N, 2) float32 | pushes in [-1, 1] |
| rewards | (N,) float32 | 1 within 0.5 m of the maze's fixed goal |
| terminals, timeouts | (N,) bool | end of an episode; in maze2d data timeouts mark a new goal, and the ball rolls on |
| infos/goal, infos/qpos, infos/qvel | (N, 2) float32 | the controller's goal at that step; the state again |
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.mazes.base import REMEDY, checked_steps
from diffusion_forcing.datasets.windows import Steps
from diffusion_forcing.files import remove_leftovers, write_atomic
from diffusion_forcing.limits import Refused, bytes_of, check_expansion, reading, refusing

REQUIRED: dict[str, tuple[int, ...]] = {"observations": (4,), "actions": (2,), "rewards": (), "terminals": ()}
"""Arrays that a file must have to be read: the shape of one step."""


@contextmanager
def open_hdf5(path: Path, remedy: str) -> Iterator[h5py.File]:
    """`path`, of unknown origin, opened for reading; whatever HDF5 raises inside the block becomes a `UserError`."""
    with reading(path, remedy):
        with refusing("is not a readable HDF5 file, it is empty, cut off or damaged"):
            file = h5py.File(path, "r")
        with file:
            yield file


def member(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset | None:
    """What `group` holds under `name`; None where it holds nothing. `Refused` for a link, which may lead in a circle or
    to another file."""
    with refusing():
        link = group.get(name, getlink=True)
        if link is not None and not isinstance(link, h5py.HardLink):
            raise Refused(f"has a link in the place of {name}")
        return None if link is None else group[name]


def numbers(group: h5py.Group, name: str) -> NDArray[Any] | None:
    """The array `name`; None where there is none. `Refused` where it is not of numbers, lies outside the file, or is
    larger than its bytes can be worth."""
    found = member(group, name)
    if not isinstance(found, h5py.Dataset):
        return None
    with refusing(f"is damaged at {name}"):
        if found.external or found.is_virtual:
            raise Refused(f"keeps {name} in another file")
        if found.dtype.kind not in "fiub" or found.shape is None:
            raise Refused(f"has {name} of shape {found.shape} and type {found.dtype}, expected numbers")
        stored = min(found.id.get_storage_size(), group.file.id.get_filesize())
        check_expansion(bytes_of(found.shape, found.dtype.itemsize), stored, name)
        check_expansion(bytes_of(found.chunks or (), found.dtype.itemsize), stored, f"a chunk of {name}")
        return np.asarray(found[()])


def children(group: h5py.Group, pattern: str) -> list[str]:
    """The names in `group` that match `pattern` and a number, by that number."""
    found = [(name, re.fullmatch(rf"{pattern}([0-9]{{1,18}})", name)) for name in group]
    return [name for _, name in sorted((int(match[1]), name) for name, match in found if match)]


def write(path: Path, arrays: Mapping[str, NDArray[Any]], *, attributes: Mapping[str, Any]) -> None:
    """Write the arrays of the schema, compressed, and `attributes` of the file, whole or not at all. OSError where the
    disk refuses: HDF5 does not survive a full one, so the file is made in memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        for key, array in arrays.items():
            file.create_dataset(key, data=array, chunks=True, compression="gzip", compression_opts=1, shuffle=True)
        file.attrs.update(attributes)
        file.flush()
        image = file.id.get_file_image()
    write_atomic(path, image)


def read(path: Path) -> Steps:
    """observations, actions, rewards and `ends` (its terminals) of a file.

    `UserError` for a file that is empty, truncated, damaged, not HDF5, without the required arrays, or with other
    widths, lengths or values that are not finite.
    """
    with open_hdf5(path, f"delete it and {REMEDY}") as file:
        found = {key: numbers(file, key) for key in REQUIRED}
    steps = checked_steps(path, found, REQUIRED, whose="D4RL's maze2d data")
    return {**steps, "ends": steps.pop("terminals") > 0}

"""HDF5 files of unknown origin: read without following links or leaving the file, and only as far as their bytes reach;
written in memory and then by write(), since HDF5 does not survive a full disk.
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

from diffusion_forcing.files import replacing
from diffusion_forcing.limits import Refused, bytes_of, check_expansion, reading, refusing


@contextmanager
def open_hdf5(path: Path, remedy: str) -> Iterator[h5py.File]:
    """`path` opened for reading; whatever HDF5 raises inside the block becomes a `UserError`."""
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
    """Write `arrays`, compressed, and `attributes` of the file, whole or not at all. OSError where the disk refuses."""
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        for key, array in arrays.items():
            file.create_dataset(key, data=array, chunks=True, compression="gzip", compression_opts=1, shuffle=True)
        file.attrs.update(attributes)
        file.flush()
        image = file.id.get_file_image()
    with replacing(path) as temporary:
        temporary.write_bytes(image)

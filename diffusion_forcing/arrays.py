"""npz and npy files: written through write(), so that a full disk is an error and not a signal, and read only as far as
their bytes cover what their headers declare. No objects are ever unpickled.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from diffusion_forcing.files import replacing
from diffusion_forcing.limits import Refused, bytes_of, check_expansion, refusing

_HEADER_BYTES = 4096
"""More than the header of any array of numbers takes."""

Header = tuple[tuple[int, ...], bool, np.dtype[Any], int]
"""Shape, whether in Fortran order, type of the numbers, and bytes before the first."""


def read_header(file: IO[bytes], size: int) -> Header:
    """The header of the .npy of `size` bytes that begins at `file`. `Refused` unless all bytes of the array are there."""
    with refusing("is not a readable npy array, it is cut off or damaged"):
        start = io.BytesIO(file.read(_HEADER_BYTES))
        is_version_1 = npy.read_magic(start) == (1, 0)
        read = npy.read_array_header_1_0 if is_version_1 else npy.read_array_header_2_0
        shape, is_fortran, dtype = read(start)
    if size - start.tell() < bytes_of(shape, dtype.itemsize):
        raise Refused("is cut off: its array is shorter than its header says")
    return shape, is_fortran, dtype, start.tell()


def read_npy(path: Path) -> NDArray[Any]:
    """The array in a .npy file. OSError, or `Refused` where it is damaged or too large."""
    with open(path, "rb") as file:
        return _array(file, *(path.stat().st_size,) * 2)


def map_npy(path: Path) -> NDArray[Any]:
    """The same, memory-mapped for reading."""
    with open(path, "rb") as file:
        shape, is_fortran, dtype, offset = read_header(file, path.stat().st_size)
    _check_kind(dtype)
    with refusing():
        array = np.memmap(path, dtype, "r", offset, shape, "F" if is_fortran else "C") if bytes_of(shape) else None
    return np.zeros(shape, dtype) if array is None else array


def read_npz(path: Path, names: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
    """The arrays in a .npz file, or those of `names` that it has. OSError, or `Refused` where it is damaged or too
    large."""
    found: dict[str, NDArray[Any]] = {}
    size, whole = path.stat().st_size, 0
    with refusing("is not a readable npz file, it is cut off or damaged"), zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name in found or not member.filename.endswith(".npy") or (names is not None and name not in names):
                continue
            whole += member.file_size
            check_expansion(whole, size, f"the arrays up to '{name}'")
            with archive.open(member) as file:
                found[name] = _array(file, member.file_size, size)
    return found


def _array(file: IO[bytes], size: int, stored: int) -> NDArray[Any]:
    """The array in the .npy of `size` bytes at `file`, of `stored` bytes on disk."""
    shape, is_fortran, dtype, offset = read_header(file, size)
    _check_kind(dtype)
    expanded = bytes_of(shape, dtype.itemsize)
    check_expansion(expanded, stored)
    with refusing():
        array = np.empty(shape, dtype, order="F" if is_fortran else "C")
        file.seek(offset)
        fill(file, array.reshape(-1, order="A").view(np.uint8).data if expanded else memoryview(bytearray()))
        file.read(1)  # at its end zipfile compares the checksum
    return array


def _check_kind(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "biufcUSMm":
        raise Refused(f"holds an array of {dtype}; only numbers and text are read")


def fill(file: IO[bytes], view: memoryview) -> None:
    """Read bytes into all of `view`. `Refused` where the file ends before."""
    while view:
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise Refused("is cut off")
        view = view[count:]


def write_npy(path: Path, array: NDArray[Any]) -> None:
    """Write `array` of numbers as the file `path`. OSError where the disk refuses."""
    array = np.asarray(array, order="C")
    with open(path, "wb") as file:
        npy.write_array_header_1_0(file, npy.header_data_from_array_1_0(array))
        file.write(array.reshape(-1).view(np.uint8).data)


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]], *, compressed: bool = False) -> None:
    """Write a .npz, whole or not at all; its bytes depend on the arrays only. OSError where the disk refuses."""
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)  # type: ignore[arg-type]
    with replacing(path) as temporary:
        temporary.write_bytes(stream.getbuffer())

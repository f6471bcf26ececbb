"""Read pickles of numpy arrays, numbers, strings and plain containers, without running any code that the file names.

A pickle is a program: it may import and call any function. `pickle.Unpickler.find_class` is the one place where names
become functions, so a reader that replaces it by a short allow-list is safe (Python's documentation, "Restricting
Globals"). Here even numpy's own functions are replaced: dtypes are limited to numbers and text, and arrays to the bytes
in the file, so that neither objects nor large allocations are possible.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_BYTES = 64 << 20
"""Largest pickle that is read."""


class Refused(ValueError):
    """The pickle is damaged or too large, or holds something else than arrays and plain containers."""


def read_arrays(path: Path) -> Any:
    """`load_arrays` of a file. OSError if it cannot be read."""
    with open(path, "rb") as file:
        return load_arrays(file.read(MAX_BYTES + 1))


def load_arrays(data: bytes) -> Any:
    """Dicts, lists, tuples, sets, strings, numbers and arrays in a pickle of any protocol; otherwise `Refused`."""
    if len(data) > MAX_BYTES:
        raise Refused(f"larger than {MAX_BYTES >> 20} MB")
    try:
        _check_sizes(data)
        return _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
    except Refused:
        raise
    except (MemoryError, RecursionError, OverflowError) as error:
        raise Refused("asks for too much memory") from error
    except Exception as error:  # a damaged pickle may raise anything
        raise Refused(f"damaged, cut off or not a pickle ({error})") from error


def _check_sizes(data: bytes) -> None:
    """Refuse strings longer than the file, and memo entries for which the unpickler would allocate gigabytes."""
    for opcode, argument, position in pickletools.genops(data):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(data):
            raise Refused(f"asks for too much memory at byte {position}")


class _ArrayUnpickler(pickle.Unpickler):
    """The standard unpickler, limited to `_ALLOWED`."""

    def find_class(self, module: str, name: str) -> Any:
        """Our replacement of a numpy function."""
        if (module, name) not in _ALLOWED:
            raise Refused(f"asks for {module}.{name}; only arrays and plain containers are read")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Always refused."""
        raise Refused("refers to data outside the file")


class _Function:
    """A function the pickle may call. BUILD, a pickle's way to change an object, calls `__setstate__`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise Refused("changes a function")


class _Dtype:
    """A dtype of numbers or text. Of its pickled state only the byte order is used."""

    def __init__(self, code: Any) -> None:
        self.dtype = np.dtype(code)
        if self.dtype.kind not in "biufUS":
            raise Refused(f"holds an array of {self.dtype}; only numbers and text are read")

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray[Any, np.dtype[Any]]):
    """An array that gets its content from BUILD. numpy itself checks that shape and bytes agree."""

    def __setstate__(self, state: Any) -> None:
        version, shape, kind, is_fortran, content = state
        super().__setstate__((version, shape, _dtype_of(kind), is_fortran, content))


def _dtype_of(kind: Any) -> np.dtype[Any]:
    if not isinstance(kind, _Dtype):
        raise Refused("holds an array of an unknown type")
    return kind.dtype


def _empty_array(*_: Any) -> _Array:
    return np.empty(0, np.uint8).view(_Array)


def _from_buffer(content: Any, kind: Any, shape: Any = (), order: Any = "C") -> NDArray[Any]:
    return np.frombuffer(content, _dtype_of(kind)).reshape(shape, order=order)


def _scalar(kind: Any, content: Any) -> Any:
    return _from_buffer(content.encode("latin1") if isinstance(content, str) else content, kind)[()]


def _bytes(text: str = "", encoding: str = "latin1") -> bytes:
    """Protocols below 3 write bytes as an encoded string."""
    if encoding != "latin1":
        raise Refused(f"holds bytes encoded as {encoding!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "ndarray",  # only an argument of _reconstruct
    ("numpy", "dtype"): _Function(lambda code, *_: _Dtype(code)),
    ("_codecs", "encode"): _Function(_bytes),
    ("__builtin__", "bytes"): _Function(_bytes),
}
for _core in ("numpy.core", "numpy._core"):  # numpy 1 and 2
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _Function(_empty_array)
    _ALLOWED[f"{_core}.multiarray", "scalar"] = _Function(_scalar)
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _Function(_from_buffer)

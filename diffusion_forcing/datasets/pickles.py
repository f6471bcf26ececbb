"""Pickles that hold numpy arrays, numbers, strings and plain containers, read without running what they ask for.

A pickle is a program: its words may name any function and call it. Here every word is looked at first, and any that is not of plain data is refused.
The few functions by which numpy's arrays are pickled are replaced by our own, which check shapes and bytes; nothing is ever imported or called by a
name that the file gives. A file that is too large to be a trajectory is refused, too.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_BYTES = 64 << 20
MOST_VALUES = 10_000_000
MOST_DEEP = 8
PROTOCOLS = range(2, 6)
_WORDS = {
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("EMPTY_LIST", "APPEND", "APPENDS", "LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "EMPTY_SET", "ADDITEMS", "FROZENSET"),
    *("BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
}
"""Of pickle's language. Left out: what makes objects of classes, looks in registries, or points outside the file."""


class Refused(ValueError):
    """A pickle that holds something else, or is damaged."""


def read_array_pickle(path: Path) -> Any:
    """What the pickle `path` holds: dicts, lists (tuples, too), sets, strings, numbers, arrays. `Refused`, or OSError where it cannot be read."""
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise Refused(f"it has {size / 2**20:.0f} MB, at most {MOST_BYTES >> 20} are read")
    data = path.read_bytes()
    _check(data)
    try:
        found = _Reader(io.BytesIO(data)).load()
    except Refused:
        raise
    except (pickle.UnpicklingError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError) as error:
        raise Refused(f"it is damaged: {error}") from error
    except (MemoryError, RecursionError, OverflowError) as error:
        raise Refused("it asks for too much memory") from error
    return _Plain()(found)


def _check(data: bytes) -> None:
    """`Refused` where a word is not of plain data; nothing is executed."""
    end, protocol = 0, 0
    try:
        for word, value, position in pickletools.genops(data):
            if word.name not in _WORDS:
                raise Refused(f"it says {word.name} at byte {position}, which arrays and plain containers do not need")
            if word.name == "PROTO":
                protocol = int(value or 0)
            elif word.name in ("BINPUT", "LONG_BINPUT") and int(value or 0) > len(data):
                raise Refused(f"it asks for too much memory at byte {position}")
            end = (position or 0) + 1
    except Refused:
        raise
    except (ValueError, IndexError, KeyError, OverflowError, AssertionError) as error:
        raise Refused(f"it is no pickle, or cut off: {error}") from error
    if protocol not in PROTOCOLS:
        raise Refused(f"it is of protocol {protocol}; allowed: {PROTOCOLS.start} to {PROTOCOLS.stop - 1}")
    if end != len(data):
        raise Refused(f"{len(data) - end} bytes follow its end")


class _Maker:
    """Stands for a function that a pickle may call. It cannot be given attributes, which `BUILD` could do to a function of Python's."""

    __slots__ = ("_make",)
    _make: Callable[..., Any]

    def __init__(self, make: Callable[..., Any]) -> None:
        object.__setattr__(self, "_make", make)

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise Refused("it changes a function")

    def __setstate__(self, state: Any) -> None:
        raise Refused("it changes a function")


class _Type:
    """A numpy dtype of plain numbers or text, from its code and, by `BUILD`, its byte order."""

    __slots__ = ("dtype",)

    def __init__(self, code: Any, *_: Any) -> None:
        text = code.decode("ascii", "replace") if isinstance(code, bytes) else code
        kind, length = (text[:1], text[1:]) if isinstance(text, str) else ("", "")
        if kind not in tuple("biufUS") or not (length.isascii() and length.isdigit()) or len(length) > 4:
            raise Refused(f"it holds an array of {str(text)[:40]!r}; numbers and text are read")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        order = order.decode("ascii", "replace") if isinstance(order, bytes) else order
        if order not in ("<", ">", "|", "="):
            raise Refused("it holds an array of an unknown byte order")
        if order == ">":
            self.dtype = self.dtype.newbyteorder(">")


class _Array:
    """An array whose contents come by `BUILD`."""

    __slots__ = ("value",)

    def __init__(self, value: NDArray[Any] | None = None) -> None:
        self.value = value

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise Refused("it holds an array in an unknown form")
        _, shape, kind, by_columns, data = state
        self.value = _filled(data, kind, shape, "F" if by_columns else "C")


def _filled(data: Any, kind: Any, shape: Any, order: Any) -> NDArray[Any]:
    """The array of `shape` in `data`."""
    if not isinstance(kind, _Type) or not isinstance(shape, tuple) or order not in ("C", "F"):
        raise Refused("it holds an array in an unknown form")
    if len(shape) > 8 or not all(type(side) is int and side >= 0 for side in shape):
        raise Refused("it holds an array of an impossible shape")
    if isinstance(data, str):  # a pickle of Python 2
        data = data.encode("latin1")
    count = math.prod(shape)
    if not isinstance(data, bytes | bytearray) or len(data) != count * kind.dtype.itemsize:
        raise Refused(f"it holds an array of shape {shape} whose bytes are fewer or more")
    return np.frombuffer(bytes(data), kind.dtype, count).reshape(shape, order=order)


def _begun(what: Any, *_: Any) -> _Array:
    if what is not _NDARRAY:
        raise Refused("it holds another class than numpy's array")
    return _Array()


def _scalar(kind: Any, data: Any = None) -> _Array:
    return _Array(_filled(data, kind, (), "C"))


def _buffered(data: Any, kind: Any, shape: Any, order: Any) -> _Array:
    return _Array(_filled(data, kind, shape, order))


def _encoded(text: Any, how: Any = "latin1") -> bytes:
    if not isinstance(text, str) or how != "latin1":
        raise Refused("it holds bytes in an unknown form")
    return text.encode("latin1")


def _no_bytes(*arguments: Any) -> bytes:
    if arguments:
        raise Refused("it holds bytes in an unknown form")
    return b""


def _never(*_: Any) -> Any:
    raise Refused("it makes an array in an unknown form")


_NDARRAY = _Maker(_never)
_CORES = ("numpy.core", "numpy._core")
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Maker(_Type),
    ("_codecs", "encode"): _Maker(_encoded),  # bytes in protocol 2, and without any:
    ("__builtin__", "bytes"): _Maker(_no_bytes),
    **{(f"{core}.multiarray", "_reconstruct"): _Maker(_begun) for core in _CORES},
    **{(f"{core}.multiarray", "scalar"): _Maker(_scalar) for core in _CORES},
    **{(f"{core}.numeric", "_frombuffer"): _Maker(_buffered) for core in _CORES},
}


class _Reader(pickle.Unpickler):
    """Pickle's own reader, which gets our functions for the few names it may ask for."""

    def find_class(self, module: str, name: str) -> Any:
        """One of ours."""
        if (module, name) not in _ALLOWED:
            raise Refused(f"it asks for {module}.{name}; arrays and plain containers are read, nothing else")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Refused."""
        raise Refused("it points outside the file")


class _Plain:
    """Puts arrays in the place of what stands for them, in a dict and the lists in it. Lists may hold one another many times: it counts."""

    def __init__(self) -> None:
        self._left = MOST_VALUES

    def __call__(self, value: Any, depth: int = 0) -> Any:
        self._left -= 1
        if self._left < 0:
            raise Refused(f"it holds more than {MOST_VALUES:,} values")
        if isinstance(value, _Array):
            if value.value is None:
                raise Refused("it holds an array without contents")
            return value.value
        if isinstance(value, _Maker | _Type):
            raise Refused("it holds a function or a type")
        if not isinstance(value, dict | list | tuple):
            return value
        if depth == MOST_DEEP:
            raise Refused(f"its containers lie more than {MOST_DEEP} deep")
        if isinstance(value, dict):
            return {key: self(one, depth + 1) for key, one in value.items()}
        return [self(one, depth + 1) for one in value]

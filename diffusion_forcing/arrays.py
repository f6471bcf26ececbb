"""npz and npy files: written through write(), so that a full disk is an error and not a signal, and read only as far as
their bytes cover what their headers declare. Pickles of numpy arrays, numbers, strings and plain containers,
read without running any code that the file names.

A pickle is a program: it may import and call any function. `Unpickler.find_class` is the one place where names become
functions, so a reader that replaces it by a short allow-list is safe (Python's documentation, "Restricting Globals").
Here even numpy's own functions are replaced: dtypes are limited to numbers and text, and arrays to the bytes in the
file, so that neither objects nor large allocations are possible.

A hundred bytes suffice for a container that holds itself twice, forty times over: hashing it, as the key of a
dictionary or in a set, or copying it takes 2⁴⁰ steps. So only plain values are keys, and what a pickle holds is counted
with its repetitions. `check_pickle` applies these rules to a pickle that another library will read.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from diffusion_forcing.files import replacing
from diffusion_forcing.limits import Refused, bytes_of, check_expansion, check_limit, check_ratio, limit, refusing

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


# ------------------------------------------------------------------------------------------------------ pickles

_TENSOR_BYTES = 1 << 30
"""Bytes of tensors that any file may hold."""


def read_arrays(path: Path) -> Any:
    """`load_arrays` of a file. OSError if it cannot be read."""
    with open(path, "rb") as file:
        return load_arrays(file.read(limit("PICKLE_BYTES") + 1))


def load_arrays(data: bytes) -> Any:
    """Dicts, lists, tuples, sets, strings, numbers and arrays in a pickle of any protocol; otherwise `Refused`."""
    check_limit("PICKLE_BYTES", len(data), "a pickle")
    with refusing("is damaged, cut off or not a pickle"):
        found = _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
        count_items(found)
    return found


def check_pickle(file: IO[bytes]) -> Any:
    """Read the next pickle of `file` without making or calling anything that it names. `Refused` where it has a key
    that is no plain value, or holds too many."""
    with refusing("is damaged or cut off"):
        found = _Inspector(file, encoding="latin1").load()
        count_items(found)
    return found


def check_torch_file(path: Path) -> None:
    """`Refused` for a file of `torch.save` that takes more memory or time to read than its bytes are worth."""
    with open(path, "rb") as file, refusing("is damaged or cut off"):
        if file.read(2) != b"PK":  # before PyTorch 1.6: five pickles, then the tensors' numbers
            file.seek(0)
            pickles = io.BytesIO(file.read(limit("PICKLE_BYTES")))
            for _ in range(5):
                if pickles.tell() < len(pickles.getbuffer()):
                    check_pickle(pickles)
            return
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if zipfile._EndRecData(file)[6] != archive.start_dir:  # type: ignore[attr-defined]
                raise Refused("has bytes before its archive, which PyTorch and Python take for different members")
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise Refused("has compressed members, which PyTorch never writes")
            if sum(member.file_size for member in members) > path.stat().st_size:
                raise Refused("is cut off: its members are longer than the file")
            for member in members:
                if member.filename.lower().endswith(".pkl"):  # PyTorch's names have no case
                    check_limit("PICKLE_BYTES", member.file_size, "a pickle")
                    check_pickle(io.BytesIO(archive.read(member)))


def load_torch(path: Path, *, allowed: Iterable[Any] = (), mmap: bool = False) -> Any:
    """What `torch.save` wrote, its tensors on the CPU: tensors, plain values, and the kinds `allowed`; nothing else is
    made. `Refused`, RuntimeError or OSError for a damaged file, UnpicklingError for other kinds of objects."""
    import torch

    check_torch_file(path)
    try:
        with (
            warnings.catch_warnings(),
            torch.serialization.safe_globals([*allowed, set, complex]),
        ):  # plain values, which torch 2.5 does not take yet
            warnings.simplefilter("ignore")  # remarks on the pickle of a file that is refused, or fine
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        kind = re.search(r"GLOBAL ([\w.]+)", str(error))  # the rest is advice to load it anyway
        raise pickle.UnpicklingError(
            f"it names {kind[1]}" if kind else "it is not made of tensors and plain values"
        ) from None
    # Tensors may share their numbers, as an expanded one does: copies must not exceed the file many times.
    seen, left, whole = set(), [content], 0
    while left:
        one = left.pop()
        if isinstance(one, torch.Tensor):
            if one.layout != torch.strided or one.device.type != "cpu":
                raise Refused(f"holds a tensor of layout {one.layout} on {one.device}")
            whole += one.numel() * one.element_size()
        elif isinstance(one, Mapping | list | tuple | set | frozenset) and id(one) not in seen:
            seen.add(id(one))
            left += one.values() if isinstance(one, Mapping) else one
    if whole > _TENSOR_BYTES:
        check_ratio(whole, path.stat().st_size)
    return content


def count_items(value: Any) -> int:
    """The values in nested containers, repeated ones counted each time. `Refused` for more than the limit, or for a
    container inside itself."""
    counted: dict[int, int] = {}

    def count(one: Any) -> int:
        if not isinstance(one, dict | list | tuple | set | frozenset):
            return 1
        if id(one) not in counted:
            counted[id(one)] = limit("ITEMS")  # what a container inside itself finds
            inner = [*one.keys(), *one.values()] if isinstance(one, Mapping) else one
            counted[id(one)] = 1 + sum(map(count, inner))
            check_limit("ITEMS", counted[id(one)], "containers")
        return counted[id(one)]

    return count(value)


class _SafeUnpickler(pickle._Unpickler):  # type: ignore[name-defined, misc]
    """The standard unpickler in Python, whose instructions can be checked: keys are plain values."""

    flat_keys = False
    """Whether a tuple of plain values may be a key too."""
    dispatch = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined]

    def persistent_load(self, pid: Any) -> Any:
        """Refused unless a subclass knows better."""
        raise Refused("refers to data outside the file")


def _checking(instruction: Callable[[Any], None], first: int, step: int) -> Callable[[Any], None]:
    """`instruction`, once every `step`-th value of the stack from `first` on can be a key."""

    def load(self: Any) -> None:
        _check_keys(self.stack[first::step], flat=self.flat_keys)
        instruction(self)

    return load


for _code, _first, _step in (
    (pickle.SETITEM, -2, 2),
    (pickle.SETITEMS, 0, 2),
    (pickle.DICT, 0, 2),
    (pickle.ADDITEMS, 0, 1),
    (pickle.FROZENSET, 0, 1),
):
    _SafeUnpickler.dispatch[_code[0]] = _checking(_SafeUnpickler.dispatch[_code[0]], _first, _step)


class _Inert:
    """Stands for anything that a pickle names or makes: takes every argument and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> _Inert:
        return self

    __setitem__ = append = extend = add = __setstate__ = __call__


def _check_keys(keys: Iterable[Any], *, flat: bool = True) -> None:
    for key in keys:
        if flat and isinstance(key, tuple):
            _check_keys(key, flat=False)
        elif not isinstance(key, str | bytes | int | float | None | np.generic | _Inert | type):
            raise Refused(f"has a {type(key).__name__} as a key or in a set; only plain values are read")


class _Set(_Inert):
    def __init__(self, items: Iterable[Any] = (), *_: Any) -> None:
        _check_keys(items)


class _Dict(_Inert):
    def __init__(self, pairs: Iterable[Any] = (), *_: Any) -> None:
        _check_keys(
            [] if isinstance(pairs, _Inert) else pairs if isinstance(pairs, dict) else (pair[0] for pair in pairs)
        )


_HASHING = {"set": _Set, "frozenset": _Set, "Counter": _Set, "dict": _Dict, "OrderedDict": _Dict}
"""What hashes the items of its argument."""


class _Inspector(_SafeUnpickler):
    """Runs a pickle with `_Inert` in the place of all that it names."""

    flat_keys = True

    def find_class(self, module: str, name: str) -> Any:
        """`_Inert`, or one that checks what it is given."""
        return _HASHING.get(name, _Inert)

    def persistent_load(self, pid: Any) -> Any:
        """Stands for the numbers of a tensor; PyTorch hashes their name."""
        _check_keys(part for part in (pid if isinstance(pid, tuple) else [pid])[:5])
        return _Inert()


class _ArrayUnpickler(_SafeUnpickler):
    """The unpickler limited to `_ALLOWED`."""

    def find_class(self, module: str, name: str) -> Any:
        """Our replacement of a numpy function."""
        if (module, name) not in _ALLOWED:
            raise Refused(f"asks for {module}.{name}; only arrays and plain containers are read")
        return _ALLOWED[module, name]


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
        if not isinstance(code, str):
            raise Refused("holds an array of an unknown type")
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

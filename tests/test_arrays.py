"""Pickles of arrays are read without executing them: arrays of every protocol and age come, everything else is refused."""

from __future__ import annotations

import io
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion_forcing.arrays import check_pickle, load_arrays, read_arrays
from diffusion_forcing.limits import Refused


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_numbers_and_containers_of_every_protocol_come_as_they_were(protocol: int) -> None:
    thing = {
        "list": [
            np.arange(3.0),
            np.arange(6, dtype=">i2").reshape(2, 3),
            np.asfortranarray(np.eye(3, dtype=np.float32)),
        ],
        "numbers": [1, 2.5, True, None, 2**40, np.float32(1.5), np.bool_(True), np.int64(-3)],
        "words": ["a", b"b", np.array(["x", "yz"]), np.zeros((0, 3))],
        "tuple": (1, [np.arange(2)]),
    }
    found = load_arrays(pickle.dumps(thing, protocol))
    for name in ("list", "numbers", "words"):
        for read, given in zip(found[name], thing[name], strict=True):
            assert np.array_equal(read, given)
            assert type(read) is type(given) or isinstance(read, np.ndarray)
    assert found["tuple"][0] == 1 and np.array_equal(found["tuple"][1][0], [0, 1])


def test_an_array_that_numpy_1_pickled_comes_too() -> None:
    data = pickle.dumps([np.arange(4.0), np.float64(2)], 4).replace(b"numpy._core", b"numpy.core")
    data = b"\x80\x04\x95" + struct.pack("<Q", len(data) - 11) + data[11:]  # the frame is shorter now
    for old, new in ((b"\x8c\x16numpy.core", b"\x8c\x15numpy.core"),):
        data = data.replace(old, new)
    found = load_arrays(data)
    assert np.array_equal(found[0], np.arange(4.0)) and found[1] == 2


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


class Plain:
    pass


def evil_words(marker: Path) -> dict[str, bytes]:
    """Programs, each ending in `.`, that do or begin what is not data."""
    touch = b"(X" + struct.pack("<I", len(f"touch {marker}")) + f"touch {marker}".encode()
    global_ = b"c%s\n%s\n"
    rebuild = global_ % (b"numpy._core.multiarray", b"_reconstruct")
    array, dtype = global_ % (b"numpy", b"ndarray"), global_ % (b"numpy", b"dtype")
    return {
        "system": global_ % (b"os", b"system") + touch + b"tR",
        "builtins": global_ % (b"builtins", b"eval") + touch + b"tR",
        "getattr": global_ % (b"builtins", b"getattr") + b"(" + array + b"X\x04\x00\x00\x00dumptR",
        "dotted": b"\x8c\x05numpy\x8c\x10ndarray.__init__\x93",
        "numpy load": global_ % (b"numpy", b"load") + touch + b"tR",
        "scalar of objects": global_ % (b"numpy._core.multiarray", b"scalar")
        + b"("
        + dtype
        + b"(X\x01\x00\x00\x00OtRNtR",
        "instance": b"(ios\nsystem\n",
        "object": b"(" + global_ % (b"os", b"system") + b"o",
        "newobj": array + b")\x81",
        "persistent": b"Pelsewhere\n",
        "extension": b"\x82\x01",
        "huge array": array + b"(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ftR",
        "changed function": rebuild + b"}X\x04\x00\x00\x00nameK\x01sb",
        "changed slots": rebuild + b"N}X\x05\x00\x00\x00_makeK\x01s\x86b",
        "other bytes": b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00hex_atR",
        "fields": dtype + b"(X\x02\x00\x00\x00V8tR",
    }


WORDS = tuple(evil_words(Path()))


@pytest.mark.parametrize("name", WORDS)
def test_a_pickle_of_anything_else_is_refused_and_does_nothing(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "marker"
    with pytest.raises(Refused) as refusal:
        load_arrays(b"\x80\x03" + evil_words(marker)[name] + b".")
    assert "\n" not in str(refusal.value)
    assert not marker.exists()


def test_what_pythons_own_pickler_makes_of_objects_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for thing in (Evil(marker), Plain(), print, np.dtype([("a", "f4")]), np.array([Plain()]), np.void(b"abc")):
        for protocol in (2, 3, 4, 5):
            with pytest.raises(Refused):
                load_arrays(pickle.dumps({"a": [thing]}, protocol))
    assert not marker.exists()


def test_damaged_and_too_large_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pickle.dumps({"a": np.arange(50.0)})
    for data in (whole[:40], b"", b"hello world"):
        with pytest.raises(Refused):
            load_arrays(data)
    (tmp_path / "a.pkl").write_bytes(whole)
    assert np.array_equal(read_arrays(tmp_path / "a.pkl")["a"], np.arange(50.0))
    monkeypatch.setenv("DIFFUSION_FORCING_MAX_PICKLE_BYTES", "100")
    with pytest.raises(Refused, match="above the limit"):
        read_arrays(tmp_path / "a.pkl")


def test_an_array_whose_bytes_do_not_fit_its_shape_is_refused() -> None:
    data = pickle.dumps(np.arange(4, dtype=np.uint8), 3)
    assert data.count(b"K\x04\x85") == 1
    with pytest.raises(Refused):
        load_arrays(data.replace(b"K\x04\x85", b"K\x05\x85"))


def test_an_array_of_another_byte_order_is_read() -> None:
    assert load_arrays(pickle.dumps(np.arange(3, dtype=">i4"), 2)).tolist() == [0, 1, 2]


def nested(levels: int) -> bytes:
    """A tuple that holds twice one that holds twice … the empty tuple: 2^levels of them in 3 · levels bytes."""
    return b")\x94" + b"".join(b"h" + bytes([level]) + b"\x86\x94" for level in range(levels))


@pytest.mark.parametrize(
    "words",
    [
        b"}" + nested(45) + b"K\x01s",
        b"}(" + nested(45) + b"K\x01u",
        b"(" + nested(45) + b"K\x01d",
        b"\x8f(" + nested(45) + b"\x90",
        b"(" + nested(45) + b"\x91",
        b"(" + nested(45) + b"l",
        b"]" + b"\x94" + b"".join(b"](h" + bytes([level]) + b"h" + bytes([level]) + b"e\x94" for level in range(45)),
        b"]\x94h\x00a",
    ],
    ids=["setitem", "setitems", "dict", "additems", "frozenset", "value", "lists", "itself"],
)
def test_what_is_small_in_the_file_and_endless_to_hash_or_copy_is_refused(words: bytes) -> None:
    with pytest.raises(Refused):
        load_arrays(b"\x80\x04" + words + b".")


@pytest.mark.parametrize(
    "words",
    [
        b"}" + nested(45) + b"K\x01s",
        b"ccollections\nOrderedDict\n]](" + nested(45) + b"K\x01ea\x85R",
        b"cbuiltins\nset\n](" + nested(45) + b"e\x85R",
        b"(X\x07\x00\x00\x00storageN" + nested(45) + b"NK\x01tQ",
    ],
    ids=["key", "ordered", "set", "storage"],
)
def test_a_pickle_for_another_library_is_inspected_without_hashing_it(words: bytes) -> None:
    with pytest.raises(Refused):
        check_pickle(io.BytesIO(b"\x80\x04" + words + b"."))


def test_a_memo_of_any_number_takes_no_memory() -> None:
    assert load_arrays(b"\x80\x03Nr\xff\xff\xff\x7f.") is None

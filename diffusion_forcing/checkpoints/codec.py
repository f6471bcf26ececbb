"""Nested Python values as JSON text beside a table of tensors, and back, without pickle.

What a trainer wants to keep (optimiser state with integer keys, tuples, None, infinities, bytes, random states) is
split in two: a tree that JSON can hold, and a flat `name → tensor` table that safetensors can hold. Plain values stay
plain; everything JSON cannot say is a one-key-marked object `{"$": <kind>, …}`. Decoding builds only the kinds listed
here, so a file never chooses code to run.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

MARK = "$"
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def encode(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """`(tree, tensors)`: a JSON-able tree and the tensors it names, contiguous, on the CPU, none sharing memory with
    another.

    A tensor's name is its path in the tree (`optimizer_states/0/state/3/exp_avg`). The same tensor met twice is stored
    once. TypeError with the path for a kind of value that cannot be kept.
    """
    encoder = _Encoder()
    return encoder.encode(value, ""), encoder.tensors


def decode(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value `encode` was given. ValueError or KeyError for a tree that `encode` did not write."""
    if isinstance(tree, list):
        return [decode(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if MARK not in tree:
        return {key: decode(item, tensors) for key, item in tree.items()}
    try:
        build = _BUILDERS[tree[MARK]]
    except (KeyError, TypeError):
        raise ValueError(f"unknown kind of value {tree[MARK]!r}") from None
    return build(tree["v"], tensors)


class _Encoder:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[tuple[object, ...], str] = {}  # where a tensor lies in memory → its name
        self._kept_alive: list[Tensor] = []  # so that no address is used twice while encoding
        self._storages: set[int] = set()

    def encode(self, value: Any, path: str) -> Any:
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {MARK: "float", "v": repr(value)}
        if isinstance(value, Tensor):
            return {MARK: "tensor", "v": self._keep(value, path)}
        if isinstance(value, Mapping):
            return self._mapping(value, path)
        if isinstance(value, torch.Size):
            return {MARK: "size", "v": list(value)}
        if isinstance(value, (list, tuple, set, frozenset)):
            ordered = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
            items = [self.encode(item, f"{path}/{i}") for i, item in enumerate(ordered)]
            if isinstance(value, list):
                return items
            return {MARK: "tuple" if isinstance(value, tuple) else "set", "v": items}
        return self._leaf(value, path)

    def _mapping(self, value: Mapping[Any, Any], path: str) -> Any:
        if all(type(key) is str for key in value) and MARK not in value:
            return {key: self.encode(item, f"{path}/{key}") for key, item in value.items()}
        pairs = [[self.encode(key, f"{path}/key"), self.encode(item, f"{path}/{key}")] for key, item in value.items()]
        return {MARK: "dict", "v": pairs}

    def _leaf(self, value: Any, path: str) -> Any:
        match value:
            case np.ndarray() if value.dtype.hasobject:
                pass
            case np.ndarray():
                raw = torch.frombuffer(bytearray(value.tobytes()), dtype=torch.uint8) if value.size else torch.empty(0)
                facts = {"dtype": value.dtype.str, "shape": list(value.shape), "bytes": self._keep(raw, path)}
                return {MARK: "ndarray", "v": facts}
            case np.generic() if not value.dtype.hasobject:
                return {MARK: "scalar", "v": {"dtype": value.dtype.str, "bytes": _text(value.tobytes())}}
            case bytes() | bytearray():
                return {MARK: "bytes", "v": _text(bytes(value))}
            case complex():
                return {MARK: "complex", "v": [repr(value.real), repr(value.imag)]}
            case torch.dtype():
                return {MARK: "dtype", "v": str(value).removeprefix("torch.")}
            case torch.device():
                return {MARK: "device", "v": str(value)}
            case timedelta():
                return {MARK: "timedelta", "v": [value.days, value.seconds, value.microseconds]}
            case PurePath():
                return str(value)
            case bool() | int() | float() | str():  # subclasses, such as an Enum with text values or numpy's float64
                base = next(kind for kind in (bool, int, float, str) if isinstance(value, kind))
                return self.encode(base(value.value if hasattr(value, "value") else value), path)
        raise TypeError(f"cannot keep {path.lstrip('/')} in a checkpoint: it is a {type(value).__qualname__}")

    def _keep(self, tensor: Tensor, path: str) -> str:
        original = tensor.detach()
        place = (original.data_ptr(), original.device, original.dtype, original.shape, original.stride())
        if original.numel() and place in self._names:
            return self._names[place]
        kept = original.cpu().contiguous()
        storage = kept.untyped_storage().data_ptr()
        if storage in self._storages or kept.untyped_storage().nbytes() != kept.numel() * kept.element_size():
            kept = kept.clone()  # a view of something larger, or a neighbour in the same memory
        name = path.lstrip("/") or "value"
        while name in self.tensors:
            name += "'"
        self._names[place] = name
        self._storages.add(kept.untyped_storage().data_ptr())
        self._kept_alive.append(original)
        self.tensors[name] = kept
        return name


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _ndarray(facts: dict[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    raw = tensors[facts["bytes"]].numpy().tobytes()
    return np.frombuffer(raw, dtype=np.dtype(facts["dtype"])).reshape(facts["shape"]).copy()


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"unknown dtype {name!r}")
    return found


_BUILDERS: dict[str, Callable[[Any, Mapping[str, Tensor]], Any]] = {
    "float": lambda v, _: _NOT_FINITE[v],
    "tensor": lambda v, tensors: tensors[v],
    "tuple": lambda v, tensors: tuple(decode(item, tensors) for item in v),
    "set": lambda v, tensors: {decode(item, tensors) for item in v},
    "size": lambda v, _: torch.Size(v),
    "dict": lambda v, tensors: {decode(key, tensors): decode(item, tensors) for key, item in v},
    "ndarray": _ndarray,
    "scalar": lambda v, _: np.frombuffer(base64.b64decode(v["bytes"]), dtype=np.dtype(v["dtype"]))[0],
    "bytes": lambda v, _: base64.b64decode(v),
    "complex": lambda v, _: complex(float(v[0]), float(v[1])),
    "dtype": lambda v, _: _dtype(v),
    "device": lambda v, _: torch.device(v),
    "timedelta": lambda v, _: timedelta(days=v[0], seconds=v[1], microseconds=v[2]),
}

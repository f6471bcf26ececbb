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

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.windows import RunningStatistics
from diffusion_forcing.errors import UserError
from diffusion_forcing.files import remove_leftovers, replacing

WIDTHS: dict[str, int | None] = {
    "observations": 4,
    "actions": 2,
    "rewards": None,
    "terminals": None,
    "timeouts": None,
    "infos/goal": 2,
    "infos/qpos": 2,
    "infos/qvel": 2,
}
"""Columns of each array of the schema; None for one value at each step."""
REQUIRED = ("observations", "actions", "rewards", "terminals")
"""Arrays that a file must have to be read."""
_FLAGS = ("terminals", "timeouts")
_PART_STEPS = 250_000
"""Steps read at once: some 10 MB."""
_REMEDY = "delete it and get it again, or use dataset.source=generate"

Steps = dict[str, NDArray[np.generic]]


def write(
    path: Path, parts: Iterable[Mapping[str, NDArray[Any]]], *, num_steps: int, attributes: Mapping[str, Any]
) -> dict[str, list[float]]:
    """Write the first `num_steps` steps of `parts` (arrays of the schema, one after the other) to `path`, whole or not
    at all.

    Returns their statistics, which are stored in the file's attributes beside `attributes`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    running, begin = RunningStatistics(), 0
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        for key, width in WIDTHS.items():
            dtype = np.bool_ if key in _FLAGS else np.float32
            packing: dict[str, Any] = {"chunks": True, "compression": "gzip", "compression_opts": 1, "shuffle": True}
            file.create_dataset(key, shape=_shape(num_steps, width), dtype=dtype, **packing)
        for part in parts:
            count = min(len(part["rewards"]), num_steps - begin)
            for key in WIDTHS:
                file[key][begin : begin + count] = part[key][:count]
            running.add(part["observations"][:count], part["actions"][:count])
            begin += count
        assert begin == num_steps, "parts hold fewer steps than asked for"
        statistics = running.statistics()
        for key, value in {**attributes, **statistics}.items():
            file.attrs[key] = value
    return statistics


def read(path: Path) -> Iterator[Steps]:
    """The steps of a file in parts of at most 250,000: observations, actions, rewards and `ends` (its terminals).

    Raises `UserError` before the first part for a file that is missing, empty, truncated, not HDF5, without the
    required arrays, or with other widths or lengths; and while reading for damaged chunks and values that are not
    finite.
    """
    with open_hdf5(path) as file:
        length = _check_schema(file, path)
        for begin in range(0, length, _PART_STEPS):
            rows = slice(begin, min(begin + _PART_STEPS, length))
            part = {key: _read_rows(file[key], rows, path) for key in REQUIRED}
            for key in ("observations", "actions", "rewards"):
                finite = np.isfinite(part[key]).reshape(len(part[key]), -1).all(axis=1)
                if not finite.all():
                    step = begin + int(np.argmin(finite))
                    raise UserError(f"{path}: {key} of step {step} is not finite (NaN or infinity); {_REMEDY}")
            part["ends"] = part.pop("terminals") > 0
            yield part


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """`path` opened for reading; `UserError` instead of HDF5's errors."""
    if not path.is_file():
        raise UserError(f"data file {path} does not exist; place it there, or use dataset.source=generate")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty (0 bytes); {_REMEDY}")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path} is not a readable HDF5 file (truncated or damaged?); {_REMEDY}") from error
    with file:
        yield file


def _check_schema(file: h5py.File, path: Path) -> int:
    """Number of steps of an open file, if it has D4RL's schema."""
    missing = [key for key in REQUIRED if not isinstance(file.get(key), h5py.Dataset)]
    if missing:
        found = ", ".join(file) or "nothing"
        raise UserError(
            f"{path} has no {', '.join(missing)}; D4RL's maze2d files have {', '.join(REQUIRED)}, this one has {found}"
        )
    length = int(file["rewards"].shape[0]) if file["rewards"].ndim else 0
    if length == 0:
        raise UserError(f"{path} holds no steps; {_REMEDY}")
    for key in REQUIRED:
        shape, expected, dtype = file[key].shape, _shape(length, WIDTHS[key]), file[key].dtype
        if shape != expected or dtype.kind not in "fiub":
            raise UserError(
                f"{path}: {key} has shape {shape} and type {dtype}, D4RL's maze2d data has {expected} numbers"
            )
    return length


def _shape(length: int, width: int | None) -> tuple[int, ...]:
    return (length,) if width is None else (length, width)


def _read_rows(data: h5py.Dataset, rows: slice, path: Path) -> NDArray[Any]:
    try:
        return np.asarray(data[rows], dtype=np.float32)
    except OSError as error:
        raise UserError(
            f"{path}: {data.name} cannot be read from step {rows.start} on, the file is damaged; {_REMEDY}"
        ) from error

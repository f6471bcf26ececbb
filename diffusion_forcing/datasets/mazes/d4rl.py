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

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.windows import Steps
from diffusion_forcing.errors import UserError
from diffusion_forcing.files import remove_leftovers, replacing

REQUIRED: dict[str, tuple[int, ...]] = {"observations": (4,), "actions": (2,), "rewards": (), "terminals": ()}
"""Arrays that a file must have to be read: the shape of one step."""
_REMEDY = "delete it and get it again, or use dataset.source=generate"


def write(path: Path, arrays: Mapping[str, NDArray[Any]], *, attributes: Mapping[str, Any]) -> None:
    """Write the arrays of the schema to `path`, whole or not at all, with `attributes` of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        for key, array in arrays.items():
            file.create_dataset(key, data=array, chunks=True, compression="gzip", compression_opts=1, shuffle=True)
        file.attrs.update(attributes)


def read(path: Path) -> Steps:
    """observations, actions, rewards and `ends` (its terminals) of a file.

    `UserError` for a file that is empty, truncated, damaged, not HDF5, without the required arrays, or with other
    widths, lengths or values that are not finite.
    """
    with open_hdf5(path) as file:
        _check_schema(file, path)
        try:
            steps = {key: np.asarray(file[key][:], dtype=np.float32) for key in REQUIRED}
        except OSError as error:
            raise UserError(f"{path} cannot be read, it is damaged ({error}); {_REMEDY}") from error
    for key, values in steps.items():
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            raise UserError(f"{path}: {key} of step {np.argmin(finite)} is not finite (NaN or infinity); {_REMEDY}")
    return {**steps, "ends": steps.pop("terminals") > 0}


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """`path` opened for reading; `UserError` instead of HDF5's errors."""
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path} is not a readable HDF5 file (empty, truncated or damaged?); {_REMEDY}") from error
    with file:
        yield file


def _check_schema(file: h5py.File, path: Path) -> None:
    missing = [key for key in REQUIRED if not isinstance(file.get(key), h5py.Dataset)]
    if missing:
        found = ", ".join(file) or "nothing"
        raise UserError(
            f"{path} has no {', '.join(missing)}; D4RL's maze2d files have {', '.join(REQUIRED)}, this one has {found}"
        )
    if not file["rewards"].size:
        raise UserError(f"{path} holds no steps; {_REMEDY}")
    for key, width in REQUIRED.items():
        shape, expected, dtype = file[key].shape, (file["rewards"].size, *width), file[key].dtype
        if shape != expected or dtype.kind not in "fiub":
            raise UserError(
                f"{path}: {key} has shape {shape} and type {dtype}, D4RL's maze2d data has {expected} numbers"
            )

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

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from diffusion_forcing.datasets import hdf5
from diffusion_forcing.datasets.mazes.base import REMEDY, checked_steps
from diffusion_forcing.datasets.windows import Steps
from diffusion_forcing.files import remove_leftovers

REQUIRED: dict[str, tuple[int, ...]] = {"observations": (4,), "actions": (2,), "rewards": (), "terminals": ()}
"""Arrays that a file must have to be read: the shape of one step."""


def write(path: Path, arrays: Mapping[str, NDArray[Any]], *, attributes: Mapping[str, Any]) -> None:
    """Write the arrays of the schema to `path`, whole or not at all, with `attributes` of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    hdf5.write(path, arrays, attributes=attributes)


def read(path: Path) -> Steps:
    """observations, actions, rewards and `ends` (its terminals) of a file.

    `UserError` for a file that is empty, truncated, damaged, not HDF5, without the required arrays, or with other
    widths, lengths or values that are not finite.
    """
    with hdf5.open_hdf5(path, f"delete it and {REMEDY}") as file:
        found = {key: hdf5.numbers(file, key) for key in REQUIRED}
    steps = checked_steps(path, found, REQUIRED, whose="D4RL's maze2d data")
    return {**steps, "ends": steps.pop("terminals") > 0}

"""Read and write D4RL's HDF5 schema for maze2d: one flat run of N steps.

| key | shape | |
|---|---|---|
| observations | (N, 4) float32 | x, y, vx, vy in metres and m/s, D4RL's frame |
| actions | (N, 2) float32 | pushes in [-1, 1] |
| rewards | (N,) float32 | 1 within 0.5 m of the maze's fixed goal |
| terminals, timeouts | (N,) bool | end of an episode; in maze2d data timeouts mark a new goal, the ball goes on |
| infos/goal, infos/qpos, infos/qvel | (N, 2) float32 | the walker's goal of the moment; the state again |

Reading checks everything a hand-placed file can have wrong and says it in one line. Writing is atomic.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.errors import UserError

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
"""Columns of each array of the schema; None for one value a step."""
REQUIRED = ("observations", "actions", "rewards", "terminals")
"""What a file must have to be read; a file without rewards or terminals is not D4RL's."""
_FLAGS = ("terminals", "timeouts")

Steps = dict[str, NDArray[np.generic]]


def write(
    path: Path, parts: Iterable[Mapping[str, NDArray[Any]]], *, num_steps: int, attributes: Mapping[str, Any]
) -> dict[str, list[float]]:
    """Write the first `num_steps` steps of `parts` (arrays of the schema, one after the other) to `path`, whole or not at all.

    Returns their statistics, which are also stored in the file's attributes beside `attributes`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    running = _Running()
    with h5py.File(temporary, "w") as file:
        for key, width in WIDTHS.items():
            shape = (num_steps,) if width is None else (num_steps, width)
            dtype = np.bool_ if key in _FLAGS else np.float32
            file.create_dataset(
                key, shape=shape, dtype=dtype, chunks=True, compression="gzip", compression_opts=1, shuffle=True
            )
        begin = 0
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
    os.replace(temporary, path)
    return statistics


def statistics(observations: NDArray[Any], actions: NDArray[Any]) -> dict[str, list[float]]:
    """Mean, standard deviation, least and largest value per column: observation_mean, …, action_max."""
    running = _Running()
    running.add(observations, actions)
    return running.statistics()


class _Running:
    """Sums for `statistics` over parts of a long run, in float64."""

    def __init__(self) -> None:
        self._parts: dict[str, list[tuple[int, NDArray[np.float64]]]] = {"observation": [], "action": []}

    def add(self, observations: NDArray[Any], actions: NDArray[Any]) -> None:
        for name, values in (("observation", observations), ("action", actions)):
            if len(values):
                exact = values.astype(np.float64)
                rows = np.stack([exact.mean(0), exact.var(0), exact.min(0), exact.max(0)])
                self._parts[name].append((len(values), rows))

    def statistics(self) -> dict[str, list[float]]:
        out: dict[str, list[float]] = {}
        for name, parts in self._parts.items():
            weights = np.array([count for count, _ in parts], dtype=np.float64)
            means, variances, least, largest = np.stack([rows for _, rows in parts], axis=1)
            weights = (weights / weights.sum())[:, None]
            mean = (weights * means).sum(0)
            out[f"{name}_mean"] = mean.tolist()
            out[f"{name}_std"] = np.sqrt((weights * (variances + (means - mean) ** 2)).sum(0)).tolist()
            out[f"{name}_min"] = least.min(0).tolist()
            out[f"{name}_max"] = largest.max(0).tolist()
        return out

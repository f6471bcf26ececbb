"""Small files of steps for the tests of reading them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np


def steps(count: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    """A slow walk along row 1 of any of the mazes: arrays of D4RL's schema, each step its own number in vx."""
    rng = np.random.default_rng(seed)
    observations = np.zeros((count, 4), dtype=np.float32)
    observations[:, 0] = 1.0
    observations[:, 1] = 1.0 + 0.2 * np.sin(np.arange(count) / 50)
    observations[:, 2] = np.arange(count)
    return {
        "observations": observations,
        "actions": rng.uniform(-1, 1, (count, 2)).astype(np.float32),
        "rewards": rng.integers(0, 2, count).astype(np.float32),
        "terminals": np.zeros(count, dtype=bool),
        "timeouts": np.zeros(count, dtype=bool),
    }


def write_file(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """`arrays` as an HDF5 file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            file[key] = values
    return path

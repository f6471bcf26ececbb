"""Demonstrations for tests, in every layout, and a slow simulator that films them in a process of its own."""

from __future__ import annotations

import json
import pickle
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.generate import generate
from diffusion_forcing.datasets.robot.source import save_demonstration
from diffusion_forcing.datasets.video.container import write_video

CAMERAS = ("front", "over")


def demonstration(actions: int = 12, size: int = 16, *, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Noise that the expert could have made: quaternions are of length 1."""
    random = np.random.default_rng(seed)
    films = {name: random.integers(0, 256, (actions + 1, size, size, 3), np.uint8) for name in CAMERAS}
    done = random.random((actions, 8), np.float32)
    done[:, 3:7] /= np.linalg.norm(done[:, 3:7], axis=1, keepdims=True)
    return {
        **films,
        "actions": done,
        "states": random.random((actions + 1, 8), np.float32),
        "blocked": random.random((actions + 1, 2)) < 0.2,
        "slots": np.array([0, 2]),
    }


def save_ours(root: Path, counts: Mapping[str, int], size: int = 16) -> Path:
    """A set in our layout."""
    for split, count in counts.items():
        (root / split).mkdir(parents=True)
        for index in range(count):
            save_demonstration(
                root / split / f"{index:06d}.npz",
                demonstration(4 + index, size, seed=100 * len(split) + index),
            )
    return root


def trajectory(steps: int, *, seed: int = 0) -> dict[str, list[Any]]:
    """The dict that a released trajectory file holds."""
    random = np.random.default_rng(seed)
    turns = random.random((2, steps, 4))
    turns /= np.linalg.norm(turns, axis=-1, keepdims=True)
    return {
        "ee_pos": list(random.random((steps, 3))),
        "ee_quat": list(turns[0]),
        "ee_pos_target": list(random.random((steps, 3))),
        "ee_quat_target": list(turns[1]),
        "grasp": [np.bool_(number > steps / 2) for number in range(steps)],
    }


def save_released(root: Path, count: int, *, steps: int = 6, kind: str = "pkl", frames: int | None = None) -> Path:
    """A set as released: a folder a demonstration, films of 24 x 32, a trajectory."""
    for number in range(count):
        folder = root / f"episode_{number:03d}"
        folder.mkdir(parents=True)
        random = np.random.default_rng(number)
        for camera in ("camera_0", "camera_1"):
            pictures = random.integers(0, 256, (frames or steps, 24, 32, 3), np.uint8)
            write_video(folder / f"{camera}.mp4", pictures, 10)
        save_trajectory(folder / f"traj.{kind}", trajectory(steps, seed=number))
    return root


def save_trajectory(path: Path, found: Mapping[str, Any]) -> None:
    """As the file's ending says."""
    match path.suffix:
        case ".pkl":
            path.write_bytes(pickle.dumps(found))
        case ".npz":
            np.savez(path, **{name: np.stack(values) for name, values in found.items()})
        case _:
            path.write_text(json.dumps({name: np.stack(values).tolist() for name, values in found.items()}))


@dataclass(frozen=True)
class Slow:
    """Films `demonstration`s."""

    seconds: float = 0.0
    frames: int = 9

    @property
    def recipe(self) -> Mapping[str, str]:
        return {"simulator": "slow"}

    def make(self, split: str, index: int) -> dict[str, NDArray[Any]]:
        time.sleep(self.seconds)
        return demonstration(8, seed=index)

    def close(self) -> None: ...


if __name__ == "__main__":  # a generation in a process of its own: makers.py FOLDER
    generate(Slow(0.05), Path(sys.argv[1]), {"training": 200, "validation": 2}, workers=2, save=save_demonstration)

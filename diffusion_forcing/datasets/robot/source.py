"""What every set of demonstrations answers, however it lies on disk: our files, a LeRobot set, the authors' released layout.

A *demonstration* is a dict of arrays: `actions` (N, 8) float32 [x, y, z, qx, qy, qz, qw, grasp], by a camera's name (N + 1, h, w, 3) uint8, before
every action and behind the last, and what else is known: `states` (N + 1, s), `blocked` (N + 1, cameras), `slots` (2,).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.errors import UserError

ACTION = ("x", "y", "z", "qx", "qy", "qz", "qw", "grasp")
SPLITS = ("training", "validation")
VALIDATION_SHARE = 0.05
"""Of a set that does not say what is for validation: its first demonstrations, as the released code takes them."""
_UNIT = 0.02
"""How far a quaternion's length may be from 1."""

Demonstration = dict[str, NDArray[Any]]


class RobotSource(Protocol):
    """A set of demonstrations, each with its split ("training", "validation", …) and its number there."""

    root: Path
    fps: float

    @property
    def counts(self) -> Mapping[str, int]:
        """Demonstrations of every split."""

    def cameras(self) -> list[str]:
        """Names of all cameras."""

    def arrays(self, split: str, index: int) -> Demonstration:
        """All of a demonstration but its pictures. `UserError` for what is missing or damaged."""

    def pictures(self, split: str, index: int, camera: str, size: int | None = None) -> NDArray[np.uint8]:
        """(N + 1, h, w, 3), or (N + 1, size, size, 3). `UserError` for what is missing or damaged."""

    def stamp(self, split: str, index: int, camera: str) -> str:
        """Changes when the pictures of `pictures` may have changed. `UserError` where their file is missing."""


def check_actions(actions: NDArray[Any]) -> NDArray[np.float32]:
    """Actions (n, 8) as float32; ValueError where they are not ours."""
    if actions.ndim != 2 or actions.shape[1] != len(ACTION) or not len(actions) or not np.isfinite(actions).all():
        raise ValueError(
            f"its actions have shape {actions.shape}, (n, 8) finite numbers are needed: {' '.join(ACTION)}"
        )
    return np.ascontiguousarray(actions, np.float32)


def check_turns(actions: NDArray[Any]) -> None:
    """ValueError where the quaternions of actions (n, 8) are none: another robot's eight numbers look like actions, too."""
    lengths = np.linalg.norm(actions[:, 3:7].astype(np.float64), axis=1)
    if (worst := float(np.abs(lengths - 1).max())) > _UNIT:
        raise ValueError(
            f"numbers 3 to 6 of its actions are not a quaternion (length {1 + worst:.3g} or {1 - worst:.3g}, not 1); "
            f"an action is {' '.join(ACTION)}"
        )


def camera_of(source: RobotSource, name: str) -> str:
    """`name`, if `source` has such a camera; `UserError` otherwise."""
    if name not in (names := source.cameras()):
        few = names[:8]
        raise UserError(
            f"{source.root} has no camera {name!r}; it has {', '.join(names) or 'none'}: "
            f"set dataset.cameras=[{','.join(few)}] dataset.n_cameras={len(few)}"
        )
    return name


def validation_first(count: int) -> dict[str, range]:
    """The demonstrations of each split where a set does not say: the first twentieth, at least one, is for validation."""
    first = max(1, int(count * VALIDATION_SHARE)) if count > 1 else 0
    return {"training": range(first, count), "validation": range(first)}


def read_demonstration_of(
    source: RobotSource, split: str, index: int, cameras: Sequence[str], size: int | None = None
) -> Demonstration:
    """A whole demonstration."""
    episode = source.arrays(split, index)
    return {**episode, **{camera: source.pictures(split, index, camera, size) for camera in cameras}}

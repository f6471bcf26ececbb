"""The batch every robot policy sees: b demonstrations of T tokens, what the cameras saw and the actions that led there."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class RobotBatch(NamedTuple):
    """b demonstrations; nothing is normalised here."""

    frames: Tensor
    """(b, T, cameras, 3, h, w) uint8 in [0, 255]."""
    actions: Tensor
    """(b, T, n, 8) float32: row t holds the n actions between token t − 1 and token t, [x, y, z, qx, qy, qz, qw, grasp]; row 0 those of an arm
    that waits."""
    valid: Tensor
    """(b, T) bool: False behind the end of a demonstration."""

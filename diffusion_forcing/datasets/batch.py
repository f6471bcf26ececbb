"""The batch every planner sees: b windows of L consecutive steps, batch first, in the data's own units."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class SequenceBatch(NamedTuple):
    """b windows of L = episode_len + 1 steps of 0.01 s; nothing is normalised here."""

    observations: Tensor
    """(b, L, 4) float32: x, y in metres and vx, vy in m/s, D4RL's frame."""
    actions: Tensor
    """(b, L, 2) float32 in [-1, 1]: the push that follows each observation."""
    rewards: Tensor
    """(b, L) float32: 1 within 0.5 m of the maze's fixed goal, else 0."""
    valid: Tensor
    """(b, L) bool: False for the padding of a window longer than its episode (the last step repeated)."""

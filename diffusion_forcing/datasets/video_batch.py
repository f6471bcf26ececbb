"""The batch every video model sees: b clips of T frames, batch first, pixels as they lie on disk, actions beside the frames they led to."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class VideoBatch(NamedTuple):
    """b clips of T frames, every `frame_skip`-th of an episode; nothing is normalised here."""

    frames: Tensor
    """(b, T, 3, h, w) uint8 in [0, 255]."""
    actions: Tensor
    """(b, T, A) float32: row t holds what was done between frame t - 1 of the clip and frame t, zeros where that is unknown.

    Discrete: the one-hots of all `frame_skip` actions side by side, oldest first. Continuous: their sum. A is 0 for data without actions.
    """
    known: Tensor
    """(b, T) bool: all actions of row t are known; False before an episode began, in padding, and where actions are not used."""
    valid: Tensor
    """(b, T) bool: False for the padding of a clip longer than its episode (the last frame repeated)."""

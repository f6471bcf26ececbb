"""The batch every planner sees: b windows of L consecutive steps, batch first, in the data's own units."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
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


# The batch every robot policy sees: b demonstrations of T tokens, what the cameras saw and the actions that led there.


class RobotBatch(NamedTuple):
    """b demonstrations; nothing is normalised here."""

    frames: Tensor
    """(b, T, cameras, 3, h, w) uint8 in [0, 255]."""
    actions: Tensor
    """(b, T, n, 8) float32: row t holds the n actions between token t − 1 and token t, [x, y, z, qx, qy, qz, qw, grasp]; row 0 those of an arm
    that waits."""
    valid: Tensor
    """(b, T) bool: False behind the end of a demonstration."""


# The batch every forecaster sees: b windows of L consecutive time steps of V variates, batch first, in the data's own units.


class SeriesBatch(NamedTuple):
    """b windows. The first `context_length` steps are the history, what follows is to be forecast; nothing is normalised here."""

    values: Tensor
    """(b, L, V) float32; 0 where nothing was observed."""
    observed: Tensor
    """(b, L, V) bool: False where the data has a gap, and before its beginning."""
    dates: Tensor
    """(b, L, D) float32 in −1…1: cosine and sine of the time of day, of the week, of the year, …, as the frequency has them."""
    lagged: Tensor
    """(b, L, n, V) float32: the values n lags before each step; 0 where they are not known."""
    lag_known: Tensor
    """(b, L, n, V) bool: whether that step was observed, and lies before the forecast's beginning."""
    seasonal: Tensor | None = None
    """(b, L, V) float32: the last value of the same time of the season that lies before the step and before the forecast; 0 where unknown."""
    season_known: Tensor | None = None
    """(b, L, V) bool."""

    def on(self, device: torch.device) -> SeriesBatch:
        """The same windows on `device`."""
        moved: dict[str, Tensor] = {name: part.to(device) for name, part in self._asdict().items() if part is not None}
        return SeriesBatch(**moved)


class SeriesSpec(NamedTuple):
    """What a forecaster must know of its data. mean, std, step_std, change_std: (V,), of the training part; step_std: of the change over half a
    prediction; change_std: from one step to the next. season: steps after which a season comes again; season_std: (V,), of the change
    in a season, 0 for a series that does not return with it."""

    variates: int
    freq: str
    date_features: int
    lags: tuple[int, ...]
    context_length: int
    prediction_length: int
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    step_std: NDArray[np.float32]
    change_std: NDArray[np.float32]
    has_gaps: bool
    names: tuple[str, ...]
    season: int = 1
    season_std: NDArray[np.float32] = np.zeros(1, np.float32)


# The batch every video model sees: b clips of T frames, batch first, pixels as they lie on disk, actions beside the frames they led to.


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

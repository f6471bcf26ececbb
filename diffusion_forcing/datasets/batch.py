"""The batches of the four tasks, batch first and in the units of the data: nothing is normalised here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class SequenceBatch(NamedTuple):
    """Planning: b windows of L = episode_len + 1 maze steps, each `frame_skip` steps of the environment (0.01 s in
    D4RL's mazes, 0.1 s in OGBench's)."""

    observations: Tensor
    """(b, L, 4) float32: x, y in metres and vx, vy in m/s, in D4RL's frame; or (b, L, 2): x, y in OGBench's."""
    actions: Tensor
    """(b, L, 2) float32 in [-1, 1]: the push after each observation, the mean of `frame_skip` ones."""
    rewards: Tensor
    """(b, L) float32: 1 within 0.5 m of the maze's fixed goal, otherwise 0; always 0 in OGBench's data."""
    valid: Tensor
    """(b, L) bool: False for the padding of a window longer than its episode (the last step repeated)."""


class RobotBatch(NamedTuple):
    """Robot policies: b demonstrations of T tokens."""

    frames: Tensor
    """(b, T, cameras, 3, h, w) uint8 in [0, 255]."""
    actions: Tensor
    """(b, T, n, 8) float32 [x, y, z, qx, qy, qz, qw, grasp]: row t holds the n actions between tokens t − 1 and t; row
    0 holds a waiting arm's."""
    valid: Tensor
    """(b, T) bool: False after the end of a demonstration."""


class VideoBatch(NamedTuple):
    """Video: b clips of T frames, every `frame_skip`-th frame of an episode."""

    frames: Tensor
    """(b, T, 3, h, w) uint8 in [0, 255]."""
    actions: Tensor
    """(b, T, A) float32: row t holds the actions between frames t − 1 and t of the clip, zeros if unknown.

    Discrete: the one-hots of all `frame_skip` actions side by side, oldest first. Continuous: their sum. A is 0 for
    data without actions.
    """
    known: Tensor
    """(b, T) bool: all actions of row t are known. False before an episode starts, in padding, and without actions."""
    valid: Tensor
    """(b, T) bool: False for the padding of a clip longer than its episode (the last frame repeated)."""


class SeriesBatch(NamedTuple):
    """Forecasting: b windows of L time steps of V variates, of which the first `context_length` are history."""

    values: Tensor
    """(b, L, V) float64, so that a difference of large values keeps its digits; 0 where nothing was observed."""
    observed: Tensor
    """(b, L, V) bool: False in gaps and before the beginning of the data."""
    dates: Tensor
    """(b, L, D) float32 in [-1, 1]: cosine and sine of the time of day, of the week, …, depending on the frequency."""
    lagged: Tensor
    """(b, L, n, V) float64: the values n lags before each step; 0 if unknown."""
    lag_known: Tensor
    """(b, L, n, V) bool: that step was observed and lies before the forecast."""
    base: Tensor
    """(b, L, V) float64: what simple methods forecast when the future begins, of the logarithm of some series; for the
    history, the level and season of that moment."""
    spread: Tensor
    """(b, L, V) float64, above 0: how far the values usually are from `base`."""
    logarithm: Tensor
    """(b, V) bool: `base` and `spread` are of the logarithm."""

    def to(self, device: torch.device, **kwargs: Any) -> SeriesBatch:
        """The same windows on `device`; not moved to one without float64 (MPS): the forecaster moves the scaled ones."""
        if torch.device(device).type == "mps":
            return self
        return SeriesBatch(*(part.to(device, **kwargs) for part in self))


class Method(NamedTuple):
    """Of one series: the rates α, β, φ, γ of `series/smoothing.py`, the season m in steps (1: none), whether the logarithm
    is smoothed, and the weight in the average."""

    level: float
    trend: float
    damping: float
    season_rate: float
    season: int = 1
    logarithm: bool = False
    weight: float = 1.0


class SeriesSpec(NamedTuple):
    """What a forecasting algorithm must know of its data. The arrays are (V,), measured on the training part."""

    variates: int
    freq: str
    date_features: int
    lags: tuple[int, ...]
    context_length: int
    prediction_length: int
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    has_gaps: bool
    names: tuple[str, ...]
    season: int = 1
    """Steps of a season."""
    methods: tuple[tuple[Method, ...], ...] = ()
    """The simple methods of each series' base forecast."""
    lowest: tuple[float | None, ...] = ()
    """Of each series: what no value is below; None: there is no such limit."""
    highest: tuple[float | None, ...] = ()
    whole: tuple[bool, ...] = ()
    """Whether all values of a series are whole numbers."""

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> SeriesSpec:
        """The specification that a checkpoint holds as plain values; what only older ones hold is left out."""
        known = {name: value for name, value in data.items() if name in cls._fields}
        arrays: dict[str, Any] = {name: np.array(data[name], np.float64) for name in ("mean", "std")}
        lists = ("lags", "names", "lowest", "highest", "whole")
        plain: dict[str, Any] = {name: tuple(known[name]) for name in lists if name in known}
        methods = tuple(tuple(Method(*one) for one in found) for found in known.get("methods", ()))
        return cls(**{**known, **arrays, **plain, "methods": methods})

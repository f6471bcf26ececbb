"""Gaps in series, hidden to be scored or real ones to be filled (`algorithms/imputation.py`).

Scores are those of forecasts (`metrics/forecasting.py`), of the hidden values alone, beside linear interpolation and the
same time of the last season.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.series.dataset import SeriesWindows, TimeSeries
from diffusion_forcing.datasets.series.smoothing import Base

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
SHARES = (0.1, 0.3, 0.5)
"""Of the observed values, hidden."""
PATTERNS = ("points", "blocks")


def hide(observed: Mask, share: float, pattern: str, block: int, random: np.random.Generator) -> Mask:
    """Which of the observed values (L, V) are hidden: `share` of them, one by one or in blocks of `block` steps; of every
    series at least one stays."""
    hidden = np.zeros_like(observed)
    for series in range(observed.shape[1]):
        places = np.flatnonzero(observed[:, series])
        count = max(0, min(round(share * len(places)), len(places) - 1))
        if pattern == "points":
            hidden[random.choice(places, count, replace=False), series] = True
            continue
        while hidden[:, series].sum() < count:
            start = random.integers(1 - block, len(observed))
            left = count - hidden[:, series].sum()
            new = np.flatnonzero(observed[:, series] & ~hidden[:, series])
            hidden[new[(new >= start) & (new < start + block)][:left], series] = True
    return hidden


def windows_without(dataset: TimeSeries, hidden: Mask, ends: list[int]) -> SeriesWindows:
    """The windows that end before steps `ends` of a table (T, V) whose `hidden` values were not observed."""
    spec = dataset.spec
    table = replace(dataset.table, values=np.where(hidden, np.nan, dataset.table.values))
    base = Base(table.values, spec.methods, dataset.known_until)
    return SeriesWindows(table, ends, spec.lags, dataset.context_length, dataset.prediction_length, base)


def windows_with_gaps(dataset: TimeSeries) -> list[int]:
    """Where windows end that together hold every gap of the table between its first and its last step."""
    length = dataset.context_length + dataset.prediction_length
    ends = [*range(length, len(dataset.table), length), len(dataset.table)]
    gaps = ~dataset.table.observed.all(axis=1)
    return [end for end in ends if gaps[max(0, end - length) : end].any()]


def interpolated(values: Array) -> Array:
    """Values (T, V) with each gap on the straight line between its ends; at the beginning and the end the nearest value."""
    steps = np.arange(len(values))
    filled = values.copy()
    for series in filled.T:
        known = np.isfinite(series)
        if known.any():
            series[~known] = np.interp(steps[~known], steps[known], series[known])
    return filled


def last_season(values: Array, season: int) -> Array:
    """Values (T, V) with each gap filled by the same time of the last season that was observed, or interpolated."""
    filled, fallback = values.copy(), interpolated(values)
    for step in range(season, len(values)):
        filled[step] = np.where(np.isfinite(filled[step]), filled[step], filled[step - season])
    return np.where(np.isfinite(filled), filled, fallback)


def cases(dataset: TimeSeries, seed: int) -> Iterator[tuple[str, Mask]]:
    """Each pattern and share by name, and what it hides of the table (T, V), in the test windows alone."""
    table, ends = dataset.table, dataset.test_ends
    first = max(0, ends[0] - dataset.context_length - dataset.prediction_length)
    for pattern in PATTERNS:
        for share in SHARES:
            random = np.random.default_rng(seed)
            hidden = np.zeros_like(table.observed)
            part = table.observed[first : ends[-1]]
            hidden[first : ends[-1]] = hide(part, share, pattern, max(2, dataset.prediction_length // 2), random)
            yield f"{pattern}_{100 * share:.0f}", hidden

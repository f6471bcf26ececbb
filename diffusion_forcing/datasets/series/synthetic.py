"""Synthetic series: endless tables of made-up series, to train one forecaster for all files.

A series is a level with a trend, a season whose shape drifts, autoregressive noise of changing strength, shifts of the
level and outliers, in random shares. Some are products instead of sums, some never negative, some counts, some mostly
zero. A table holds `SERIES` of them, with one season. The base forecasts of each are chosen as those of a file are, so
what a forecaster learns is what simple methods leave over.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from diffusion_forcing.datasets.batch import SeriesBatch
from diffusion_forcing.datasets.series.smoothing import Base, choose

Array = NDArray[np.float64]

SERIES, MOMENTS = 64, 16
"""In a table; windows of each series."""
MIXED = 4
"""Tables whose windows lie side by side, so that a batch sees several."""
SEASONS = (1, 1, 4, 5, 7, 12, 12, 24, 24, 48, 52)
SHORTEST, LONGEST = 40, 500
"""Steps of a table before its last forecast."""
MOST_SPREADS = 8.0
"""What is further from the base forecast is not shown: a squared error would see nothing else."""


def synthetic_table(random: np.random.Generator, length: int, season: int) -> Array:
    """(length, SERIES) made-up values, of a season in steps (1: none)."""
    series = SERIES
    time, shape = np.arange(length)[:, None], (length, series)

    # Noise: autoregressive, of a strength that changes, with outliers.
    root, turn = random.uniform(0, 0.95, series) * (random.random(series) < 0.7), random.uniform(0, 0.5, series)
    oscillates = random.random(series) < 0.15
    first = np.where(oscillates, 2 * root * np.cos(2 * np.pi * turn / 2), root)
    second = np.where(oscillates, -(root**2), 0.0)
    strength = _autoregression(random.normal(size=shape) * 0.2, np.full(series, 0.97), np.zeros(series))
    shocks = random.normal(size=shape) * np.exp(strength * (random.random(series) < 0.5))
    heavy = random.random(shape) < 0.02 * (random.random(series) < 0.3)
    noise = _autoregression(shocks + heavy * random.normal(size=shape) * 5, first, second)
    noise /= noise.std(axis=0) + 1e-9

    # Level: a random walk, a trend that may bend, shifts.
    walk = np.cumsum(random.normal(size=shape), axis=0) / np.sqrt(length)
    bend = random.integers(0, length, series)
    slope, after = random.normal(size=series), random.normal(size=series)
    trend = (time * slope + np.clip(time - bend, 0, None) * after * (random.random(series) < 0.4)) / length
    shifts = np.cumsum((random.random(shape) < 1.5 / length) * random.normal(size=shape), axis=0)
    level = (
        walk * random.exponential(1.5, series) * (random.random(series) < 0.7)
        + trend * random.exponential(2.0, series) * (random.random(series) < 0.5)
        + shifts * (random.random(series) < 0.2)
    )

    # Season: a few harmonics, or a profile of its own, whose strength drifts.
    seasonal = np.zeros(shape)
    if season > 1:
        for harmonic in range(1, min(4, season // 2) + 1):
            phase, height = random.uniform(0, 2 * np.pi, series), random.normal(size=series) / harmonic
            seasonal += height * np.sin(2 * np.pi * harmonic * time / season + phase)
        profile = random.normal(size=(season, series))[np.arange(length) % season]
        seasonal = np.where(random.random(series) < 0.4, profile, seasonal)
        drift = np.cumsum(random.normal(size=shape), axis=0) / np.sqrt(length) * (random.random(series) < 0.4)
        seasonal *= (1 + 0.5 * drift) * random.exponential(1.0, series) * (random.random(series) < 0.85)

    values: Array = level + seasonal + noise * random.choice([0.03, 0.1, 0.3, 0.6, 1.0], series)
    kind = random.random(series)
    scale = values.std(axis=0) + 1e-9
    products = np.exp((values - values.mean(axis=0)) / scale * random.uniform(0.05, 0.8, series))
    rates = np.exp((values - values.mean(axis=0)) / scale * 0.7 + random.uniform(-2.0, 4.0, series))
    values = np.where(kind < 0.3, products, values + random.normal(size=series) * 5)
    values = np.where((kind > 0.85) & (kind < 0.93), random.poisson(rates.clip(max=1e6)), values)
    sometimes = random.random(shape) < random.uniform(0.1, 0.8, series)
    values = np.where(kind > 0.95, np.where(sometimes, np.ceil(products), 0.0), values)
    return np.where((kind > 0.93) & (kind <= 0.95), np.clip(values - np.median(values, axis=0), 0, None), values)


def _autoregression(shocks: Array, first: Array, second: Array) -> Array:
    """x_t = first x_{t−1} + second x_{t−2} + shocks_t."""
    found = np.zeros_like(shocks)
    for step in range(len(shocks)):
        before = found[step - 1] if step else 0.0
        found[step] = first * before + second * (found[step - 2] if step > 1 else 0.0) + shocks[step]
    return found


class SyntheticWindows(Dataset[SeriesBatch]):
    """`count` windows of synthetic series, one series each; window i depends on i alone. They are made table by table:
    read them in their order."""

    def __init__(self, count: int, context_length: int, prediction_length: int) -> None:
        self.count = count
        self.context_length, self.prediction_length = context_length, prediction_length
        self.table = lru_cache(maxsize=2 * MIXED)(self._table)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> SeriesBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> SeriesBatch:
        numbers = np.asarray(indices)
        group, place = numbers // (MIXED * SERIES * MOMENTS), numbers % (MIXED * SERIES * MOMENTS)
        tables, rows = group * MIXED + place % MIXED, place // MIXED
        parts = [tuple(part[row] for part in self.table(int(table))) for table, row in zip(tables, rows, strict=True)]
        values, observed, base, spread = (np.stack(part)[..., None] for part in zip(*parts, strict=True))
        nothing = np.zeros((len(numbers), values.shape[1], 0))
        lags = np.zeros((*nothing.shape, 1))
        logarithm = np.zeros((len(numbers), 1), bool)  # it is taken already
        found = (values, observed, nothing.astype(np.float32), lags, lags.astype(bool), base, spread, logarithm)
        return SeriesBatch(*(torch.from_numpy(part) for part in found))

    def _table(self, number: int) -> tuple[Array, NDArray[np.bool_], Array, Array]:
        """Values (in the units that tokens hold), observed, base, spread: (windows, context + prediction) each."""
        random = np.random.default_rng(number)
        season, ahead = int(random.choice(SEASONS)), self.prediction_length
        history = int(np.exp(random.uniform(np.log(max(SHORTEST, 4 * season)), np.log(LONGEST))))
        values = synthetic_table(random, history + ahead, season)
        gaps = random.random(values.shape) < 0.1 * (random.random(SERIES) < 0.1)
        values[gaps] = np.nan

        # Methods are chosen on what comes before the windows' forecasts, as for a file.
        chosen_until = max(season * 3 + 5, int(history * random.uniform(0.5, 1.0)))
        seasons = (season,) if season > 1 else ()
        base = Base(values, choose(values[:chosen_until], ahead, seasons), chosen_until)
        origins = random.integers(max(8, min(chosen_until // 2, history - 1)), history + 1, MOMENTS)
        steps = origins[:, None] + np.arange(-self.context_length, ahead)
        inside = (steps >= 0)[..., None]
        shown = base.working[np.clip(steps, 0, None)]
        observed = inside & np.isfinite(shown)
        spread = base.spread(-self.context_length, ahead) * base.liveliness[origins][:, None]
        expected = base.forecast(origins, -self.context_length, ahead)
        observed &= np.abs(np.where(observed, shown - expected, 0.0)) < MOST_SPREADS * spread
        parts = (np.where(observed, shown, 0.0), observed, expected, spread)
        return tuple(np.ascontiguousarray(part.transpose(0, 2, 1).reshape(-1, steps.shape[1])) for part in parts)  # type: ignore[return-value]

"""Scores of sample paths, as GluonTS's `MultivariateEvaluator` computes them: pure functions of samples and targets.

samples: (windows, paths, time, variates); target: (windows, time, variates), NaN where nothing was observed: such steps count for nothing.
A quantile of n paths is the round((n − 1)·q)-th smallest, as in GluonTS's `SampleForecast`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
QUANTILES = tuple(round(0.05 * i, 2) for i in range(1, 20))
"""0.05 … 0.95."""
INTERVALS = (0.5, 0.8, 0.9)


def quantile(samples: Array, q: float) -> Array:
    """(windows, paths, …) → (windows, …): the q-quantile of the paths."""
    return np.sort(samples, axis=1)[:, round((samples.shape[1] - 1) * q)]


def weighted_quantile_losses(samples: Array, target: Array, quantiles: Sequence[float] = QUANTILES) -> Array:
    """(len(quantiles),): 2·Σ|(ŷ_q − y)·(1[y ≤ ŷ_q] − q)| / Σ|y| over windows, time and variates."""
    ordered = np.sort(samples.astype(np.float64), axis=1)
    y = target.astype(np.float64)
    total = np.nansum(np.abs(y))
    losses = []
    for q in quantiles:
        forecast = ordered[:, round((ordered.shape[1] - 1) * q)]
        losses.append(2 * np.nansum(np.abs((forecast - y) * ((y <= forecast) - q))) / total)
    return np.array(losses)


def crps(samples: Array, target: Array) -> float:
    """Mean over the 19 quantiles of the weighted quantile loss: CRPS as the field reports it. Lower is better, 0 is perfect."""
    return float(weighted_quantile_losses(samples, target).mean())


def crps_sum(samples: Array, target: Array) -> float:
    """The same of the sums over variates: it also scores how they move together."""
    return crps(samples.sum(axis=-1, dtype=np.float64), target.sum(axis=-1, dtype=np.float64))


def nd(samples: Array, target: Array) -> float:
    """Normalised deviation of the median: Σ|y − ŷ| / Σ|y|."""
    return float(np.nansum(np.abs(target - quantile(samples, 0.5))) / np.nansum(np.abs(target)))


def nrmse(samples: Array, target: Array) -> float:
    """Root mean squared error of the mean path over the mean |y|."""
    error = target - samples.mean(axis=1, dtype=np.float64)
    return float(np.sqrt(np.nanmean(error**2)) / np.nanmean(np.abs(target)))


def coverage(samples: Array, target: Array, interval: float) -> float:
    """Share of observed values inside the central `interval` of the paths; a calibrated forecast has `interval`."""
    low, high = (quantile(samples, 0.5 + sign * interval / 2) for sign in (-1, 1))
    known = np.isfinite(target)
    return float(((target >= low) & (target <= high))[known].mean())


def calibration(samples: Array, target: Array, levels: Sequence[float] = QUANTILES) -> Array:
    """(len(levels),): share of observed values at or below each quantile; the diagonal is perfect."""
    known = np.isfinite(target)
    return np.array([(target <= quantile(samples, level))[known].mean() for level in levels])


def forecast_report(samples: Array, target: Array) -> dict[str, float]:
    """Every score by name, `forecast/…`."""
    report = {
        "crps_sum": crps_sum(samples, target),
        "crps": crps(samples, target),
        "nd": nd(samples, target),
        "nrmse": nrmse(samples, target),
        **{f"coverage_{round(100 * interval)}": coverage(samples, target, interval) for interval in INTERVALS},
    }
    return {f"forecast/{name}": value for name, value in report.items()}


# What a forecast has to beat: the last values again, with the changes or the errors that the history had. Pure functions of the history.
#
# history: (T, V), NaN where nothing was observed. Sample paths are (paths, ahead, V). All series of a moment are drawn together.


def random_walk(history: Array, ahead: int, *, paths: int, random: np.random.Generator) -> Array:
    """The last values known, and behind them steps that the history had."""
    filled, last = _carried_on(history)
    steps = np.diff(filled, axis=0)
    drawn = steps[random.integers(len(steps), size=(paths, ahead))]
    return last + drawn.cumsum(axis=1)


def seasonal(history: Array, ahead: int, *, season: int, paths: int, random: np.random.Generator) -> Array:
    """The last season again and again, with errors that this had in the history, whole stretches at a time."""
    filled, _ = _carried_on(history)
    back = season * -(-ahead // season)
    if len(filled) < back + ahead:
        return random_walk(history, ahead, paths=paths, random=random)
    repeated = filled[len(filled) - season + np.arange(ahead) % season]
    errors = filled[back:] - filled[:-back]
    starts = random.integers(len(errors) - ahead + 1, size=paths)
    drawn: Array = repeated + errors[starts[:, None] + np.arange(ahead)]
    return drawn


def _carried_on(history: Array) -> tuple[Array, Array]:
    """The history with the last known value in every gap (before the first known, that one), and its last row."""
    known = np.isfinite(history)
    row = np.where(known, np.arange(len(history))[:, None], 0)
    latest = np.maximum.accumulate(row, axis=0)
    first = np.where(known.any(axis=0), known.argmax(axis=0), 0)
    latest = np.maximum(latest, first)
    filled = np.nan_to_num(np.take_along_axis(history, latest, axis=0))
    return filled, filled[-1]

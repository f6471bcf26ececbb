"""Scores of sample paths, as GluonTS's `MultivariateEvaluator` computes them, and the naive forecasts that a forecast
has to beat.

samples: (windows, paths, time, variates); target: (windows, time, variates), NaN where nothing was observed: such
values are not scored. A score of which nothing is left is NaN; `why_missing` says why. A quantile of n paths is the
round((n − 1)·q)-th smallest, as in GluonTS's `SampleForecast`. Naive forecasts are functions of a history (T, V), NaN
where nothing was observed, and return paths (paths, ahead, V); all series of a moment are drawn together.
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


def weighted_quantile_losses(samples: Array, target: Array) -> Array:
    """(len(QUANTILES),): 2·Σ|(ŷ_q − y)·(1[y ≤ ŷ_q] − q)| / Σ|y| over windows, time and variates."""
    ordered = np.sort(samples.astype(np.float64), axis=1)
    y = target.astype(np.float64)
    total = np.nansum(np.abs(y)) or np.nan
    losses = []
    for q in QUANTILES:
        forecast = ordered[:, round((ordered.shape[1] - 1) * q)]
        losses.append(2 * np.nansum(np.abs((forecast - y) * ((y <= forecast) - q))) / total)
    return np.array(losses)


def crps(samples: Array, target: Array) -> float:
    """Mean over the 19 quantiles of the weighted quantile loss: CRPS as the field reports it. Lower is better, 0 is
    perfect."""
    return float(weighted_quantile_losses(samples, target).mean())


def crps_sum(samples: Array, target: Array) -> float:
    """The same of the sums over variates: it also scores how they move together."""
    return crps(*observed_sums(samples, target))


def observed_sums(samples: Array, target: Array) -> tuple[Array, Array]:
    """(windows, paths, time) and (windows, time): sums over the variates that were observed at a step, NaN where none
    was."""
    known = np.isfinite(target)
    summed = np.where(known, target, 0.0).sum(axis=-1, dtype=np.float64)
    paths = np.where(known[:, None], samples, 0.0).sum(axis=-1, dtype=np.float64)
    return paths, np.where(known.any(axis=-1), summed, np.nan)


def why_missing(samples: Array, target: Array) -> str:
    """Why these have no score."""
    if not np.isfinite(target).any():
        return "nothing was observed in these windows"
    if not np.isfinite(samples).all():
        return "the sample paths are not finite"
    return "every observed value, or their sum, is 0, and errors are measured relative to it"


def nd(samples: Array, target: Array) -> float:
    """Normalised deviation of the median: Σ|y − ŷ| / Σ|y|."""
    return float(np.nansum(np.abs(target - quantile(samples, 0.5))) / (np.nansum(np.abs(target)) or np.nan))


def nrmse(samples: Array, target: Array) -> float:
    """Root mean squared error of the mean path over the mean |y|."""
    known = np.isfinite(target)
    error = (target - samples.mean(axis=1, dtype=np.float64))[known]
    return float(np.sqrt((error**2).mean()) / (np.abs(target[known]).mean() or np.nan)) if known.any() else np.nan


def coverage(samples: Array, target: Array, interval: float) -> float:
    """Share of observed values inside the central `interval` of the paths; a calibrated forecast has `interval`."""
    low, high = (quantile(samples, 0.5 + sign * interval / 2) for sign in (-1, 1))
    known = np.isfinite(target)
    return float(((target >= low) & (target <= high))[known].mean()) if known.any() else np.nan


def calibration(samples: Array, target: Array, levels: Sequence[float] = QUANTILES) -> Array:
    """(len(levels),): share of observed values at or below each quantile; the diagonal is perfect."""
    known = np.isfinite(target)
    shares = [(target <= quantile(samples, level))[known].mean() if known.any() else np.nan for level in levels]
    return np.array(shares)


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

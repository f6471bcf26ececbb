"""Exponential smoothing: what simple methods forecast at every moment of a series, and the errors they make.

A method holds a level ℓ, a damped trend b and a season s, and corrects each by a share of every error (Hyndman et al.
2008, the additive error-correction form):

    ŷ_t = ℓ + φ b + s_{t−m},   e = y_t − ŷ_t,   ℓ ← ℓ + φ b + α e,   b ← φ b + α β e,   s_t = s_{t−m} + γ (1 − α) e

α = 1 repeats the last value; α = 0, γ = 1 the last season; a small α forecasts the mean. Where nothing was observed,
e = 0. A series that was always positive may be smoothed by its logarithm. A base forecast is the average of the methods
that were best in the past of a series, and its sample paths are this average plus stretches of the errors it made.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.batch import Method
from diffusion_forcing.datasets.series.times import count_and_unit, lags_of, quietly

Array = NDArray[np.float64]
Steps = NDArray[np.int64]

BEST = 12
"""Methods that a base averages, at most."""
SHARPNESS = 16
"""A method's weight is its mean absolute error to the power −16, relative to the best one's."""
SMALLEST_SHARE = 0.01
"""Of its median: a series that was ever below is not smoothed by its logarithm."""
CLEARLY = 1.03
"""A series is smoothed by its logarithm, and so stays positive, unless errors are larger than this share of the others."""
SMALLEST_WEIGHT = 0.02
"""Methods of less weight are left out."""
MOST_STATES = 20_000_000
"""Steps × series × methods of which states are held: very large tables average fewer methods."""
MOMENTS = 60
"""Moments of the past at which methods are compared, evenly spread."""
CYCLES, SHORT, LONG = 20, 2500, 9000
"""Methods are compared on so many of the longest season, the last of the history, but on 2,500 to 9,000 steps."""
MOST_ERRORS, REACH = 500, 5000
"""Moments whose errors a path may repeat, evenly spread over this many of the latest steps."""
PHASES, FEWEST_PHASES = 100, 60
"""Seasons from whose errors at the same time of the season a path repeats one (more where they are shorter than 25 steps: those of 2,500), and
how many there must be; longer seasons have too few."""
MEMORY, PRIOR = 20.0, 10.0
"""Errors of one step that liveliness remembers, and how many usual ones they are weighed against."""
SMALLEST_SPREAD = 1e-4
"""Of a series' standard deviation."""
SMALLEST_CHANGE = 0.01
"""Of a series that never changed, in its value: what it may do."""
TOGETHER = 4000
"""Columns that are smoothed together."""
AT_ONCE = 4_000_000
"""Numbers that the methods forecast together, before they are averaged."""
SEEN = 2.5
"""Times that a season must fit into what methods are compared on."""
SECONDS = {"s": 1, "min": 60, "h": 3600}


class States(NamedTuple):
    """Level and trend after every step, (T, N) each; the first season, and the season after every step, (m + T, N)."""

    level: Array
    trend: Array
    season: Array


def seasons_of(freq: str, length: int) -> tuple[int, ...]:
    """The seasons, in steps, that a history of `length` steps of `freq` has two and a half of: those of its lags, the day and
    the week, the week and the year of days, the minute, the hour and the day of seconds."""
    count, unit = count_and_unit(freq)
    if unit in SECONDS:
        step = count * SECONDS[unit]
        spans = (60, 3600, 86400) if unit == "s" else (86400, 604800)
        found = [span // step for span in spans if span % step == 0]
    elif unit == "D":
        found = [7 // count, round(365.25 / count)]
    else:
        found = [5] if unit == "B" else list(lags_of(freq))
    return tuple(sorted({season for season in found if season > 1 and SEEN * season <= min(length, LONG)}))


def candidates(seasons: Sequence[int]) -> list[Method]:
    """The methods that are compared, for `seasons` in steps."""
    trends = ((0.0, 0.0), (0.1, 0.9), (0.3, 0.98))
    found = [Method(level, *trend, 0.0) for level in (0.1, 0.3, 0.6, 0.8, 1.0) for trend in trends]
    for season in seasons:
        rates = itertools.product((0.02, 0.1, 0.3, 0.7, 0.95), (0.1, 0.4), trends)
        found += [Method(level, *trend, rate, season) for level, rate, trend in rates]
        found += [Method(level, 0.0, 0.0, 1.0, season) for level in (0.0, 0.05)]
    return found


def smooth(values: Array, rates: Array, season: int, seen: int | None = None) -> States:
    """values: (T, N), NaN where nothing was observed; rates: (4, N), α, β, φ, γ. The first level and season are measured
    on the first `seen` steps (None: all)."""
    alpha, beta, phi, gamma = rates
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)
    level, trend = _first_level(filled[:seen], known[:seen], season), np.zeros(values.shape[1])
    seasons = np.concatenate([_first_season(values[:seen], season), np.empty_like(filled)])
    states = States(np.empty_like(filled), np.empty_like(filled), seasons)
    trend_rate, season_rate = alpha * beta, gamma * (1 - alpha)
    for step in range(len(values)):
        ahead, last = level + phi * trend, seasons[step]
        error = np.where(known[step], filled[step] - ahead - last, 0.0)
        level = ahead + alpha * error
        trend = phi * trend + trend_rate * error
        states.level[step], states.trend[step], seasons[season + step] = level, trend, last + season_rate * error
    return states


def _first_level(filled: Array, known: NDArray[np.bool_], season: int) -> Array:
    """(N,): the mean of as many first values as a season has."""
    first = known & (known.cumsum(axis=0) <= season)
    total: Array = np.where(first, filled, 0.0).sum(axis=0)
    return total / first.sum(axis=0).clip(min=1)


def _first_season(values: Array, season: int) -> Array:
    """(m, N): how the first three seasons deviate from their means."""
    cycles = min(3, len(values) // season)
    if season == 1 or cycles == 0:
        return np.zeros((season, values.shape[1]))
    first = values[: cycles * season].reshape(cycles, season, -1)
    deviation = first - _mean(first, axis=1)[:, None]
    return _mean(deviation, axis=0)


def _mean(values: Array, axis: int | tuple[int, ...]) -> Array:
    """The mean of what is finite; 0 where nothing is."""
    known = np.isfinite(values)
    total: Array = np.where(known, values, 0.0).sum(axis=axis)
    return total / known.sum(axis=axis).clip(min=1)


def extrapolate(states: States, damping: Array, season: int, origins: Steps, first: int, last: int) -> Array:
    """(n, last − first, N): the forecasts made after `origins[i]` ≥ 1 steps, of steps first … last − 1 from there. For
    the steps before (negative), the level and season of the origin."""
    offsets, now = np.arange(first, last), np.asarray(origins) - 1
    growth = np.cumsum(damping ** np.arange(1, max(last, 1) + 1)[:, None], axis=0)
    growth = np.concatenate([np.zeros((1, len(damping))), growth])[np.clip(offsets + 1, 0, None)]
    forecast: Array = states.level[now][:, None] + growth * states.trend[now][:, None]
    # The season of the same phase: the last one before the origin, which for the first m steps is the first.
    forecast += states.season[now[:, None] + 1 + offsets % season]
    return forecast


def choose(values: Array, ahead: int, seasons: Sequence[int]) -> tuple[tuple[Method, ...], ...]:
    """The best methods of each series of (T, V) for forecasts of `ahead` steps, by mean absolute error at moments of the
    past, with their weights. A series is smoothed by its logarithm where its best methods are better that way."""
    compared, most = candidates(seasons), max(1, min(BEST, MOST_STATES // values.size))
    recent = values[-int(np.clip(CYCLES * max(seasons, default=1), SHORT, LONG)) :]
    with quietly():  # about a series without values
        positive = np.nanmin(values, axis=0) > SMALLEST_SHARE * np.abs(np.nanmedian(values, axis=0))
    errors = [_errors(recent, ahead, compared, logarithm=False)]
    if positive.any():
        errors.append(np.where(positive, _errors(recent, ahead, compared, logarithm=True), np.inf))
    order = [np.argsort(found, axis=0, kind="stable")[:most] for found in errors]
    best = [np.take_along_axis(found, rank, axis=0) for found, rank in zip(errors, order, strict=True)]
    logarithm = np.argmin([found.mean(axis=0) for found in best] * np.array([[CLEARLY], [1.0]])[: len(best)], axis=0)
    chosen = []
    for variate, own in enumerate(logarithm):
        error = best[own][:, variate].clip(min=1e-300)
        weights = (error / error[0]) ** -SHARPNESS
        kept = weights / weights.sum() > SMALLEST_WEIGHT
        kept[1:] &= best[own][0, variate] > 0  # nothing to compare, or never wrong: the first, without a trend
        weights = weights[kept] / weights[kept].sum()
        numbers = order[own][kept, variate]
        chosen.append(
            tuple(
                compared[number]._replace(logarithm=bool(own), weight=float(weight))
                for number, weight in zip(numbers, weights, strict=True)
            )
        )
    return tuple(chosen)


def _errors(values: Array, ahead: int, compared: list[Method], *, logarithm: bool) -> Array:
    """(len(compared), V): mean absolute errors of forecasts of `ahead` steps of (T, V)."""
    warm = max(3, 2 * max(one.season for one in compared))
    latest = max(1, len(values) - ahead)
    origins = np.unique(np.linspace(min(warm, latest), latest, MOMENTS).astype(np.int64))
    truth = _at(values, origins[:, None] + np.arange(ahead))
    own = _logarithm(values) if logarithm else values
    found = np.empty((len(compared), values.shape[1]))
    for season in {one.season for one in compared}:
        numbers = [number for number, one in enumerate(compared) if one.season == season]
        rates = np.array([compared[number][:4] for number in numbers]).T
        together = max(1, TOGETHER // len(numbers))
        for begin in range(0, values.shape[1], together):
            part = slice(begin, begin + together)
            columns = np.tile(own[:, part], (1, len(numbers)))
            each = np.repeat(rates, columns.shape[1] // len(numbers), axis=1)
            forecast = extrapolate(smooth(columns, each, season), each[2], season, origins, 0, ahead)
            if logarithm:
                forecast = np.exp(forecast.clip(-700, 700))
            error = np.abs(forecast - np.tile(truth[..., part], (1, 1, len(numbers))))
            found[numbers, part] = _mean(error, axis=(0, 1)).reshape(len(numbers), -1)
    return found


def _logarithm(values: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = np.log(values)
    return np.where(np.isfinite(found), found, np.nan)


def _at(values: Array, steps: Steps) -> Array:
    """(…, V): the values at `steps`, NaN outside of the table."""
    inside = (steps >= 0) & (steps < len(values))
    return np.where(inside[..., None], values[np.where(inside, steps, 0)], np.nan)


def _filled(errors: Array, behind: NDArray[np.bool_]) -> Array:
    """(n, ahead, V): the k-th that is missing is the k-th that is not, of the same step ahead; where `behind`, (n, ahead),
    and where that step has none, the one of the step before; 0 where there is none."""
    known = np.isfinite(errors)
    place = (np.cumsum(~known, axis=0) - 1).clip(min=0) % known.sum(axis=0).clip(min=1)
    those = np.take_along_axis(np.argsort(~known, axis=0, kind="stable"), place, axis=0)
    found = np.where(known, errors, np.take_along_axis(errors, those, axis=0))
    found[behind] = np.nan
    for step in range(1, errors.shape[1]):
        found[:, step] = np.where(np.isfinite(found[:, step]), found[:, step], found[:, step - 1])
    return np.nan_to_num(found)


class _Columns(NamedTuple):
    """The methods of one season: columns in the order of their series, where each series begins, weights, states."""

    season: int
    variates: NDArray[np.int64]
    begins: NDArray[np.int64]
    damping: Array
    weights: Array
    states: States


class Base:
    """The base forecasts of a table (T, V) at every moment, by the methods of each series.

    All but `paths` is in the units of `working`: those of the values, or of their logarithms. What it says of a moment
    depends on the values before that moment alone, except for the rates, which were chosen elsewhere, and what is measured
    on the first `fitted` steps.
    """

    def __init__(self, values: Array, methods: Sequence[Sequence[Method]], fitted: int | None = None) -> None:
        self.values, self.methods = values, methods
        self.fitted = len(values) if fitted is None else fitted
        """Steps that first levels, first seasons and `spread` are measured on."""
        self.logarithm = np.array([found[0].logarithm for found in methods])
        self.working = np.where(self.logarithm, _logarithm(values), values)
        """(T, V)."""

    @cached_property
    def _columns(self) -> list[_Columns]:
        made = []
        for season in sorted({one.season for found in self.methods for one in found}):
            own = [(v, one) for v, found in enumerate(self.methods) for one in found if one.season == season]
            rates = np.array([one[:4] for _, one in own]).T
            variates, begins = np.unique([variate for variate, _ in own], return_index=True)
            states = smooth(self.working[:, [variate for variate, _ in own]], rates, season, self.fitted)
            made.append(_Columns(season, variates, begins, rates[2], np.array([one.weight for _, one in own]), states))
        return made

    def forecast(self, origins: Sequence[int] | Steps, first: int, last: int) -> Array:
        """(n, last − first, V): what follows from the first `origins[i]` ≥ 1 steps, for steps first … last − 1 from
        there; for the steps before, the level and season of that moment."""
        total = np.zeros((len(origins), last - first, self.values.shape[1]))
        for season, variates, begins, damping, weights, states in self._columns:
            together = max(1, AT_ONCE // ((last - first) * len(weights)))
            for part in (slice(begin, begin + together) for begin in range(0, len(origins), together)):
                found = extrapolate(states, damping, season, np.asarray(origins)[part], first, last) * weights
                total[part, :, variates] += np.add.reduceat(found, begins, axis=-1)
        return total

    @cached_property
    def liveliness(self) -> Array:
        """(T + 1, V): how large the latest errors of one step were, relative to usual ones, after each number of
        steps."""
        squares = np.full((len(self.values), self.values.shape[1]), np.nan)
        squares[1:] = (self.working[1:] - self.forecast(np.arange(1, len(self.values)), 0, 1)[:, 0]) ** 2
        found, known = np.ones((len(squares) + 1, squares.shape[1])), np.isfinite(squares)
        filled = np.where(known, squares, 0.0)
        recent, seen, total, count = np.zeros((4, squares.shape[1]))
        for step in range(len(squares)):
            recent = np.where(known[step], (1 - 1 / MEMORY) * recent + filled[step], recent)
            seen = np.where(known[step], (1 - 1 / MEMORY) * seen + 1, seen)
            total, count = total + filled[step], count + known[step]
            usual = total / count.clip(min=1)
            found[step + 1] = np.sqrt((recent + PRIOR * usual) / (seen + PRIOR) / np.where(usual > 0, usual, 1.0))
        return np.where(found > 0, found, 1.0)

    def errors(self, origins: Steps, ahead: int, until: int) -> Array:
        """(n, ahead, V): of the forecasts made after `origins` steps, relative to the liveliness there, as known after
        `until` steps. Where nothing was observed, those of other origins; behind `until`, the last before it."""
        steps = origins[:, None] + np.arange(ahead)
        errors = _at(self.working[:until], steps) - self.forecast(origins, 0, ahead)
        return _filled(errors / self.liveliness[origins][:, None], steps >= until)

    def spread(self, first: int, last: int) -> Array:
        """(last − first, V): the root mean square of `errors` at steps first … last − 1 from a moment, above 0. For the
        steps before, of how far the values are from the level and season of that moment."""
        latest = max(1, self.fitted - last)
        origins = np.unique(np.linspace(min(max(1, -first), latest), latest, MOST_ERRORS).astype(np.int64))
        truth = _at(self.working[: self.fitted], origins[:, None] + np.arange(first, last))
        errors = (truth - self.forecast(origins, first, last)) / self.liveliness[origins][:, None]
        found = np.sqrt(_mean(errors**2, axis=0))
        past = min(max(0, -first), len(found))
        found[:past] = np.sqrt(_mean(found[:past] ** 2, axis=0))
        deviation = self.working[: self.fitted] - _mean(self.working[: self.fitted], axis=0)
        least = SMALLEST_SPREAD * np.sqrt(_mean(deviation**2, axis=0))
        constant = SMALLEST_CHANGE * np.maximum(np.abs(_mean(self.working[: self.fitted], axis=0)), 1.0)
        return np.maximum(found, np.where(least > 0, least, constant))

    def paths(self, origin: int, ahead: int, *, paths: int, random: np.random.Generator) -> Array:
        """(paths, ahead, V), in the units of the values: the forecast after `origin` steps, plus errors that it made
        before, whole stretches of all series at a time, the later ones more often."""
        season = min((one.season for found in self.methods for one in found if one.season > 1), default=1)
        latest = max(1, origin - ahead, origin // 2)
        earliest = min(max(2 * season, ahead // 2, 5), max(season, latest // 2), latest)
        origins = np.arange(latest, max(earliest - 1, latest - max(REACH, PHASES * season)), -1)
        if 1 < season <= PHASES and len(origins) // season >= FEWEST_PHASES:
            origins = origins[: max(SHORT, PHASES * season)]
            origins = origins[(origin - origins) % season == 0]  # made at the same time of day
        else:
            origins = origins[: REACH : -(-min(REACH, len(origins)) // MOST_ERRORS)]
        errors = self.errors(origins, ahead, origin)
        share = np.cumsum(0.5 ** (np.arange(len(origins)) / (0.65 * len(origins))))
        drawn = np.searchsorted(share / share[-1], (np.arange(paths) + random.random()) / paths, side="right")
        drawn = random.permutation(drawn.clip(max=len(origins) - 1))
        found = self.forecast([origin], 0, ahead) + errors[drawn] * self.liveliness[origin]
        return np.where(self.logarithm, np.exp(found.clip(-700, 700)), found)

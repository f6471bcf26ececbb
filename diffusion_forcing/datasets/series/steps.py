"""The regular steps that times lie on: pandas' frequencies, where in a step a time stands, lags, date features.

The time between steps is found between gaps too.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas
from numpy.typing import NDArray
from pandas.tseries.frequencies import to_offset

from diffusion_forcing.errors import UserError, did_you_mean

LAGS = {
    "M": (1, 12),
    "D": (1, 7, 14),
    "B": (1, 2),
    "h": (1, 24, 168),
    "min": (1, 4, 12, 24, 48),
    "W": (1, 52),
    "Q": (1, 4),
}
"""Lags by the frequency's unit, in steps (docs/method.md §11; weeks and quarters are ours)."""
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_OF_MONTHS = {"M": 1, "Q": 3, "Y": 12}
_CALENDAR = re.compile(r"(\d*)(?:(?:C?B)?([MQYA])(S|E)?|L?WO(M))(?:-(\w+))?")
"""Months, quarters and years as pandas writes their beginnings, ends, and first, last or n-th business days."""


@contextmanager
def quietly() -> Iterator[None]:
    """Without pandas' warnings that it renames its frequencies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def checked_freq(freq: str) -> str:
    """`freq` as pandas writes a period's; UserError for one it does not know."""
    name, found = freq, _CALENDAR.fullmatch(freq)
    if found:
        number, unit, edge, week, anchor = found.groups()
        unit = {"A": "Y", None: week}.get(unit, unit)
        if edge == "S" and anchor in MONTHS:  # a quarter that begins in October ends in December
            anchor = MONTHS[(MONTHS.index(anchor) + _OF_MONTHS[unit] - 1) % 12]
        name = f"{number}{unit}" + (f"-{anchor}" if anchor and unit in "QY" else "")
    try:
        with quietly():
            name = str(pandas.Period("2000-01-03", freq=name).freqstr)
            for unit, many, larger in (("s", 60, "min"), ("min", 60, "h"), ("h", 24, "D")):  # 60min are an hour
                count = re.fullmatch(rf"(\d+){unit}", name)
                if count and int(count[1]) % many == 0:
                    name = str(pandas.Period("2000-01-03", freq=f"{int(count[1]) // many}{larger}").freqstr)
            return name
    except (ValueError, TypeError, AttributeError):
        known = ("min", "h", "D", "B", "W", "M", "Q", "Y")
        raise UserError(
            f"dataset.freq is '{freq}', which pandas does not know{did_you_mean(freq, known)}; "
            f"give the time between two steps, such as {', '.join(known)} or 30min"
        ) from None


def count_and_unit(freq: str) -> tuple[int, str]:
    """(15, 'min') of 15min; the unit without its anchor."""
    found = re.fullmatch(r"(\d*)(.*)", checked_freq(freq).split("-")[0])
    assert found is not None
    return int(found[1] or 1), found[2]


def freq_of(times: pandas.DatetimeIndex) -> str | None:
    """The frequency of sorted, different times of which up to half are missing, as `checked_freq` takes it; None where
    it cannot be told.

    Business days, days, weeks, months, quarters, years, or the smallest distance where all are multiples of it.
    """
    if len(times) < 3:
        return None
    found = pandas.infer_freq(times)
    if found is not None:
        return str(found)
    apart, day = times.to_series().diff().dropna(), pandas.Timedelta("1D")
    smallest = apart.min()
    if smallest <= pandas.Timedelta(0):
        return None
    same_time = (times - times.normalize()).nunique() == 1
    if same_time and smallest >= 28 * day and _month_offset(times) is not None:
        months = int(np.gcd.reduce(np.diff(times.year * 12 + times.month))) % 12
        freq = "Y-DEC" if months == 0 else "Q-DEC" if months % 3 == 0 else "M"
    elif bool((apart % smallest != pandas.Timedelta(0)).any()):
        return None
    elif same_time and smallest == day:
        freq = "B" if bool((times.dayofweek < 5).all()) else "D"
    elif same_time and smallest == 7 * day:
        freq = f"W-{times[0].day_name()[:3].upper()}"
    else:
        freq = str(to_offset(smallest).freqstr)
    with quietly():
        return freq if len(pandas.period_range(times[0], times[-1], freq=freq)) <= 2 * len(times) else None


def usual_distance(times: pandas.DatetimeIndex) -> str | None:
    """The most frequent time between sorted times, as `dataset.freq` takes it: a hint."""
    apart = times.to_series().diff().dropna()
    if not len(apart):
        return None
    if pandas.Timedelta("27D") < apart.median() < pandas.Timedelta("32D"):
        return "M"
    return str(to_offset(apart.mode().iloc[0]).freqstr)


def offset_of(times: pandas.DatetimeIndex, freq: str) -> pandas.DateOffset | None:
    """What leads from one time to the next: the first plus n of it is time n of the regular steps. None where times
    stand elsewhere in each step."""
    count, unit = count_and_unit(freq)
    if unit in _OF_MONTHS:
        offset = _month_offset(times)
        return None if offset is None else count * _OF_MONTHS[unit] * offset
    if unit not in ("W", "B"):
        step = pandas.Timedelta(to_offset(freq))
        return to_offset(step) if not ((times - times[0]) % step).any() else None
    offset = to_offset(f"{count}B") if unit == "B" else pandas.DateOffset(days=7 * count)
    with quietly():
        steps = times.to_period(freq).astype("int64")
        return offset if _lie_on(times, (steps - steps[0]) // count, offset) else None


def _month_offset(times: pandas.DatetimeIndex) -> pandas.DateOffset | None:
    """What whole months lie between the times: ends, beginnings, last or first business days, or the same day of a
    month (of a 31st, the last day of shorter ones); None where there is no such."""
    months = (times.year - times[0].year) * 12 + times.month - times[0].month
    offsets = (*map(to_offset, ("ME", "MS", "BME", "BMS")), pandas.DateOffset(months=1))
    return next((offset for offset in offsets if _lie_on(times, months, offset)), None)


def _lie_on(times: pandas.DatetimeIndex, counts: pandas.Index, offset: pandas.DateOffset) -> bool:
    return all(times[0] + int(count) * offset == time for count, time in zip(counts, times, strict=True))


def date_features(start: str, freq: str, steps: int) -> NDArray[np.float32]:
    """(steps, D) float32 in −1…1: cosine and sine of GluonTS's time features of the frequency; D is 0 for one that has
    none."""
    with quietly():
        from gluonts.time_feature import time_features_from_frequency_str

        index = pandas.period_range(start=pandas.Period(start, freq=freq), periods=steps, freq=freq)
        try:
            found = time_features_from_frequency_str(freq)
        except RuntimeError:  # finer than seconds
            found = []
        features = [feature(index) for feature in found]
    angles = 2 * np.pi * np.array(features, dtype=np.float64).reshape(len(features), steps).T
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def lags_of(freq: str) -> tuple[int, ...]:
    """The lags of a frequency, in steps; (1,) for one that has none. Of several hours: a day and a week; of minutes
    those of `LAGS`, and where they do not reach a day, a day and a week."""
    count, unit = count_and_unit(freq)
    if unit == "h" and count > 1 and 24 % count == 0:
        return tuple(sorted({1, 24 // count, 168 // count}))
    lags = LAGS.get(unit, (1,))
    if unit == "min" and 1 < count < 30 and 1440 % count == 0:
        return (*lags, 1440 // count, 10080 // count)
    return lags


def season_of(lags: tuple[int, ...], freq: str, length: int) -> int:
    """The longest season of a frequency with these lags that a history of `length` steps has three of."""
    seasons = {5} if freq == "B" else set(lags)
    return max((season for season in seasons if 3 * season <= length), default=1)

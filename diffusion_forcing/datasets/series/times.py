"""Times as people write them, and the regular steps that they lie on: pandas' frequencies, lags, date features.

A column of times may be text in any form pandas reads, day or month first, with or without a zone, quarters, weeks, years, epochs; what is told
apart by nothing but the numbers is decided by which reading is the more regular. The time between steps is found between gaps too.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.errors import UserError, did_you_mean

INSTALL = "pip install 'diffusion-forcing[forecasting]'"
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
_OLD_UNITS = {"H": "h", "T": "min", "S": "s"}
_OLD_UNITS |= dict.fromkeys(("MS", "ME", "BM", "BME", "BMS", "CBMS", "CBME", "WOM", "LWOM"), "M")
_QUARTERS = {"QS", "BQS"}
_QUARTER_ENDS = {"Q", "QE", "BQ", "BQE"}
_YEARS = {"YS", "AS", "BYS", "BAS"}
_YEAR_ENDS = {"Y", "A", "YE", "BY", "BYE", "BA"}
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
DAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
_EPOCHS = ((1e8, 1e10, "s"), (1e11, 1e13, "ms"), (1e14, 1e16, "us"), (1e17, 1e19, "ns"))
"""Whole numbers between the two are seconds, … since 1970: the years 1973 to 2286."""


def parse_times(column: Any, *, day_first: bool | None = None, zone: str | None = None) -> Any:
    """A pandas column as times without a zone; ValueError where it holds none. What has no time stays without.

    Times of several offsets, as a zone with summer time has, are those of UTC. day_first: 3.4. is the third of April; None: whichever makes
    the times more regular. zone: whose local times they are, where they do not say; they are brought to UTC, so that no hour comes twice.
    """
    pandas = import_pandas()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if isinstance(column.dtype, pandas.PeriodDtype):
            return column.dt.to_timestamp()
        if pandas.api.types.is_bool_dtype(column.dtype):
            raise ValueError("truth values are no times")
        if pandas.api.types.is_numeric_dtype(column.dtype):
            return _from_numbers(column)
        if not pandas.api.types.is_datetime64_any_dtype(column.dtype):
            column = _from_text(column.astype("string").str.strip(), day_first)
        return _without_zone(column if zone is None else _in_zone(column, zone))


def _from_numbers(column: Any) -> Any:
    """Whole numbers as years, months (202401), days (20240131) or the time since 1970."""
    pandas = import_pandas()
    known = column.dropna()
    if not len(known) or (known % 1 != 0).any():
        raise ValueError("numbers are no times")
    low, high = float(known.min()), float(known.max())
    for first, last, form in ((1500, 2500, "%Y"), (150001, 250012, "%Y%m"), (15000101, 25001231, "%Y%m%d")):
        if first <= low and high <= last:
            return pandas.to_datetime(column.astype("Int64").astype("string"), format=form)
    for least, most, unit in _EPOCHS:
        if least <= low and high <= most:
            return pandas.to_datetime(column, unit=unit)
    raise ValueError(f"numbers such as {known.iloc[0]:g} are no times")


def _from_text(text: Any, day_first: bool | None) -> Any:
    pandas = import_pandas()
    known = text.dropna()
    if not len(known):
        raise ValueError("it is empty")
    if known.str.fullmatch(r"\d+").all():
        return _from_numbers(pandas.to_numeric(text))
    for pattern, form, behind in ((r"\d{4}-?W\d{2}", "%GW%V-%u", "-1"), (r"\d{4}-?M\d{1,2}", "%YM%m", "")):
        if known.str.fullmatch(pattern).all():
            return pandas.to_datetime(text.str.replace(r"-?([WM])", r"\1", regex=True) + behind, format=form)
    quarters = known.str.fullmatch(r"Q[1-4][ -/]*\d{4}").all()
    if quarters:
        text = text.str.replace(r"(Q[1-4])[ -/]*(\d{4})", r"\2\1", regex=True)
    if known.iloc[0][:4].isdigit() or day_first is False:
        return _read(text, dayfirst=False)
    if day_first:
        return _read(text, dayfirst=True)
    readings = []
    for first in (False, True):
        try:
            readings.append(_read(text, dayfirst=first))
        except (ValueError, TypeError, OverflowError) as error:
            failed = error
    if not readings:
        raise ValueError(str(failed))
    if len(readings) == 2 and known.str.match(r"\d+\.").all():
        readings.reverse()  # 3.4.2024 with points: the day first, where both are as regular
    return max(readings, key=_regularity)


def _read(text: Any, *, dayfirst: bool) -> Any:
    """`text` as pandas reads it: in one form, in ISO 8601's several, or each in its own; times of several offsets as UTC's."""
    pandas = import_pandas()
    failed: Exception | None = None
    for how in ({}, {"format": "ISO8601"}, {"format": "mixed"}):
        for utc in (False, True):
            try:
                found = pandas.to_datetime(text, dayfirst=dayfirst, utc=utc, **how)
            except (ValueError, TypeError, OverflowError) as error:
                failed = failed or error
                continue
            if pandas.api.types.is_datetime64_any_dtype(found.dtype):
                return found
    raise ValueError(str(failed))


def _regularity(times: Any) -> tuple[bool, float]:
    """Whether the times have a frequency, and the share of neighbours that are the most frequent distance apart."""
    ordered = times.dropna().drop_duplicates().sort_values()
    apart = ordered.diff().dropna()
    if not len(apart):
        return False, 0.0
    index = import_pandas().DatetimeIndex(_without_zone(ordered))
    return freq_of(index) is not None, float((apart == apart.mode().iloc[0]).mean())


def _in_zone(times: Any, zone: str) -> Any:
    """Local times of `zone` as UTC's; times that have a zone as they are."""
    if times.dt.tz is not None:
        return times
    try:
        return times.dt.tz_localize(zone, ambiguous="infer", nonexistent="shift_forward").dt.tz_convert("UTC")
    except KeyError:
        raise UserError(
            f"dataset.time_zone is '{zone}', which is no zone; give one such as Europe/Berlin or UTC"
        ) from None


def _without_zone(times: Any) -> Any:
    """Local times, or where a zone's clocks go back, so that an hour comes twice, those of UTC."""
    if times.dt.tz is None:
        return times
    local = times.dt.tz_localize(None)
    utc = times.dt.tz_convert("UTC").dt.tz_localize(None)
    return utc if (local - utc).nunique() > 1 else local


def date_features(start: str, freq: str, steps: int) -> NDArray[np.float32]:
    """(steps, D) float32 in −1…1: cosine and sine of GluonTS's time features of the frequency; D is 0 for one that has none."""
    pandas = import_pandas()
    from gluonts.time_feature import time_features_from_frequency_str

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas renames its frequencies
        index = pandas.period_range(start=pandas.Period(start, freq=freq), periods=steps, freq=freq)
        try:
            found = time_features_from_frequency_str(freq)
        except RuntimeError:  # finer than seconds
            found = []
        features = [feature(index) for feature in found]
    angles = 2 * np.pi * np.array(features, dtype=np.float64).reshape(len(features), steps).T
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def lags_of(freq: str) -> tuple[int, ...]:
    """The lags of a frequency, in steps; (1,) for one that has none. Of several hours: a day and a week; of minutes, those of METHOD, and
    where they do not reach a day, a day and a week."""
    count, unit = _taken_apart(freq)
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


def _taken_apart(freq: str) -> tuple[int, str]:
    """(15, 'min') of 15min; the unit as a period has it, without its anchor."""
    number = re.match(r"\d*", freq)
    assert number is not None
    unit = freq[number.end() :].split("-")[0]
    for units, one in ((_QUARTERS | _QUARTER_ENDS, "Q"), (_YEARS | _YEAR_ENDS, "Y")):
        if unit in units:
            unit = one
    return int(number[0] or 1), _OLD_UNITS.get(unit, unit)


def checked_freq(freq: str) -> str:
    """`freq` as pandas writes a period's; UserError for one it does not know."""
    pandas = import_pandas()
    unit, _, anchor = re.sub(r"^\d+", "", freq).partition("-")
    number = freq.removesuffix(f"{unit}-{anchor}" if anchor else unit)
    if unit in _QUARTERS and anchor in MONTHS:  # a quarter that begins in October ends in December
        unit, anchor = "Q", MONTHS[(MONTHS.index(anchor) + 2) % 12]
    elif unit in _YEARS and anchor in MONTHS:
        unit, anchor = "Y", MONTHS[MONTHS.index(anchor) - 1]
    else:
        for units, one in ((_QUARTERS | _QUARTER_ENDS, "Q"), (_YEARS | _YEAR_ENDS, "Y")):
            unit = one if unit in units else unit
    if unit in ("WOM", "LWOM"):
        anchor = ""
    name = number + _OLD_UNITS.get(unit, unit) + (f"-{anchor}" if anchor else "")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return str(pandas.Period("2000-01-03", freq=name).freqstr)
    except (ValueError, TypeError, AttributeError):
        known = ("min", "h", "D", "B", "W", "M", "Q", "Y")
        raise UserError(
            f"dataset.freq is '{freq}', which pandas does not know{did_you_mean(freq, known)}; "
            f"give the time between two steps, such as {', '.join(known)} or 30min"
        ) from None


def freq_of(times: Any) -> str | None:
    """The frequency of sorted, different times (a pandas index), as `checked_freq` takes it; None where it cannot be told."""
    if len(times) < 3:
        return None
    return import_pandas().infer_freq(times) or _freq_between_gaps(times)


def usual_distance(times: Any) -> str | None:
    """The most frequent time between sorted times, as `dataset.freq` takes it: a hint."""
    apart = times.to_series().diff().dropna()
    if not len(apart):
        return None
    days = apart.median() / import_pandas().Timedelta("1D")
    if 27 < days < 32:
        return "M"
    return str(import_pandas().tseries.frequencies.to_offset(apart.mode().iloc[0]).freqstr)


def _freq_between_gaps(times: Any) -> str | None:
    """The frequency of sorted times of which up to half are missing: business days, days, weeks, months, quarters, years, or the smallest
    distance where all are multiples of it."""
    pandas = import_pandas()
    apart = times.to_series().diff().dropna()
    smallest, day = apart.min(), pandas.Timedelta("1D")
    if smallest <= pandas.Timedelta(0):
        return None
    midnight = bool((times == times.normalize()).all())
    if midnight and smallest >= 28 * day and (times.day.nunique() == 1 or bool(times.is_month_end.all())):
        months = (times.year * 12 + times.month).to_series().diff().dropna()
        freq = {0: "Y-DEC", 3: "Q-DEC", 6: "Q-DEC", 9: "Q-DEC"}.get(int(np.gcd.reduce(months.astype(int))) % 12, "M")
    elif bool((apart % smallest != pandas.Timedelta(0)).any()):
        return None
    elif midnight and smallest == day:
        freq = "B" if bool((times.dayofweek < 5).all()) else "D"
    elif midnight and smallest == 7 * day:
        freq = f"W-{DAYS[times.dayofweek[0]]}"
    else:
        freq = str(pandas.tseries.frequencies.to_offset(smallest).freqstr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        steps = len(pandas.period_range(times[0], times[-1], freq=freq))
    return freq if steps <= 2 * len(times) else None


def import_pandas() -> Any:
    """pandas, and GluonTS looked for; UserError with what to install."""
    try:
        import pandas

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import gluonts.time_feature  # noqa: F401
    except ImportError as error:
        raise UserError(f"time series need {error.name}: {INSTALL}") from None
    return pandas

"""Times as people write them: text in any order of day and month, quarters, weeks, days of a year, compact stamps,
epochs, with or without a zone.

What nothing but the numbers tells apart is decided by which reading is the more regular. Nothing is guessed that a cell
does not hold: a time of day without a date, or a day without a year, is no time.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas
from dateutil import parser as dateutil
from numpy.typing import NDArray
from pandas.tseries.frequencies import to_offset

from diffusion_forcing.errors import UserError, did_you_mean

# -------------------------------------------------------------------------------------------------------- regular steps
# The regular steps that times lie on: pandas' frequencies, where in a step a time stands, lags, date features.
#
# The time between steps is found between gaps too.

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
    """Without warnings, such as those of pandas that it renames its frequencies."""
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


def breaks(times: pandas.DatetimeIndex, most: int = 3) -> str:
    """The first places where sorted times do not go on by their usual distance, as `from … to …`; "" without any."""
    apart = times.to_series().diff().dropna()
    low = high = apart.mode().iloc[0] if len(apart) else pandas.Timedelta(0)
    if usual_distance(times) == "M":
        low, high = pandas.Timedelta("28D"), pandas.Timedelta("31D")
    odd = np.flatnonzero(~apart.between(low, high))
    shown = [" to ".join(str(time).removesuffix(" 00:00:00") for time in times[at : at + 2]) for at in odd[:most]]
    more = f" and {len(odd) - most:,} more" if len(odd) > most else ""
    return f"from {', '.join(shown)}{more}" if shown else ""


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


# ------------------------------------------------------------------------------------------- times as people write them

Kind = Literal["text", "stamp", "epoch", "serial", "year"]
KINDS: tuple[Kind, ...] = ("text", "stamp", "epoch", "serial", "year")
"""Forms of a time, the surest first. serial: days since 1899, year 0 or 4713 BC: spreadsheets, MATLAB, Julian dates."""
CLOCK = r"(?:\d{1,2}(?::\d{2}){1,2}(?:\.\d+)?(?:\s*[AaPp]\.?[Mm]\.?)?|\d{1,2}\s*[AaPp]\.?[Mm]\.?)"
"""A time of day."""
NOT_TIMES = (ValueError, TypeError, OverflowError, AttributeError)
"""What `parse_times` raises where cells are not times."""
_STAMPS = {4: "%Y", 6: "%Y%m", 7: "%Y%j", 8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
_EPOCHS = ((1e8, 1e10, "s"), (1e11, 1e13, "ms"), (1e14, 1e16, "us"), (1e17, 1e19, "ns"))
"""Numbers between the two are seconds, … since 1970: the years 1973 to 2286."""
_SERIALS = ((20_000, 80_000, 25_569), (700_000, 800_000, 719_529), (2_400_000, 2_500_000, 2_440_587.5))
"""Numbers between the two are days; the third is 1970-01-01."""
_YEAR, _GAP = r"(?P<y>\d{4})", r"[-/., 年]*"
_WEEK = r"(?:KW|CW|WK|W|Week|Woche|Semaine|Sem|S|第)[-. ]*(?P<w>\d{1,2})[周週]?"
_QUARTER = r"(?:第?(?P<q>[1-4])(?:季度?|[QT](?![a-z]))|[QT](?P<q2>[1-4]))"
_FORMS = [
    re.compile(form, re.IGNORECASE)
    for form in (
        rf"{_YEAR}{_GAP}{_WEEK}(?:-?(?P<u>[1-7]))?",
        rf"{_WEEK}{_GAP}{_YEAR}",
        rf"{_WEEK}[/' -]+(?P<y2>\d{{2}})",
        rf"(?P<w>\d{{1,2}})\.? ?KW{_GAP}{_YEAR}",
        rf"(?P<w>\d{{1,2}})[/ -]{_YEAR} ?KW",
        rf"{_YEAR}{_GAP}{_QUARTER}",
        rf"{_QUARTER}{_GAP}{_YEAR}",
        rf"{_QUARTER}[/' -]*(?P<y2>\d{{2}})",
        rf"{_YEAR}-(?P<j>\d{{3}})",
        rf"{_YEAR}(?:[-/. ]?M|-)(?P<m>\d{{1,2}})",
        rf"{_YEAR}(?:/(?=\d{{1,2}}$)|\.(?=\d{{2}}$))(?P<m>\d{{1,2}})",
        rf"(?P<m>\d{{1,2}})(?:[/-]|(?<=\d{{2}})\.){_YEAR}",
        r"(?P<b>[A-Za-z]{3})[A-Za-z]*\.?[-' /]+(?P<y2>\d{2})",  # Jan-22, as Excel writes
    )
]
"""Weeks, quarters, days of a year and months, in forms that pandas does not read, or reads otherwise."""
_MONTH_NAMES = """jan ene gen янв sty|feb fév fev фев lut|mar mär mrz mrt мар|apr avr abr апр kwi|may mai mei mag мая май
    maj|jun juin giu июн cze|jul juil lug июл lip|aug aoû août ago авг sie|sep set сен wrz|oct okt out ott окт paź|nov ноя
    lis|dec dez déc dic дек gru"""
_MONTHS = {name: number for number, names in enumerate(_MONTH_NAMES.split("|"), start=1) for name in names.split()}
_MONTH = rf"(?i)(?<![^\W\d_])({'|'.join(sorted(_MONTHS, key=len, reverse=True))})[^\W\d_]*\.?"
_DAY_NAME = r"(?i)^(?:mo|tu|we|th|fr|sa|su|di|mi|do|so|пн|вт|ср|чт|пт|сб|вс)[a-zé]*\.?,?\s+"
_ZONE_NAMES = """UTC=+00:00 GMT=+00:00 BST=+01:00 CET=+01:00 MEZ=+01:00 CEST=+02:00 MESZ=+02:00
    EST=-05:00 EDT=-04:00 CDT=-05:00 MST=-07:00 MDT=-06:00 PST=-08:00 PDT=-07:00"""
_ZONES = dict(pair.split("=") for pair in _ZONE_NAMES.split())
_WORDS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"(\d)\s*[年月](?=\s*\d)", r"\1-"),
    (r"[年月日号]", " "),
    (r"(?<=\d)\s*[時时點点](?=\s*\d)", ":"),
    (r"[時时點点分秒]|\s*\([A-Z/ ]+\)$|\[\w+/\w+\]$", ""),
    (_DAY_NAME, ""),
    (_MONTH, lambda found: f"{datetime.date(2000, _MONTHS[found[1].lower()], 1):%b}"),
    (r"(\d)\.?\s+(?=[A-Z][a-z]{2}\b)", r"\1 "),
    (rf"\s({'|'.join(_ZONES)})$", lambda found: _ZONES[found[1]]),
    (r"^\s+|\s+$", ""),
)
"""Chinese dates, names of days and months of some languages and of zones, and what pandas reads in their place."""
_PLAIN = r"[+-]?\d+(?:[.,]\d+)?(?:[eE]\+?\d+)?"
_MIDNIGHT = r"([ T])24(?=:00(?::00)?(?:$|[^\d:]))"
_OFFSET = r"\s*(?:Z|[+-]\d{2}(?::?\d{2})?)$"


def is_time(cell: str) -> bool:
    """Whether one cell of text holds a date."""
    try:
        return any(map(str.isdigit, cell)) and parse_times(pandas.Series([cell]))[1] == "text"
    except NOT_TIMES:
        return False


def parse_times(column: pandas.Series, *, day_first: bool | None = None) -> tuple[pandas.Series, Kind]:
    """A pandas column as times, and what form they have; `NOT_TIMES` where it holds none. What has no time stays
    without.

    Times with offsets keep them where they are all the same, and are otherwise those of UTC; epochs are of UTC.
    day_first: 3.4. is the third of April; None: whichever makes the times more regular.
    """
    with quietly():
        if isinstance(column.dtype, pandas.PeriodDtype):
            return column.dt.to_timestamp(), "text"
        if pandas.api.types.is_datetime64_any_dtype(column.dtype):
            return column, "text"
        if pandas.api.types.is_bool_dtype(column.dtype):
            raise ValueError("truth values are not times")
        text = column.astype("string").str.strip()
        text = text.mask(text == "")
        known = text.dropna()
        if not len(known):
            raise ValueError("it is empty")
        if known.str.fullmatch(rf"{CLOCK}(?:\s*[-–]\s*{CLOCK})?").all():
            raise ValueError("it holds times of day without a date")
        if known.str.fullmatch(r"\d{1,2}[/-]\d{1,2}|\d{1,2}\.\d{1,2}\.").all():
            raise ValueError(f"'{known.iloc[0]}' has no year")
        for form in _FORMS:
            if all(map(form.fullmatch, known)):
                days = text.str.replace(form, _first_day, regex=True)
                return pandas.to_datetime(days), "stamp" if known.str.fullmatch(_PLAIN).all() else "text"
        text = text.str.replace(r"^(\d{8})[ T_-](\d{2}):?(\d{2}):?(\d{2})?$", r"\1\2\3\4", regex=True)
        if text.dropna().str.fullmatch(_PLAIN).all():
            return _from_numbers(text.str.replace(r"\.0+$", "", regex=True))
        return _from_text(text, day_first), "text"


def _first_day(found: re.Match[str]) -> str:
    """The first day of the week, quarter, month or day of a year that one of `_FORMS` matched."""
    part = found.groupdict()
    year = int(part.get("y") or pandas.to_datetime(part["y2"], format="%y").year)
    quarter = part.get("q") or part.get("q2")
    if part.get("w"):
        day = datetime.date.fromisocalendar(year, int(part["w"]), int(part.get("u") or 1))
    elif part.get("j"):
        day = datetime.date(year, 1, 1) + datetime.timedelta(days=int(part["j"]) - 1)
    elif part.get("b"):
        day = datetime.date(year, _MONTHS[part["b"].lower()], 1)
    else:
        day = datetime.date(year, 3 * int(quarter) - 2 if quarter else int(part["m"]), 1)
    return day.isoformat()


def _from_numbers(text: pandas.Series) -> tuple[pandas.Series, Kind]:
    """Digits as years, months (202401), days (20240131), hours, …, or as the time since an epoch."""
    known = text.dropna()
    widths = known.str.len().unique()
    if len(widths) == 1 and widths[0] in _STAMPS and known.str.isdigit().all():
        try:
            times = _with_24_hours(
                text, r"(^\d{8})24(?=(?:00){0,2}$)", partial(pandas.to_datetime, format=_STAMPS[widths[0]])
            )
            if times.dt.year.between(1500, 2500)[times.notna()].all():
                return times, "year" if widths[0] == 4 else "stamp"
        except ValueError:
            pass
    numbers = pandas.to_numeric(text, errors="coerce").astype("float64")
    low, high = numbers.min(), numbers.max()
    for least, most, unit in _EPOCHS:
        if least <= low and high <= most:
            exact = pandas.to_numeric(text) if known.str.isdigit().all() else numbers
            return pandas.to_datetime(exact, unit=unit, utc=True), "epoch"
    for least, most, origin in _SERIALS:
        if least <= low and high <= most:
            return pandas.to_datetime(numbers - origin, unit="D").dt.round("s"), "serial"
    fraction = numbers.dropna() % 1 > 0
    if low >= 1500 and high <= 2500 and fraction.any():
        raise ValueError(f"years with a fraction such as {known[fraction[fraction].index[0]]}")
    raise ValueError(f"numbers such as {known.iloc[0]} are not times")


def _with_24_hours(text: pandas.Series, late: str, read: Callable[[pandas.Series], pandas.Series]) -> pandas.Series:
    """`text` as times; where it matches `late`, the hour 24 is the next day's first."""
    midnight = text.str.contains(late).fillna(False).astype("int64")
    times = read(text.str.replace(late, r"\g<1>00", regex=True))
    return times + pandas.to_timedelta(midnight, unit="D") if midnight.any() else times


def _from_text(written: pandas.Series, day_first: bool | None) -> pandas.Series:
    text = written
    if re.search(r"[^\W\d_]", "".join(text.dropna().head(400))):
        for pattern, word in _WORDS:
            text = text.str.replace(pattern, word, regex=True)  # type: ignore[arg-type]
    text = _starts(text).str.replace(r"(?<=[\d,] )(\d{1,2})\.(\d{2})(?:\.(\d{2}))?$", r"\1:\2", regex=True)
    known = text.dropna()
    for cell in {known.iloc[0], known.iloc[len(known) // 2], known.iloc[-1]}:
        if _is_incomplete(cell):
            raise ValueError(f"'{cell}' has no year")
    year_first = known.iloc[0][:4].isdigit()
    orders = [False] if year_first else [False, True] if day_first is None else [day_first]
    readings: list[pandas.Series] = []
    for options in ({}, {"format": "ISO8601"}, {"format": "mixed"}):  # one form, several of ISO 8601, each its own
        for first in orders if not readings else ():
            with contextlib.suppress(*NOT_TIMES):
                readings.append(_with_24_hours(text, _MIDNIGHT, partial(_read, dayfirst=first, **options)))
    if not readings:
        raise ValueError(f"'{written.dropna().iloc[0]}' is not a date")
    if len(readings) == 2 and known.str.match(r"\d+\.").all():
        readings.reverse()  # 3.4.2024 with points: the day first, where both are as regular
    return max(readings, key=_regularity)


def _starts(text: pandas.Series) -> pandas.Series:
    """Where cells are intervals, when they begin."""
    known = text.dropna()
    for pattern in (
        r"(\S.*?\d)\s+[-–—]\s+(\d.*)",
        r"(\d{4}-\d{2}-\d{2}[^/]*)/(\d{4}-.*)",
        r"[\[(](\d[^,]*),\s*(\d.*)[\])]",
        rf"(\S.*\d\s+{CLOCK})\s*[-–]\s*({CLOCK})",
    ):
        parts = known.str.extract(f"^{pattern}$")
        offsets = parts[1].nunique() <= 2 and len(known) > 2  # 00:00-05:00 is an hour of a zone
        if parts.notna().all(axis=None) and not offsets:
            return text.str.replace(f"^{pattern}$", r"\1", regex=True)
    return text


def _is_incomplete(cell: str) -> bool:
    """Whether a year or a month would be filled in."""
    found = []
    for default in (datetime.datetime(1904, 1, 1), datetime.datetime(1988, 5, 1)):
        try:
            found.append(dateutil.parse(cell, default=default))
        except (ValueError, OverflowError, TypeError):
            return False
    return found[0].year != found[1].year or found[0].month != found[1].month


def _read(text: pandas.Series, **options: Any) -> pandas.Series:
    """`text` as pandas reads it with these options; `NOT_TIMES` where it does not."""
    with contextlib.suppress(*NOT_TIMES):
        found = pandas.to_datetime(text, **options)
        if pandas.api.types.is_datetime64_any_dtype(found.dtype):
            return found
    # Of several offsets: days and longer steps are those of the clocks on the wall.
    found = pandas.to_datetime(text, utc=True, **options)
    wall = pandas.to_datetime(text.str.replace(_OFFSET, "", regex=True), **options)
    return wall if _is_daily(wall) else found


def _regularity(times: pandas.Series) -> tuple[bool, float]:
    """Whether the times have a frequency, and the share of neighbours that are the most frequent distance apart."""
    ordered = times.dropna().drop_duplicates().sort_values()
    apart = ordered.diff().dropna()
    if not len(apart):
        return False, 0.0
    index = pandas.DatetimeIndex(ordered.dt.tz_localize(None))
    return freq_of(index) is not None, float((apart == apart.mode().iloc[0]).mean())


def _is_daily(times: pandas.Series) -> bool:
    """Whether all times stand at the same time of day."""
    known = times.dropna()
    return bool(known.dt.tz is None and (known - known.dt.normalize()).nunique() <= 1)


def to_naive(
    times: pandas.Series, zone: str | None, again: pandas.Series
) -> tuple[pandas.Series, str | None, list[str]]:
    """Times without a zone, the zone that brings them back if they are UTC's, and lines about hours that clocks repeat
    or skip.

    zone: whose local times they are, where they do not say. again: which rows come a second time, as the hour does when
    clocks go back; one that comes once is taken as the first. An hour that clocks skip has no time. Times of a zone
    whose clocks change become UTC's, unless they are days.
    """
    if times.dt.tz is not None:
        local = times.dt.tz_localize(None)
        utc = times.dt.tz_convert("UTC").dt.tz_localize(None)
        own = str(times.dt.tz)
        if own == "UTC":
            return local, zone or "UTC", []
        if _is_daily(local) or (local - utc).nunique() <= 1:
            return local, None, []
        return utc, own, []
    if zone is None or _is_daily(times):
        return times, None, []
    try:
        local = times.dt.tz_localize(zone, ambiguous=(~again).to_numpy(), nonexistent="NaT")
        other = times.dt.tz_localize(zone, ambiguous=again.to_numpy(), nonexistent="NaT")
    except KeyError:
        raise UserError(
            f"dataset.time_zone is '{zone}', which is not a zone; give one such as Europe/Berlin or UTC"
        ) from None
    notes, repeated = [], local.notna() & (local != other)
    alone = times[repeated & ~times.isin(times[again])]
    if len(alone):
        notes.append(f"{alone.iloc[0]} comes once where {zone}'s clocks go back; taken as the first of the two")
    skipped = times[local.isna() & times.notna()]
    if len(skipped):
        notes.append(f"{len(skipped)} rows at a time that {zone}'s clocks skip, first {skipped.iloc[0]}")
    return local.dt.tz_convert("UTC").dt.tz_localize(None), zone, notes


def joined(dates: pandas.Series, clock: pandas.Series, *, named: bool) -> pandas.Series | None:
    """Days with the times of day of another column: text, or where the column is `named` so whole hours or 0 … 2359.
    None where it holds none."""
    text = clock.astype("string").str.strip().str.replace(r"\s*[-–].*$", "", regex=True)
    known = text.dropna()
    if len(known) < len(text):
        return None
    hours = text.str.replace(r"(?i)\s*(?:h|hrs?|uhr|[时時点點])\.?$", "", regex=True)
    if hours.str.fullmatch(r"\d{1,4}(\.0+)?").all() and (named or (hours != text).all()):
        numbers = pandas.to_numeric(hours).astype("float64")
        if numbers.max() == 25:
            raise UserError(
                f"column '{clock.name}' counts 25 hours in a day; write the times of UTC, or those of the clock"
            )
        if numbers.max() > 24:
            numbers = numbers // 100 + numbers % 100 / 60
        return dates + pandas.to_timedelta(numbers * 60, unit="min").dt.round("s") if numbers.max() <= 24 else None
    if not known.str.fullmatch(CLOCK).all():
        return None
    late = text.str.match("24:00")
    day = pandas.to_datetime("2000-01-01 " + text.mask(late, "00:00"), format="mixed")
    return dates + (day - pandas.Timestamp("2000-01-01")) + pandas.to_timedelta(late.astype("int64"), unit="D")

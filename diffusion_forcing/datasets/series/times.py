"""Times as people write them: text in any order of day and month, quarters, weeks, compact stamps, epochs, years, with
or without a zone.

What nothing but the numbers tells apart is decided by which reading is the more regular. Nothing is guessed that a cell
does not hold: a time of day without a date, or a day without a year, is no time.
"""

from __future__ import annotations

import re
import warnings
from typing import Any, Literal

import pandas
from dateutil import parser as dateutil

from diffusion_forcing.datasets.series.steps import freq_of
from diffusion_forcing.errors import UserError

Kind = Literal["text", "stamp", "epoch", "serial", "year"]
KINDS: tuple[Kind, ...] = ("text", "stamp", "epoch", "serial", "year")
"""Forms of a time, the surest first. serial: days since 1899, as spreadsheets count them."""
CLOCK = r"(?:\d{1,2}(?::\d{2}){1,2}(?:\.\d+)?(?:\s*[AaPp]\.?[Mm]\.?)?|\d{1,2}\s*[AaPp]\.?[Mm]\.?)"
"""A time of day."""
_STAMPS = {4: "%Y", 6: "%Y%m", 8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
_EPOCHS = ((1e8, 1e10, "s"), (1e11, 1e13, "ms"), (1e14, 1e16, "us"), (1e17, 1e19, "ns"))
"""Numbers between the two are seconds, … since 1970: the years 1973 to 2286."""
_SERIALS = (20_000, 80_000)
_FORMS = (
    (r"(\d{4})-?W(\d{1,2})", r"\1-\2-1", "%G-%V-%u"),
    (r"(\d{4})-?W(\d{1,2})-?([1-7])", r"\1-\2-\3", "%G-%V-%u"),
    (r"(\d{4})[-/. ]?M(\d{1,2})", r"\1-\2", "%Y-%m"),
    (r"(\d{4})(?:/(?=\d{1,2}$)|\.(?=\d{2}$))(\d{1,2})", r"\1-\2", "%Y-%m"),
    (r"(\d{1,2})(?:[/-]|(?<=\d{2})\.)(\d{4})", r"\2-\1", "%Y-%m"),
    (r"([A-Za-z]{3})[A-Za-z]*\.?[-' /]+(\d{2})", r"\1-\2", "%b-%y"),  # Jan-22, as Excel writes
    (r"(\d{8})[ T_-](\d{2}):?(\d{2})(?::?(\d{2}))?", r"\1\2\3", "%Y%m%d%H%M"),
)
"""Forms that pandas does not read, or reads otherwise."""
_MONTH_NAMES = """mär:mar mrz:mar mai:may okt:oct dez:dec janv:jan févr:feb avr:apr juin:jun juil:jul août:aug déc:dec
    ene:jan abr:apr ago:aug dic:dec"""
_MONTHS = dict(pair.split(":") for pair in _MONTH_NAMES.split())
_ZONE_NAMES = """UTC=+00:00 GMT=+00:00 BST=+01:00 CET=+01:00 MEZ=+01:00 CEST=+02:00 MESZ=+02:00
    EST=-05:00 EDT=-04:00 CDT=-05:00 MST=-07:00 MDT=-06:00 PST=-08:00 PDT=-07:00"""
_ZONES = dict(pair.split("=") for pair in _ZONE_NAMES.split())
_PLAIN = r"[+-]?\d+(?:[.,]\d+)?"
_OFFSET = r"\s*(?:Z|[+-]\d{2}(?::?\d{2})?)$"


def is_time(cell: str) -> bool:
    """Whether one cell of text holds a date."""
    try:
        return any(map(str.isdigit, cell)) and parse_times(pandas.Series([cell]))[1] == "text"
    except (ValueError, TypeError, OverflowError):
        return False


def parse_times(column: pandas.Series, *, day_first: bool | None = None) -> tuple[pandas.Series, Kind]:
    """A pandas column as times, and what form they have; ValueError where it holds none. What has no time stays
    without.

    Times with offsets keep them where they are all the same, and are otherwise those of UTC; epochs are of UTC.
    day_first: 3.4. is the third of April; None: whichever makes the times more regular.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
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
        if known.str.fullmatch(CLOCK).all() or known.str.fullmatch(rf"{CLOCK}\s*[-–]\s*{CLOCK}").all():
            raise ValueError("it holds times of day without a date")
        if known.str.fullmatch(r"\d{1,2}[/-]\d{1,2}|\d{1,2}\.\d{1,2}\.").all():
            raise ValueError(f"'{known.iloc[0]}' has no year")
        for pattern, written, form in _FORMS:
            if known.str.fullmatch(pattern).all():
                times = _with_24_hours(_english(text).str.replace(f"^{pattern}$", written, regex=True), form)
                return times, "stamp" if known.str.fullmatch(_PLAIN).all() else "text"
        if known.str.fullmatch(_PLAIN).all():
            return _from_numbers(text.str.replace(r"\.0+$", "", regex=True))
        return _from_text(text, day_first), "text"


def _from_numbers(text: pandas.Series) -> tuple[pandas.Series, Kind]:
    """Digits as years, months (202401), days (20240131), hours, …, or as the time since 1970 or 1899."""
    known = text.dropna()
    widths = known.str.len().unique()
    if len(widths) == 1 and widths[0] in _STAMPS and known.str.isdigit().all():
        try:
            times = _with_24_hours(text, _STAMPS[widths[0]])
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
    if _SERIALS[0] <= low and high <= _SERIALS[1]:
        return pandas.to_datetime(numbers, unit="D", origin="1899-12-30").dt.round("s"), "serial"
    raise ValueError(f"numbers such as {known.iloc[0]} are not times")


def _with_24_hours(text: pandas.Series, form: str) -> pandas.Series:
    """`text` of one form; the hour 24 is the next day's first."""
    late = text.str.fullmatch(r"\d{8}24(0000|00)?").fillna(False)
    times = pandas.to_datetime(text.mask(late, text.str.replace(r"^(\d{8})24", r"\g<1>00", regex=True)), format=form)
    return times + pandas.to_timedelta(late.astype("int64"), unit="D") if late.any() else times


def _english(text: pandas.Series) -> pandas.Series:
    """Months of some languages in English, Chinese dates with dashes, zones as offsets, no names of days."""
    sample = "".join(text.dropna().head(400))
    if re.search(r"[^\W\d_]", sample):
        text = text.str.replace(r"(\d)\s*[年月](?=\s*\d)", r"\1-", regex=True).str.replace(
            r"[年月日号]", " ", regex=True
        )
        text = (
            text.str.replace(r"(?<=\d)\s*[时時点](?=\s*\d)", ":", regex=True)
            .str.replace(r"[时時点分秒]", "", regex=True)
            .str.strip()
        )
        text = text.str.replace(r"(?i)^(?:mo|tu|we|th|fr|sa|su|di|mi|do|so)[a-zé]*\.?,?\s+", "", regex=True)
        months = "|".join(_MONTHS)
        text = text.str.replace(rf"(?i)\b({months})[^\W\d]*\.?", lambda found: _MONTHS[found[1].lower()], regex=True)
        text = text.str.replace(r"\s*\([A-Z/ ]+\)$", "", regex=True)
        text = text.str.replace(rf"\s({'|'.join(_ZONES)})$", lambda found: _ZONES[found[1]], regex=True)
    return text


def _from_text(text: pandas.Series, day_first: bool | None) -> pandas.Series:
    text = _starts(_english(text))
    quarters = text.str.extract(r"^(?:(\d{4})[-/. ]*Q([1-4])|Q([1-4])[-/. ]*(\d{4}))$")
    if quarters.notna().any(axis=1)[text.notna()].all():
        years, quarter = quarters[0].fillna(quarters[3]), quarters[1].fillna(quarters[2])
        return pandas.to_datetime(years + "-" + (3 * pandas.to_numeric(quarter) - 2).astype("string"), format="%Y-%m")
    known = text.dropna()
    for cell in {known.iloc[0], known.iloc[len(known) // 2], known.iloc[-1]}:
        if _is_incomplete(cell):
            raise ValueError(f"'{cell}' has no year")
    late = text.str.contains(r"[ T]24:00(?::00)?(?=$|[^\d:])").fillna(False)
    if late.any():
        text = text.mask(late, text.str.replace(r"([ T])24:00", r"\g<1>00:00", regex=True))
    times = _in_either_order(text, known, day_first)
    return times + pandas.to_timedelta(late.astype("int64"), unit="D") if late.any() else times


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
    import datetime

    found = []
    for default in (datetime.datetime(1904, 1, 1), datetime.datetime(1988, 5, 1)):
        try:
            found.append(dateutil.parse(cell, default=default))
        except (ValueError, OverflowError, TypeError):
            return False
    return found[0].year != found[1].year or found[0].month != found[1].month


def _in_either_order(text: pandas.Series, known: pandas.Series, day_first: bool | None) -> pandas.Series:
    if known.iloc[0][:4].isdigit() or day_first is not None:
        return _read(text, dayfirst=bool(day_first) and not known.iloc[0][:4].isdigit())
    readings: list[Any] = []
    failed: Exception = ValueError()
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


def _read(text: pandas.Series, *, dayfirst: bool) -> pandas.Series:
    """`text` as pandas reads it: in one form, in ISO 8601's several, or each in its own."""
    failed: Exception | None = None
    for options in ({}, {"format": "ISO8601"}, {"format": "mixed"}):
        for utc in (False, True):
            try:
                found = pandas.to_datetime(text, dayfirst=dayfirst, utc=utc, **options)
            except (ValueError, TypeError, OverflowError) as error:
                failed = failed or error
                continue
            if not pandas.api.types.is_datetime64_any_dtype(found.dtype):
                continue
            if utc:  # of several offsets: days and longer steps are those of the clocks on the wall
                wall = pandas.to_datetime(text.str.replace(_OFFSET, "", regex=True), dayfirst=dayfirst, **options)
                return wall if _is_daily(wall) else found
            return found
    raise ValueError(str(failed))


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
    if known.str.fullmatch(r"\d{1,4}(\.0+)?").all() and named:
        numbers = pandas.to_numeric(text).astype("float64")
        if numbers.max() > 24:
            numbers = numbers // 100 + numbers % 100 / 60
        return dates + pandas.to_timedelta(numbers * 60, unit="min").dt.round("s") if numbers.max() <= 24 else None
    if not known.str.fullmatch(CLOCK).all():
        return None
    late = text.str.match("24:00")
    day = pandas.to_datetime("2000-01-01 " + text.mask(late, "00:00"), format="mixed")
    return dates + (day - pandas.Timestamp("2000-01-01")) + pandas.to_timedelta(late.astype("int64"), unit="D")

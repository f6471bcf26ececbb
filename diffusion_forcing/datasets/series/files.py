"""A CSV or Parquet file of time series, as people and programs write them, becomes a `Table`. Nothing is filled in.

Cells are read as text (`text.py`), the column of times is chosen (`times.py`), the others become numbers by marks that
are decided for the whole file (`numbers.py`). What was left out, and what was in doubt, is a line each in
`Table.notes`; what is wrong names the column and the cell.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from numpy.typing import NDArray

from diffusion_forcing.datasets.parquet import read_table
from diffusion_forcing.datasets.series.numbers import Decimal, is_missing, read_numbers
from diffusion_forcing.datasets.series.steps import freq_of
from diffusion_forcing.datasets.series.table import Table, regular
from diffusion_forcing.datasets.series.text import read_text
from diffusion_forcing.datasets.series.times import KINDS, NOT_TIMES, Kind, is_time, joined, parse_times, to_naive
from diffusion_forcing.errors import UserError, did_you_mean, first_line
from diffusion_forcing.limits import reading

SAMPLE = 50
"""Cells of a column that say whether it may hold times."""
MOSTLY = 0.5
"""Share of cells that are numbers, above which a column is one of numbers with something wrong in it, and not one of
words."""
_WORDS = """
    date datetime time timestamp ts t ds day month year quarter week period when utc unix epoch mtu hour hours hr
    datum zeit zeitstempel uhrzeit tag monat jahr quartal woche stunde fecha hora data ora heure jour mois année
    日期 时间 时刻 年 月 日 时 年份 月份"""
TIME_WORDS = frozenset(_WORDS.split())
ROW_WORDS = frozenset(
    ["index", "idx", "id", "row", "rownum", "nr", "no", "no.", "#", "level_0", "序号", "编号", "行号"]
)
PARTS = {
    "-": frozenset(["month", "monat", "mon", "mo", "mes", "mois", "period", "месяц", "月", "月份"]),
    "-Q": frozenset(["quarter", "quartal", "qtr", "trimestre", "季度"]),
    "-W": frozenset(["week", "woche", "kw", "wk", "semaine", "semana", "周"]),
    "-D": frozenset(["doy", "yday", "jday", "julian", "jd", "dayofyear"]),
}
"""Columns that say more of a year, and what stands between. D: the day of the year."""
DAYS = frozenset(["day", "tag", "dom", "dy", "jour", "dia", "日"])
HOURS = frozenset(["hour", "hours", "hr", "he", "stunde", "uhrzeit", "time", "heure", "hora", "时"])
CALENDAR = ("year", "month", "day", "hour", "minute", "quarter", "dayofweek", "dayofyear")
CALENDAR_WORDS = TIME_WORDS | {"weekday", "dow", "dayofweek", "doy", "minute", "wochentag", "kw", "season", "星期"}
"""Names of columns that repeat a part of the time, and hold nothing to forecast."""
_UNNAMED = re.compile(r"column_\d+|Unnamed: \d+(\.\d+)*")
MINUTES = frozenset(["minute", "minutes", "min", "mn"])


def read_file(
    path: str | Path,
    *,
    freq: str | None,
    time_column: str | None = None,
    series_column: str | None = None,
    value_column: str | None = None,
    columns: tuple[str, ...] = (),
    leave_out: tuple[str, ...] = (),
    day_first: bool | None = None,
    time_zone: str | None = None,
    decimal: Decimal | None = None,
) -> Table:
    """The table in `path`: wide (a column of times, a column a series) or, with `series_column` and `value_column`,
    long (a row an observation). time_column: null is the one that most surely holds times. columns: the series to take;
    none named: all that are numbers, but for `leave_out`. day_first, time_zone: as for `parse_times` and `to_naive`.
    decimal: null is what the file's numbers prove."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"dataset.path {file} does not exist; give a CSV or Parquet file")
    if bool(series_column) != bool(value_column):
        raise UserError("a long table needs both dataset.series_column and dataset.value_column")
    with reading(file, "give a CSV or Parquet file"):
        frame, separator, notes = _frame(file)
        table = _Cells(file, frame, notes, day_first)
        keys = [table.column(series_column, "series_column")] if series_column else []
        named = [table.column(value_column, "value_column")] if value_column else []
        time, times = table.times(time_column, keys, named)
        frame = table.frame
        if times.iloc[0] > times.iloc[-1]:  # the newest first
            frame, times = frame[::-1].reset_index(drop=True), times[::-1].reset_index(drop=True)
        again = pandas.DataFrame({"time": times, "series": frame[keys[0]] if keys else ""}).duplicated()
        dotted = bool(frame[time].astype("string").str.match(r"\d{1,2}\.\d{1,2}\.").fillna(False).any())
        times, zone, more = to_naive(times, time_zone, again)
        notes += more
        table.frame = frame = frame[times.notna()].reset_index(drop=True)
        times = times[times.notna()].reset_index(drop=True)

        rest = [name for name in frame.columns if name not in table.used]
        if columns and not keys:
            named = [table.column(name, "columns", rest) for name in columns]
        elif not keys:
            leave_out_checked(leave_out, rest)
        chosen = named or [name for name in rest if name not in leave_out]
        others = [frame[name] for name in rest if name not in chosen]
        numbers = functools.partial(
            read_numbers, others=others, separator=separator, dotted_dates=dotted, decimal=decimal
        )
        wide = table.numbers(chosen, times, numbers, named=bool(named))
        if keys:
            names = frame[keys[0]].astype("string").fillna("")
            if (names == "").any():
                notes.append(f"left out: {int((names == '').sum())} rows without a name in '{keys[0]}'")
            wide = wide.assign(series=names.to_numpy(), time=times.to_numpy())[(names != "").to_numpy()]
            table.check_once(wide.duplicated(["time", "series"]), wide["time"], chosen)
            wide = wide.pivot(index="time", columns="series", values=named[0])
            leave_out_checked(leave_out, list(wide.columns))
            kept = [table.column(name, "columns", list(wide.columns)) for name in columns] or list(wide.columns)
            wide = wide[[name for name in kept if name not in leave_out]]
        else:
            table.check_once(times.duplicated(), times, chosen)
            wide = wide.set_axis(pandas.DatetimeIndex(times))
        wide = wide.sort_index()
        if freq is None and freq_of(wide.index) is None:
            wide = wide[wide.notna().any(axis=1)]  # rows without a value may hide the rhythm
        return regular(wide, freq, str(file), zone=zone, notes=tuple(notes))


def typed(option: str, value: str, *, many: bool = True) -> str:
    """`dataset.columns=[value]` (many) or `dataset.time_column=value` as one types it in a shell, quoted where it must
    be."""
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value) and value.lower() not in ("null", "true", "false", "nan", "inf"):
        return f"{option}=[{value}]" if many else f"{option}={value}"
    inner = '"' + value.replace('"', '\\"') + '"'
    return shlex.quote(f"{option}=[{inner}]" if many else f"{option}={inner}")


def leave_out_checked(leave_out: tuple[str, ...], names: list[str]) -> None:
    """UserError where `leave_out` names what is not a series, or all of them."""
    for name in leave_out:
        if name not in names:
            raise UserError(f"dataset.leave_out names '{name}', which is not a series{did_you_mean(name, names)}")
    if names and not set(names) - set(leave_out):
        raise UserError("dataset.leave_out names every series; keep at least one")


def _frame(file: Path) -> tuple[pandas.DataFrame, str, list[str]]:
    """The file as text (Parquet: as it was written), what separates its cells, and what was left out."""
    if file.suffix.lower() in (".xlsx", ".xls", ".ods"):
        raise UserError(f"{file} is a spreadsheet; save it as CSV, and give that")
    if file.suffix.lower() in (".parquet", ".pq"):
        frame, separator, notes = read_table(file).to_pandas(), ",", list[str]()
        if frame.index.name or not isinstance(frame.index, pandas.RangeIndex):
            frame = frame.reset_index()
        frame.columns = [" ".join(map(str, name)) if isinstance(name, tuple) else str(name) for name in frame.columns]
        frame = frame.reset_index(drop=True)
    else:
        frame, separator, notes = read_text(file)
    if not len(frame) or not len(frame.columns):
        raise UserError(f"{file} is empty; give a table with a column of times and a row a time")
    if not frame.columns.is_unique:
        name = frame.columns[frame.columns.duplicated()][0]
        raise UserError(f"{file} has two columns with the name '{name[:80]}'; rename one")
    return frame, separator, notes


class _Cells:
    """The cells of a file. notes: a line for each thing that was left out or in doubt; used: columns that times and
    names are made of."""

    def __init__(self, file: Path, frame: pandas.DataFrame, notes: list[str], day_first: bool | None) -> None:
        self.file, self.frame, self.notes, self.day_first = file, frame, notes, day_first
        self.used: set[str] = set()

    def column(self, name: str, option: str, names: list[str] | None = None) -> str:
        """`name`, if there is such a column; UserError otherwise."""
        names = list(map(str, self.frame.columns)) if names is None else names
        if name not in names:
            raise UserError(
                f"{self.file} has no column '{name}' (dataset.{option}){did_you_mean(name, names)}; "
                f"it has {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"
            )
        return name

    def times(self, named: str | None, keys: list[str], values: list[str]) -> tuple[str, pandas.Series]:
        """The column of times, and the times, perhaps made of several columns."""
        frame, file = self.frame, self.file
        first, *others = frame.columns
        if _kind(pandas.Series([first])) and all(
            re.fullmatch(r"[+-]?\d+([.,]\d+)*|column_\d+", name) for name in others
        ):
            raise UserError(f"{file} has no line of names at its top; add one, such as time,a,b,c")
        if named:
            time = self.column(named, "time_column")
            kind: Kind = _kind(frame[time]) or "text"
        else:
            time, kind = self._time_column([name for name in frame.columns if name not in values])
            if kind != "text" and not _words(time) & TIME_WORDS:
                self.notes.append(
                    f"the times are the numbers of '{time}', read as {kind}s; dataset.time_column names another"
                )
        self.used = {time, *keys}

        def of(words: frozenset[str]) -> str | None:
            """Uses the first column with one of these words in its name."""
            name = next((name for name in frame.columns if name not in self.used and _words(name) & words), None)
            self.used |= {name} if name else set()
            return name

        def come_twice(times: pandas.Series) -> bool:
            return bool(frame.assign(time=times).duplicated(["time", *keys]).any())

        def text(name: str) -> pandas.Series:
            return _known(frame[name]).astype("string").str.replace(r"\.0+$", "", regex=True)

        # a year, and what other columns say of it
        cells = _known(frame[time])
        if kind == "year" and come_twice(cells):
            between, part = next(((mark, name) for mark, words in PARTS.items() if (name := of(words))), ("", None))
            if part:
                more = text(part).str.replace(r"^(?:Q|W|KW|M)[ .]*(?=\d)", "", regex=True)
                cells = text(time) + between.rstrip("D") + (more.str.zfill(3) if between == "-D" else more)
            if between == "-" and (day := of(DAYS)):
                cells = cells + "-" + text(day)
        try:
            times = parse_times(cells, day_first=self.day_first)[0]
        except NOT_TIMES:
            raise UserError(
                f"{file}: column '{time}' is not made of times ({_why_not(cells)}); name another with dataset.time_column"
            ) from None
        if times.isna().any():
            missing = int(times.isna().sum())
            raise UserError(f"{file}: column '{time}' has {missing} rows without a time; remove or complete them")

        # a day, and a time of day in other columns
        if times.dt.tz is None and (times == times.dt.normalize()).all() and come_twice(times):
            for name in [name for name in frame.columns if name not in self.used]:
                of_day = joined(times, _known(frame[name]), named=bool(_words(name) & HOURS))
                if of_day is not None:
                    self.used |= {name}
                    if come_twice(of_day) and (minute := of(MINUTES)):
                        of_day += pandas.to_timedelta(pandas.to_numeric(frame[minute]), unit="min")
                    return time, of_day
        return time, times

    def _time_column(self, names: list[str]) -> tuple[str, Kind]:
        """The column that most surely holds times: dates as text before numbers, names such as `date` before others,
        many times before few."""
        looks = {name: _known(self.frame[name].head(4 * SAMPLE)).dropna().head(SAMPLE) for name in names}
        firsts = {name: str(cells.iloc[0]) if len(cells) else "" for name, cells in looks.items()}
        numeric = {name for name, cell in firsts.items() if re.fullmatch(r"[+-]?\d*[.,]?\d+", cell)}
        kinds = {name: kind for name in names if name not in numeric and (kind := _kind(looks[name]))}
        if "text" not in kinds.values():
            for name in names:
                if name in numeric and re.fullmatch(r"\d{4,19}(\.\d+)?|\d\d\.\d{4}", firsts[name]):
                    kind = _kind(looks[name])
                    if kind and (kind != "serial" or _words(name) & TIME_WORDS):
                        kinds[name] = kind
        if kinds:
            sure = {
                name: (kind != "text", not _words(name) & TIME_WORDS, KINDS.index(kind), -self.frame[name].nunique())
                for name, kind in kinds.items()
            }
            best = min(sure, key=sure.__getitem__)
            return best, kinds[best]
        why = {name: _why_not(looks[name]) for name in names}
        near = [name for name in names if re.search("without a date|no year|in row", why[name])]
        first, rest = (near or names)[0], f", nor is any other of {len(names)}" if len(names) > 1 else ""
        hint = "write whole times, such as 2024-01-31 13:00" if near else "name the right one with dataset.time_column"
        if sum(_kind(pandas.Series([name])) is not None for name in names) > 0.5 * len(names):
            hint = "the times seem to be the names of the columns: write the table with a row a time"
        raise UserError(f"{self.file}: column '{first}' is not made of times ({why[first]}){rest}; {hint}")

    def numbers(
        self, names: list[str], times: pandas.Series, read: Callable[..., Any], *, named: bool
    ) -> pandas.DataFrame:
        """The columns among `names` that are series; UserError for one that nearly is, or that was `named` and is
        none."""
        found: dict[str, Any] = {}
        left: dict[str, str] = {}
        texts = {}
        for name in names:
            column = self.frame[name]
            is_typed = pandas.api.types.is_datetime64_any_dtype(column) or isinstance(column.dtype, pandas.PeriodDtype)
            if is_typed or (not named and _words(name) & TIME_WORDS and _kind(column) in ("text", "stamp", "epoch")):
                left[name] = "times"
            elif pandas.api.types.is_numeric_dtype(column):
                found[name] = column.astype("float64").to_numpy(na_value=np.nan)
            else:
                texts[name] = column.astype("string").astype(object)
        numbers, wrong, notes = read(texts)
        found |= numbers
        self.notes += notes
        for name, error in wrong.items():
            if named or not (error.share >= MOSTLY or _words(name) & {"id", "uuid", "guid", "hash"}):
                raise UserError(
                    f"{self.file} has a value that is not a number: '{error.cell}' in column '{name}' at "
                    f"{times.iloc[error.row]}; leave the cell empty where nothing is known, or the column out: "
                    f"{typed('dataset.leave_out', name)}"
                )
            left[name] = str(error)
        if not named:
            left |= {name: why for name, values in found.items() if (why := _why_no_series(name, values, times))}
        found = {name: found[name] for name in names if name in found and name not in left}
        # Columns that have no name and no value are not worth a word.
        said = [f"'{name}' ({why})" for name, why in left.items() if why != "no value" or not _UNNAMED.fullmatch(name)]
        if not any(np.isfinite(values).any() for values in found.values()):
            among = ", ".join(f"'{name}'" for name in names[:5]) or "its columns"
            reason = f" ({'; '.join(said[:3])})" if said else ""
            raise UserError(
                f"{self.file} has no column of numbers among {among}{reason}; name the series with dataset.columns"
            )
        if said:
            more = f" and {len(said) - 8} more" if len(said) > 8 else ""
            self.notes.insert(len(self.notes) - len(notes), f"left out: {', '.join(said[:8])}{more}")
        return pandas.DataFrame(found)

    def check_once(self, doubled: pandas.Series, times: pandas.Series, numbers: list[str]) -> None:
        """UserError where a time comes twice; it says what may be the matter."""
        if not doubled.any():
            return
        frame = self.frame
        values = [name for name in numbers if pandas.to_numeric(frame[name], errors="coerce").notna().any()]
        others = [name for name in frame.columns if name not in values]
        keys = [name for name in others if not frame.assign(time=times).duplicated(["time", name]).any()]
        advice = "keep one row a time, or name dataset.series_column and dataset.value_column of a long table"
        if doubled.mean() < 0.05 and (times.dt.normalize() != times).any():
            advice = "keep one row a time, or give dataset.time_zone=Europe/Berlin or another, where clocks go back"
        elif keys and values:
            advice = f"if this is a long table: {typed('dataset.series_column', keys[0], many=False)} "
            advice += typed("dataset.value_column", values[0], many=False)
        raise UserError(
            f"{self.file} has {int(doubled.sum())} duplicate times, first {times[doubled].iloc[0]}; {advice}"
        )


def _why_no_series(name: str, values: NDArray[np.float64], times: pandas.Series) -> str:
    """Why a column of numbers is not a series to forecast; "" where it is one."""
    words, unnamed = _words(name), bool(_UNNAMED.fullmatch(name))
    if not np.isfinite(values).any():
        return "no value"
    whole, steps = bool((values == np.floor(values)).all()), np.diff(values)
    in_order = len(np.unique(values)) == len(values) if unnamed else (steps > 0).all() or (steps < 0).all()
    if (unnamed or name.lower() in ROW_WORDS) and len(values) > 1 and whole and in_order:
        return "numbers of rows"
    if words & CALENDAR_WORDS:
        parts = [getattr(times.dt, part) for part in CALENDAR] + [times.dt.isocalendar().week]
        if any(np.array_equal(values, part + shift) for part in parts for shift in (0, 1)):
            return "part of the date"
    return "identities" if "id" in words and whole else ""


def _kind(cells: pandas.Series) -> Kind | None:
    try:
        return parse_times(_known(cells.head(SAMPLE)))[1]
    except NOT_TIMES:
        return None


def _why_not(cells: pandas.Series) -> str:
    """Why a column does not hold times: the first cell that is none behind some that are, or what it looks like."""
    known = cells.dropna()
    try:
        parse_times(known)
    except NOT_TIMES as error:
        if len(known) and is_time(str(known.iloc[0])):
            wrong = next((row for row, cell in known.head(100 * SAMPLE).items() if not is_time(str(cell))), None)
            if wrong is not None:
                return f"'{known[wrong]}' in row {wrong + 2}"
        return first_line(error)
    return "numbers such as these are not times"


def _known(cells: pandas.Series) -> pandas.Series:
    """Cells without the marks of a missing value."""
    return cells.mask(is_missing(cells)) if cells.dtype == object or pandas.api.types.is_string_dtype(cells) else cells


def _words(name: str) -> frozenset[str]:
    """The words of a column's name, in lower case."""
    lower = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    return frozenset(re.split(r"[\W_]+", lower.replace("day of year", "doy")))

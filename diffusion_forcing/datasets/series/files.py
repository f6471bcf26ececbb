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
from typing import Any, ParamSpec

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

Arguments = ParamSpec("Arguments")
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
MINUTES = frozenset(["minute", "minutes", "min", "mn"])


def _guarded(read: Callable[Arguments, Table]) -> Callable[Arguments, Table]:
    """`read`, whose first argument is a path, with a `UserError` for whatever it raises."""

    @functools.wraps(read)
    def guarded(*arguments: Arguments.args, **options: Arguments.kwargs) -> Table:
        with reading(Path(str(arguments[0])), "give a CSV or Parquet file"):
            return read(*arguments, **options)

    return guarded


@_guarded
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
    frame, separator, notes = _frame(file)
    series = _column(frame, series_column, "series_column", file) if series_column else None
    value = _column(frame, value_column, "value_column", file) if value_column else None

    # times
    time, times, used, more = _times(frame, time_column, [series] if series else [], value, file, day_first)
    notes += more
    if times.iloc[0] > times.iloc[-1]:  # the newest first
        frame, times = frame[::-1].reset_index(drop=True), times[::-1].reset_index(drop=True)
    keys = pandas.DataFrame({"time": times, "series": frame[series] if series else ""})
    dotted = bool(frame[time].astype("string").str.match(r"\d{1,2}\.\d{1,2}\.").fillna(False).any())
    times, zone, more = to_naive(times, time_zone, keys.duplicated())
    notes += more
    frame, times = frame[times.notna()].reset_index(drop=True), times[times.notna()].reset_index(drop=True)

    # numbers
    rest = [name for name in frame.columns if name not in used]
    if series and value:
        rest = [value]
    elif columns:
        rest = [_column(frame[rest], name, "columns", file) for name in columns]
    else:
        leave_out_checked(leave_out, rest)
        rest = [name for name in rest if name not in leave_out]
    others = [frame[name] for name in frame.columns if name not in used and name not in rest]
    wide, more = _numbers(
        frame[rest], others, times, separator, dotted, decimal, named=bool(columns or value), file=file
    )
    notes += more
    if series and value:
        unnamed = frame[series].astype("string").fillna("") == ""
        if unnamed.any():
            notes.append(f"left out: {int(unnamed.sum())} rows without a name in '{series}'")
        wide = wide.assign(series=frame[series].astype("string").to_numpy(), time=times.to_numpy())[~unnamed.to_numpy()]
        _check_once(wide.duplicated(["time", "series"]), wide["time"], frame, rest, file)
        wide = wide.pivot(index="time", columns="series", values=value)
        leave_out_checked(leave_out, list(wide.columns))
        chosen = [_column(wide, name, "columns", file) for name in columns] if columns else list(wide.columns)
        wide = wide[[name for name in chosen if name not in leave_out]]
    else:
        _check_once(times.duplicated(), times, frame, rest, file)
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
    try:
        if file.suffix.lower() in (".parquet", ".pq"):
            frame, separator, notes = read_table(file).to_pandas(), ",", list[str]()
            if frame.index.name or not isinstance(frame.index, pandas.RangeIndex):
                frame = frame.reset_index()
            frame.columns = [
                " ".join(map(str, name)) if isinstance(name, tuple) else str(name) for name in frame.columns
            ]
            frame = frame.reset_index(drop=True)
        else:
            frame, separator, notes = read_text(file)
    except UserError:
        raise
    except Exception as error:  # its libraries raise anything for a damaged file
        raise UserError(f"{file} cannot be read as a table ({first_line(error)}); give a CSV or Parquet file") from None
    if not len(frame) or not len(frame.columns):
        raise UserError(f"{file} is empty; give a table with a column of times and a row a time")
    if not frame.columns.is_unique:
        name = frame.columns[frame.columns.duplicated()][0]
        raise UserError(f"{file} has two columns with the name '{name[:80]}'; rename one")
    return frame, separator, notes


def _times(
    frame: pandas.DataFrame, named: str | None, keys: list[str], value: str | None, file: Path, day_first: bool | None
) -> tuple[str, pandas.Series, set[str], list[str]]:
    """The column of times, the times, all columns that they are made of, and a line where the column is in doubt."""
    first, *others = frame.columns
    if _kind(pandas.Series([first])) and all(re.fullmatch(r"[+-]?\d+([.,]\d+)*|column_\d+", name) for name in others):
        raise UserError(f"{file} has no line of names at its top; add one, such as time,a,b,c")
    if named:
        time = _column(frame, named, "time_column", file)
        kind: Kind = _kind(frame[time]) or "text"
    else:
        time, kind = _time_column([name for name in frame.columns if name != value], frame, file)
    cells, used = _known(frame[time]), {time, *keys}
    notes = []
    if not named and kind != "text" and not _words(time) & TIME_WORDS:
        notes.append(f"the times are the numbers of '{time}', read as {kind}s; dataset.time_column names another")

    def of(words: frozenset[str]) -> str | None:
        return next((name for name in frame.columns if name not in used and _words(name) & words), None)

    def comes_twice(times: pandas.Series) -> bool:
        return bool(frame.assign(time=times).duplicated(["time", *keys]).any())

    def text(name: str) -> pandas.Series:
        return _known(frame[name]).astype("string").str.replace(r"\.0+$", "", regex=True)

    # a year, and what other columns say of it
    if kind == "year" and comes_twice(cells):
        for between, words in PARTS.items():
            part = of(words)
            if part:
                more = text(part).str.replace(r"^(?:Q|W|KW|M)[ .]*(?=\d)", "", regex=True)
                cells = text(time) + between.rstrip("D") + (more.str.zfill(3) if between == "-D" else more)
                used |= {part}
                day = of(DAYS) if between == "-" else None
                if day:
                    cells, used = cells + "-" + text(day), used | {day}
                break
    try:
        times = parse_times(cells, day_first=day_first)[0]
    except NOT_TIMES:
        raise UserError(
            f"{file}: column '{time}' is not made of times ({_why_not(cells)}); name another with dataset.time_column"
        ) from None
    if times.isna().any():
        raise UserError(
            f"{file}: column '{time}' has {int(times.isna().sum())} rows without a time; remove or complete them"
        )

    # a day, and a time of day in another column
    if times.dt.tz is None and (times == times.dt.normalize()).all() and comes_twice(times):
        for name in [name for name in frame.columns if name not in used]:
            of_day = joined(times, _known(frame[name]), named=bool(_words(name) & HOURS))
            if of_day is not None:
                used |= {name}
                minute = of(MINUTES) if comes_twice(of_day) else None
                if minute:
                    of_day += pandas.to_timedelta(pandas.to_numeric(frame[minute]), unit="min")
                return time, of_day, used | {minute or name}, notes
    return time, times, used, notes


def _time_column(names: list[str], frame: pandas.DataFrame, file: Path) -> tuple[str, Kind]:
    """The column that most surely holds times: dates as text before numbers, names such as `date` before others, many
    times before few."""
    kinds: dict[str, Kind] = {}
    looks = {name: _known(frame[name].head(4 * SAMPLE)).dropna().head(SAMPLE) for name in names}
    numeric = {
        name for name, cells in looks.items() if len(cells) and re.fullmatch(r"[+-]?\d*[.,]?\d+", str(cells.iloc[0]))
    }
    for part in ([name for name in names if name not in numeric], [name for name in names if name in numeric]):
        if "text" in kinds.values():
            break
        for name in part:
            if name in numeric and not re.fullmatch(r"\d{4,19}(\.\d+)?|\d\d\.\d{4}", str(looks[name].iloc[0])):
                continue
            kind = _kind(looks[name])
            if kind and (kind != "serial" or _words(name) & TIME_WORDS):
                kinds[name] = kind
    if not kinds:
        why = {name: _why_not(looks[name]) for name in names}
        near = [name for name in names if re.search("without a date|no year|in row", why[name])]
        first, rest = (near or names)[0], f", nor is any other of {len(names)}" if len(names) > 1 else ""
        hint = "write whole times, such as 2024-01-31 13:00" if near else "name the right one with dataset.time_column"
        if sum(_kind(pandas.Series([name])) is not None for name in names) > 0.5 * len(names):
            hint = "the times seem to be the names of the columns: write the table with a row a time"
        raise UserError(f"{file}: column '{first}' is not made of times ({why[first]}){rest}; {hint}")

    def unsure(name: str) -> tuple[bool, bool, int, int]:
        kind = kinds[name]
        return kind != "text", not _words(name) & TIME_WORDS, KINDS.index(kind), -frame[name].nunique()

    best = min(kinds, key=unsure)
    return best, kinds[best]


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


def _numbers(
    frame: pandas.DataFrame,
    others: list[pandas.Series],
    times: pandas.Series,
    separator: str,
    dotted_dates: bool,
    decimal: Decimal | None,
    *,
    named: bool,
    file: Path,
) -> tuple[pandas.DataFrame, list[str]]:
    """The columns that are series, and what was left out; UserError for a column that nearly is one, or one that was
    `named` and is none."""
    found: dict[str, Any] = {}
    left: list[str] = []
    texts = {}
    for name in frame.columns:
        column = frame[name]
        is_typed = pandas.api.types.is_datetime64_any_dtype(column) or isinstance(column.dtype, pandas.PeriodDtype)
        if is_typed or (not named and _words(name) & TIME_WORDS and _kind(column) in ("text", "stamp", "epoch")):
            left.append(f"'{name}' (times)")
        elif pandas.api.types.is_numeric_dtype(column):
            found[name] = column.astype("float64").to_numpy(na_value=np.nan)
        else:
            texts[name] = column.astype("string").astype(object)
    numbers, wrong, notes = read_numbers(texts, others, separator=separator, dotted_dates=dotted_dates, decimal=decimal)
    found |= numbers
    for name, error in wrong.items():
        if not named and (error.share >= MOSTLY or _words(name) & {"id", "uuid", "guid", "hash"}):
            left.append(f"'{name}' ({error})")
            continue
        raise UserError(
            f"{file} has a value that is not a number: '{error.cell}' in column '{name}' at {times.iloc[error.row]}; "
            f"leave the cell empty where nothing is known, or the column out: {typed('dataset.leave_out', name)}"
        )
    calendar = [getattr(times.dt, part) for part in CALENDAR] + [times.dt.isocalendar().week]
    calendar = [part + shift for part in calendar for shift in (0, 1)]
    for name in [] if named else list(found):
        values, unnamed = found[name], bool(re.fullmatch(r"column_\d+|Unnamed: \d+(\.\d+)*", name))
        if not np.isfinite(values).any():
            if not unnamed:
                left.append(f"'{name}' (no value)")
            del found[name]
        elif (unnamed or name.lower() in ROW_WORDS) and _are_row_numbers(values, ordered=not unnamed):
            left.append(f"'{name}' (numbers of rows)")
            del found[name]
        elif _words(name) & CALENDAR_WORDS and any(np.array_equal(values, part) for part in calendar):
            left.append(f"'{name}' (part of the date)")
            del found[name]
        elif "id" in _words(name) and bool((values == np.floor(values)).all()):
            left.append(f"'{name}' (identities)")
            del found[name]
    reason = f" ({'; '.join(left[:3])})" if left else ""
    if not found or not any(np.isfinite(values).any() for values in found.values()):
        names = ", ".join(f"'{name}'" for name in list(frame.columns)[:5])
        raise UserError(
            f"{file} has no column of numbers among {names or 'its columns'}{reason}; "
            "name the series with dataset.columns"
        )
    if left:
        notes.insert(0, f"left out: {', '.join(left[:8])}" + (f" and {len(left) - 8} more" if len(left) > 8 else ""))
    return pandas.DataFrame({name: found[name] for name in frame.columns if name in found}), notes


def _are_row_numbers(values: NDArray[np.float64], *, ordered: bool) -> bool:
    """Whether all are whole and none comes twice; ordered: and each is larger, or each smaller than the one before."""
    steps = np.diff(values)
    in_order = (steps > 0).all() or (steps < 0).all()
    whole = bool((values == np.floor(values)).all())
    return len(values) > 1 and whole and bool(in_order if ordered else len(np.unique(values)) == len(values))


def _check_once(
    doubled: pandas.Series, times: pandas.Series, frame: pandas.DataFrame, numbers: list[str], file: Path
) -> None:
    """UserError where a time comes twice; it says what may be the matter."""
    if not doubled.any():
        return
    values = [name for name in numbers if pandas.to_numeric(frame[name], errors="coerce").notna().any()]
    others = [name for name in frame.columns if name not in values]
    keys = [name for name in others if not frame.assign(time=times).duplicated(["time", name]).any()]
    advice = "keep one row a time, or name dataset.series_column and dataset.value_column of a long table"
    if doubled.mean() < 0.05 and (times.dt.normalize() != times).any():
        advice = "keep one row a time, or give dataset.time_zone=Europe/Berlin or another, where clocks go back"
    elif keys and values:
        advice = f"if this is a long table: {typed('dataset.series_column', keys[0], many=False)} "
        advice += typed("dataset.value_column", values[0], many=False)
    raise UserError(f"{file} has {int(doubled.sum())} duplicate times, first {times[doubled].iloc[0]}; {advice}")


def _column(frame: pandas.DataFrame, name: str, option: str, file: Path) -> str:
    names = list(map(str, frame.columns))
    if name not in names:
        raise UserError(
            f"{file} has no column '{name}' (dataset.{option}){did_you_mean(name, names)}; "
            f"it has {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"
        )
    return name

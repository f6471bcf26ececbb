"""A CSV or Parquet file of time series, as people and programs write them, becomes a `Table`. Nothing is filled in.

Separators, decimal commas, thousands separators, the usual marks of a missing value, a byte order mark, remarks before the header and compression are
found from the file; which column holds the times too. What is read wrongly one way or another is one line that names the column and the row.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_forcing.datasets.series.table import Table, first_line, regular
from diffusion_forcing.datasets.series.times import freq_of, import_pandas, parse_times
from diffusion_forcing.errors import UserError, did_you_mean

MISSING = ("-", "--", "?", ".", "..", "n.a.", "n/a", "na", "NA", "N.A.", "missing", "Missing", "nil", "*")
"""Marks of a missing value beside pandas' own."""
SEPARATORS = (",", ";", "\t", "|")
MOSTLY = 0.5
"""Share of cells that are numbers, above which a column is one of numbers with something wrong in it, and not one of words."""
_COMMA_DECIMAL = re.compile(r"[+-]?(\d{1,3}(\.\d{3})+|\d+),(\d{1,2}|\d{4,})|[+-]?\d{1,3}(\.\d{3})+,\d+")


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
) -> Table:
    """The table in `path`: wide (a column of times, a column a series) or, with `series_column` and `value_column`, long (a row an
    observation). time_column: null is the first that holds times. columns: the series to take; none named: all that are numbers, but for
    `leave_out`. day_first, time_zone: as for `parse_times`."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"dataset.path {file} does not exist; give a CSV or Parquet file")
    frame = _frame(file)
    time, times = _times(frame, time_column, file, day_first, time_zone)
    frame = frame.assign(**{time: times})
    if series_column or value_column:
        if not (series_column and value_column):
            raise UserError("a long table needs both dataset.series_column and dataset.value_column")
        wide = _unfolded(frame, time, series_column, value_column, file)
    else:
        _check_once(frame, time, file)
        wide = frame.set_index(time)
    wide.columns = [str(name) for name in wide.columns]
    wide = _numbers_of(wide, columns, leave_out, time, file)
    wide, told = wide.sort_index(), wide.notna().any(axis=1)
    if not told.any():
        raise UserError(f"{file} has no value in {', '.join(wide.columns[:5])}")
    if freq is None and freq_of(wide.index) is None:
        wide = wide[wide.notna().any(axis=1)]  # rows without a value may hide the rhythm
    return regular(wide, freq, str(file))


def _frame(file: Path) -> Any:
    """The file as a pandas frame, numbers where pandas sees some."""
    pandas = import_pandas()
    if file.suffix.lower() in (".xlsx", ".xls", ".ods"):
        raise UserError(f"{file} is a spreadsheet; save it as CSV, and give that")
    try:
        if file.suffix.lower() in (".parquet", ".pq"):
            frame = pandas.read_parquet(file)
            if frame.index.name or not isinstance(frame.index, pandas.RangeIndex):
                frame = frame.reset_index()
        else:
            text, skipped = _text(file)
            frame = pandas.read_csv(
                io.StringIO(text),
                sep=_separator(text, skipped),
                skiprows=skipped,
                skipinitialspace=True,
                na_values=list(MISSING),
                low_memory=False,
            )
    except (ValueError, OSError, csv.Error, pandas.errors.ParserError) as error:
        raise UserError(f"{file} cannot be read as a table ({first_line(error)}); give a CSV or Parquet file") from None
    frame.columns = [str(name).strip() for name in frame.columns]
    nameless = [name for name in frame.columns if name.startswith("Unnamed: ") and frame[name].isna().all()]
    frame = frame.drop(columns=nameless)
    if not len(frame) or not len(frame.columns):
        raise UserError(f"{file} is empty; give a table with a column of times and a row a time")
    return frame


def _text(file: Path) -> tuple[str, int]:
    """What the file says, and how many lines at its beginning are remarks."""
    content = file.read_bytes()
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    if b"\x00" in content[:1000] and content[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError("it is no text")
    for encoding in ("utf-16",) if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "latin-1"):
        try:
            text = content.decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    head = text.splitlines()[:100]
    remarks = next((number for number, line in enumerate(head) if not line.startswith("#")), 0)
    # a header may look like a remark: it has as many commas as what follows
    told = bool(remarks) and head[remarks - 1].count(",") != head[remarks].count(",")
    return text, remarks if told else 0


def _separator(text: str, skipped: int) -> str:
    """What stands between cells: the most frequent in the header, outside of quotes."""
    header = next(iter(text.splitlines()[skipped : skipped + 1]), "")
    bare = re.sub(r'"[^"]*"', "", header)
    return max(SEPARATORS, key=bare.count)


def _times(frame: Any, named: str | None, file: Path, day_first: bool | None, zone: str | None) -> tuple[str, Any]:
    """The column of times, and the times."""
    names = [_column(frame, named, "time_column", file)] if named else list(frame.columns)
    if _is_headless(frame):
        raise UserError(f"{file} has no line of names at its top; add one, such as time,a,b,c")
    failed = ""
    for name in names:
        try:
            times = parse_times(frame[name], day_first=day_first, zone=zone)
        except (ValueError, TypeError, OverflowError, AttributeError) as error:
            failed = failed or f"column '{name}' is not made of times ({first_line(error)})"
            continue
        if times.isna().any():
            raise UserError(
                f"{file}: column '{name}' has {int(times.isna().sum())} rows without a time; remove or complete them"
            )
        return name, times
    rest = "" if named or len(names) == 1 else f", nor is any other of {len(names)}"
    raise UserError(f"{file}: {failed}{rest}; name the right one with dataset.time_column")


def _is_headless(frame: Any) -> bool:
    """Whether the names of the columns are a row of the table: a time and numbers."""
    first, *rest = frame.columns
    if not rest or not all(re.fullmatch(r"[+-]?\d+([.,]\d+)*", name) for name in rest):
        return False
    try:
        parse_times(import_pandas().Series([first]))
    except (ValueError, TypeError, OverflowError):
        return False
    return True


def _unfolded(frame: Any, time: str, series_column: str, value_column: str, file: Path) -> Any:
    """The wide table of a long one."""
    series = _column(frame, series_column, "series_column", file)
    value = _column(frame, value_column, "value_column", file)
    doubled = frame.duplicated([time, series])
    if doubled.any():
        row = frame[doubled].iloc[0]
        raise UserError(
            f"{file} has {int(doubled.sum())} duplicate times, first {row[time]} of series {row[series]}; keep one row a time and series"
        )
    return frame.pivot(index=time, columns=series, values=value)


def _check_once(frame: Any, time: str, file: Path) -> None:
    """UserError where a time comes twice; it says what may be the matter."""
    pandas = import_pandas()
    doubled = frame[time].duplicated()
    if not doubled.any():
        return
    words = [name for name in frame.columns if name != time and not pandas.api.types.is_numeric_dtype(frame[name])]
    numbers = [name for name in frame.columns if name != time and pandas.api.types.is_numeric_dtype(frame[name])]
    advice = "keep one row a time, or name dataset.series_column and dataset.value_column of a long table"
    finer = [name for name in numbers if name.lower() in ("quarter", "month", "week", "day", "hour")]
    if finer:
        advice = f"write one column of times out of '{time}' and '{finer[0]}', such as 2024-01-31 or 2024Q1"
    elif words and numbers and not frame.duplicated([time, words[0]]).any():
        advice = f"if this is a long table: dataset.series_column={words[0]} dataset.value_column={numbers[0]}"
    elif doubled.mean() < 0.05 and (frame[time].dt.normalize() != frame[time]).any():
        advice = "keep one row a time (where clocks go back an hour comes twice: give dataset.time_zone, such as Europe/Berlin)"
    raise UserError(
        f"{file} has {int(doubled.sum())} duplicate times, first {frame[time][doubled].iloc[0]} in column '{time}'; {advice}"
    )


def _numbers_of(wide: Any, columns: tuple[str, ...], leave_out: tuple[str, ...], time: str, file: Path) -> Any:
    """The columns that are series, as numbers; UserError for one that nearly is."""
    pandas = import_pandas()
    if columns:
        wide = wide[[_column(wide, name, "columns", file) for name in columns]]
    for name in leave_out:
        if name not in wide.columns:
            names = list(wide.columns)
            raise UserError(f"dataset.leave_out names '{name}', which is no series{did_you_mean(name, names)}")
    kept = [name for name in wide.columns if name not in leave_out]
    if not kept:
        raise UserError("dataset.leave_out names every series; keep at least one")
    comma = any(_has_comma_decimals(wide[name]) for name in kept)
    found = {}
    for name in kept:
        column = wide[name]
        if pandas.api.types.is_numeric_dtype(column.dtype):
            found[name] = column.astype("float64")
            continue
        if pandas.api.types.is_datetime64_any_dtype(column.dtype):
            continue
        numbers, wrong = _as_numbers(column, comma)
        if wrong.any():
            if not columns and wrong.sum() >= MOSTLY * column.notna().sum():
                continue  # words: no series
            where = wrong.to_numpy().argmax()
            raise UserError(
                f"{file} has a value that is no number: '{column.iloc[where]}' in column '{name}' at {column.index[where]}; "
                f"leave the cell empty where nothing is known, or the column out: dataset.leave_out=[{name}]"
            )
        found[name] = numbers
    if not found:
        raise UserError(f"{file} has no column of numbers beside '{time}'; name the series with dataset.columns")
    return pandas.DataFrame(found, index=wide.index)


def _has_comma_decimals(column: Any) -> bool:
    """Whether a cell of text can only be a number with a decimal comma."""
    if column.dtype.kind in "biufM":
        return False
    return any(_COMMA_DECIMAL.fullmatch(cell.strip()) for cell in column.dropna().astype(str).head(1000))


def _as_numbers(column: Any, comma: bool) -> tuple[Any, Any]:
    """A column of text as numbers, and which cells are none. comma: 1.234,5 is written, not 1,234.5."""
    pandas = import_pandas()
    text = column.astype("string").str.strip()
    text = text.where(~text.isin(["", *MISSING]))
    bare = text.str.replace(r"^[€$£]\s*|\s*[€$£%]$|(?<=\d)[\s\u00a0\u202f'](?=\d{3})", "", regex=True)
    thousands, decimal = (".", ",") if comma else (",", ".")
    grouped = bare.str.fullmatch(rf"[+-]?\d{{1,3}}({re.escape(thousands)}\d{{3}})+({re.escape(decimal)}\d*)?")
    bare = bare.where(~grouped.fillna(False), bare.str.replace(thousands, "", regex=False))
    if comma:
        bare = bare.str.replace(",", ".", regex=False)
    truths = bare.str.lower().map({"true": "1", "false": "0"})
    numbers = pandas.to_numeric(truths.fillna(bare), errors="coerce").astype("float64")
    numbers = numbers.where(np.isfinite(numbers))
    infinite = bare.str.fullmatch(r"[+-]?inf(inity)?", case=False).fillna(False)
    return numbers, (numbers.isna() & text.notna() & ~infinite).astype(bool)


def _column(frame: Any, name: str, option: str, file: Path) -> str:
    names = [str(column) for column in frame.columns]
    if name not in names:
        raise UserError(
            f"{file} has no column '{name}' (dataset.{option}){did_you_mean(name, names)}; it has {', '.join(names[:8])}"
            + (" …" if len(names) > 8 else "")
        )
    return str(frame.columns[names.index(name)])

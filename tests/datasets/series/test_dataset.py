"""Tables of series: what is read, what is refused, how windows are cut, and that no window knows its future."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gluonts")

import pandas

from diffusion_forcing.datasets.series.dataset import (
    ECB,
    SeriesOptions,
    SeriesWindows,
    TimeSeries,
    _ranges,
    _widened,
    spec_of,
)
from diffusion_forcing.datasets.series.smoothing import Base, Method
from diffusion_forcing.datasets.series.table import Table
from diffusion_forcing.datasets.series.times import checked_freq, date_features, lags_of
from diffusion_forcing.errors import UserError


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def wide(path: Path, days: int = 80, names: str = "a,b") -> Path:
    count = len(names.split(","))
    start = np.datetime64("2024-01-01")
    rows = [f"{start + day}," + ",".join(str(10 * day + column) for column in range(count)) for day in range(days)]
    return write(path, f"time,{names}\n" + "\n".join(rows))


def counting(steps: int = 40, variates: int = 2) -> Table:
    """Step t of variate v is 10·t + v."""
    values = 10.0 * np.arange(steps)[:, None] + np.arange(variates)
    return Table(values.astype(np.float32), "2024-01-01", "D", tuple("ab"[:variates]))


# ---------------------------------------------------------------------------------------------------- dates, lags


def test_date_features_lie_on_circles_and_come_round() -> None:
    dates = date_features("2024-01-01 00:00", "h", 24 * 15)
    circles = dates.reshape(len(dates), 2, -1)
    assert np.allclose((circles**2).sum(axis=1), 1, atol=1e-5)
    assert np.allclose(dates[5, 0], dates[5 + 24, 0])  # the same hour
    assert not np.allclose(dates[5], dates[5 + 24])  # another day
    assert checked_freq("H") == "h"


# -------------------------------------------------------------------------------------------------------- windows


def base(table: Table) -> Base:
    """The last values again."""
    return Base(table.values, [[Method(1.0, 0.0, 0.0, 0.0)]] * table.variates)


def test_a_window_holds_its_steps_its_lags_and_none_of_its_future() -> None:
    windows = SeriesWindows(counting(), [20, 40], (1, 7), 6, 4, base(counting()))
    batch = windows.__getitems__([0, 1])
    assert batch.values[0, :, 0].tolist() == [10.0 * t for t in range(10, 20)]
    assert batch.observed.all()
    assert batch.lagged[0, :, 1, 0].tolist()[:6] == [10.0 * (t - 7) for t in range(10, 16)]
    # behind the history, a lag is known where it reaches back before the forecast
    assert batch.lag_known[0, :, 0, 0].tolist() == [True] * 7 + [False] * 3
    assert batch.lag_known[0, :, 1, 0].tolist() == [True] * 10
    changed = counting()
    changed.values[16:] = -1
    after = SeriesWindows(changed, [20], (1, 7), 6, 4, base(changed))[0]
    assert np.array_equal(after.lagged[0], batch.lagged[0])
    assert np.array_equal(after.values[0, :6], batch.values[0, :6])


def test_before_the_beginning_and_behind_the_end_nothing_was_observed() -> None:
    batch = SeriesWindows(counting(8), [8, 11], (1,), 6, 4, base(counting(8))).__getitems__([0, 1])
    assert batch.observed[0, :, 0].tolist() == [False, False] + [True] * 8
    assert batch.observed[1, :, 0].tolist() == [True] * 7 + [False] * 3
    assert batch.values[1, -3:].abs().sum() == 0


def test_parts_do_not_overlap_in_what_they_forecast(tmp_path: Path) -> None:
    data = TimeSeries(
        SeriesOptions(
            source="csv", path=str(wide(tmp_path / "w.csv")), prediction_length=5, test_windows=3, validation_windows=2
        )
    )
    assert data.test_ends == [70, 75, 80]
    assert data.validation_ends == [60, 65]
    assert data.training_end == 55
    training = data.training()
    assert training.ends.max() == 55
    assert training.ends.min() == 10
    assert data.test().__getitems__([2]).values[0, -1].tolist() == [790, 791]


def test_the_specification_is_of_the_training_part_alone() -> None:
    table = counting(40)
    table.values[30:] = 1e6
    spec = spec_of(table, 30, (1,), 6, 4)
    assert spec.mean[0] == pytest.approx(np.arange(30).mean() * 10)
    assert spec.std[0] == pytest.approx((10 * np.arange(30)).std(), rel=1e-5)
    assert not spec.has_gaps


def test_a_constant_variate_is_scaled_by_one() -> None:
    table = counting()
    table.values[:, 1] = 5
    spec = spec_of(table, 40, (1,), 6, 4)
    assert (spec.mean[1], spec.std[1]) == (5, 1)


def test_a_series_that_begins_after_the_training_part_is_one_line() -> None:
    table = counting()
    table.values[:30, 1] = np.nan
    with pytest.raises(UserError, match="series 'b' has no value in the 30 steps to train on, the first is at 2024-"):
        spec_of(table, 30, (1,), 6, 4)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"source": "csv"}, "needs dataset.path"),
        ({"source": "csv", "path": "x"}, "needs dataset.prediction_length"),
        ({"source": "ecb", "prediction_length": 0}, "dataset.prediction_length.*0"),
        ({"source": "ecb", "prediction_length": 3, "lags": (0,)}, "dataset.lags.*0"),
        ({"source": "ecb", "prediction_length": 3, "test_windows": -1}, "dataset.test_windows.*-1"),
        ({"source": "ecb", "prediction_length": 3, "currencies": ()}, "dataset.currencies is empty"),
    ],
)
def test_options_that_cannot_be_are_one_line(how: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SeriesOptions(**how)


def test_a_series_that_is_too_short_says_what_it_would_take(tmp_path: Path) -> None:
    short = TimeSeries(SeriesOptions(source="csv", path=str(wide(tmp_path / "w.csv", 12)), prediction_length=5))
    with pytest.raises(UserError, match=r"12 steps are too few: .* leave 2 to train on.* at least 21 steps"):
        short.prepare()
    enough = TimeSeries(SeriesOptions(source="csv", path=str(wide(tmp_path / "w.csv", 18)), prediction_length=5))
    enough.prepare()  # for a forecaster that is trained already
    with pytest.raises(UserError, match=r"18 steps are too few: .* leave 8 to train on"):
        enough.training()


@pytest.mark.parametrize(("steps", "windows"), [(21, 1), (60, 3), (80, 4), (200, 5)])
def test_windows_that_are_kept_from_training_leave_half_of_the_data(tmp_path: Path, steps: int, windows: int) -> None:
    path = str(wide(tmp_path / "w.csv", steps))
    data = TimeSeries(SeriesOptions(source="csv", path=path, prediction_length=5))
    assert len(data.test_ends) == len(data.validation_ends) == windows
    assert len(data.training()) > 1
    fixed = TimeSeries(SeriesOptions(source="csv", path=path, prediction_length=5, test_windows=0))
    assert (fixed.test_ends, fixed.known_until) == ([], steps)


def test_more_series_than_dataset_variates_are_refused(tmp_path: Path) -> None:
    names = ",".join(f"s{n}" for n in range(11))
    path = str(wide(tmp_path / "many.csv", 40, names))
    options: dict[str, Any] = {
        "source": "csv",
        "path": path,
        "prediction_length": 3,
        "test_windows": 2,
        "validation_windows": 2,
    }
    with pytest.raises(UserError, match=r"11 series, dataset.variates allows 10"):
        TimeSeries(SeriesOptions(**options, variates=10)).prepare()
    data = TimeSeries(SeriesOptions(**options, variates=11))
    assert data.training().__getitems__([0, 1]).lagged.shape == (2, 6, 3, 11)


# -------------------------------------------------------------------------------------------------- real data


def test_the_ecbs_rates_are_eight_currencies_on_business_days() -> None:
    data = TimeSeries(SeriesOptions(source="ecb", prediction_length=30))
    data.prepare()
    assert data.table.names == ECB
    assert data.table.freq == "B"
    assert len(data.table) == 7260
    assert not data.spec.has_gaps
    assert data.table.values[-1, 1] == pytest.approx(1.3, abs=0.4)  # dollars a pound
    with pytest.raises(UserError, match=r"no rate of 'GPB'.*did you mean 'GBP'"):
        TimeSeries(SeriesOptions(source="ecb", prediction_length=30, currencies=("GPB",))).prepare()


@pytest.mark.slow
def test_load_profiles_are_a_year_of_hours() -> None:
    if importlib.util.find_spec("simbench") is None:
        pytest.skip("simbench is not installed: pip install --no-deps simbench==1.6.3")
    data = TimeSeries(SeriesOptions(source="load", prediction_length=24, variates=96))
    data.prepare()
    assert data.table.values.shape == (8784, 96)
    assert (data.table.freq, lags_of(data.table.freq)) == ("h", (1, 24, 168))
    assert -0.5 < np.nanmin(data.table.values) < np.nanmax(data.table.values) < 10  # shares of a customer's peak
    assert (~data.table.observed).sum() == 96  # the hour that summer time leaves out


def test_a_gluonts_data_set_that_lies_on_the_disk_is_read(tmp_path: Path) -> None:
    from gluonts.dataset.common import MetaData, TrainDatasets
    from gluonts.dataset.jsonl import JsonLinesWriter

    series = [np.arange(60.0) + 100 * n for n in range(3)]
    start = "2024-01-01"

    def entries(length: int) -> list[dict[str, Any]]:
        return [
            {"target": one[:length], "start": pandas.Period(start, freq="D"), "item_id": str(n)}
            for n, one in enumerate(series)
        ]

    found = TrainDatasets(
        metadata=MetaData(freq="D", prediction_length=5), train=entries(50), test=[*entries(55), *entries(60)]
    )
    found.save(str(tmp_path / "exchange_rate_nips"), writer=JsonLinesWriter(use_gzip=True))
    data = TimeSeries(
        SeriesOptions(source="gluonts", name="exchange_rate_nips", path=str(tmp_path), validation_windows=2)
    )
    assert data.prediction_length == 5
    assert data.test_ends == [55, 60]
    assert data.table.values[-1].tolist() == [59, 159, 259]
    with pytest.raises(UserError, match=r"solar_nips is not in .* cannot be downloaded.*place GluonTS's folder there"):
        TimeSeries(SeriesOptions(source="gluonts", name="solar_nips", path=str(tmp_path))).prepare()


def test_an_epoch_of_a_short_series_shows_its_windows_again() -> None:
    data = TimeSeries(SeriesOptions(source="ecb", prediction_length=30, epoch_windows=10_000))
    data.prepare(progress=False)
    once = TimeSeries(SeriesOptions(source="ecb", prediction_length=30, epoch_windows=1))
    count = len(once.training())
    assert count == once.training_end - 59
    assert len(data.training()) == 2 * count
    first, again = (data.training()[index] for index in (3, count + 3))
    assert all(bool((a == b).all()) for a, b in zip(first, again, strict=True))


def data_of(folder: Path, header: str, **options: Any) -> TimeSeries:
    names = header.split(",")
    values = {
        "t": pandas.date_range("2024-01-01", periods=40).date,
        "a": [10.0] * 40,
        "b": [1000.0] * 40,
        "x": [1.0] * 40,
    }
    pandas.DataFrame({name: values[name] for name in names}).to_csv(folder / "a.csv", index=False)
    known: dict[str, Any] = {"prediction_length": 2, "test_windows": 2, "validation_windows": 2}
    return TimeSeries(SeriesOptions(source="csv", path=str(folder / "a.csv"), **{**known, **options}))


def test_the_range_of_a_trained_forecaster_is_widened_by_newer_data() -> None:
    """What grew tenfold since it was trained, fell below zero, is no more whole or has no value now."""
    methods = ((Method(1.0, 0.0, 0.0, 0.0, logarithm=True),),) * 4
    old = np.array([[10.0, 4.0, 3.0, 2.0]] * 3)
    spec = spec_of(Table(old, "2024-01-01", "D", tuple("abcd")), 3, (), 1, 1)._replace(methods=methods)
    spec = spec._replace(**_ranges(old, methods))
    found = _widened(spec, np.array([[90.0, -4.0, 3.5, np.nan]]))
    assert found.lowest == (5.0, None, 1.5, 1.0)
    assert found.highest[0] == 270.0
    assert found.highest[3] == 6.0
    assert found.whole == (True, True, False, True)


def test_series_are_matched_to_a_trained_forecaster_by_name(tmp_path: Path) -> None:
    trained = {**data_of(tmp_path, "t,a,b").spec._asdict(), "has_gaps": True, "season": 7}
    data = data_of(tmp_path, "t,x,b,a")
    data.match(trained)
    assert data.table.names == ("a", "b")
    assert data.table.values[0].tolist() == [10, 1000]
    assert (data.spec.has_gaps, data.spec.season, data.spec.prediction_length) == (True, 7, 2)
    assert "'x'" in data.table.notes[-1]
    older = {name: value for name, value in trained.items() if name not in ("methods", "lowest", "highest", "whole")}
    data = data_of(tmp_path, "t,x,b,a")
    data.match({**older, "mean": [1.0, 2.0], "step_std": [1.0, 2.0]})
    assert data.spec.mean.tolist() == [1, 2]
    assert (len(data.spec.methods), data.spec.lowest[0]) == (2, 5.0)
    data.match({})  # of a forecaster that takes any series
    assert data.table.names == ("a", "b")


def test_another_series_or_step_is_refused_by_name(tmp_path: Path) -> None:
    trained = data_of(tmp_path, "t,a,b").spec._asdict()
    with pytest.raises(UserError, match=r"'b'.*'x'"):
        data_of(tmp_path, "t,a,x").match(trained)
    with pytest.raises(UserError, match=r"steps of h.*steps of D"):
        data_of(tmp_path, "t,a,b").match({**trained, "freq": "h"})

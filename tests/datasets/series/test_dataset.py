"""Tables of series: what is read, what is refused, how windows are cut, and that no window knows its future."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gluonts")

from diffusion_forcing.datasets.series.dataset import ECB, SeriesOptions, SeriesWindows, TimeSeries, spec_of
from diffusion_forcing.datasets.series.files import read_file
from diffusion_forcing.datasets.series.steps import checked_freq, date_features, lags_of
from diffusion_forcing.datasets.series.table import Table
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


# ------------------------------------------------------------------------------------------------------- reading


def test_a_wide_table_keeps_its_numbers_and_finds_its_step(tmp_path: Path) -> None:
    table = read_file(wide(tmp_path / "w.csv"), freq=None)
    assert (table.freq, table.names, table.start) == ("D", ("a", "b"), "2024-01-01")
    assert table.values.tolist() == [[10 * day, 10 * day + 1] for day in range(80)]


def test_a_long_table_and_parquet_are_the_same_table(tmp_path: Path) -> None:
    import pandas

    expected = read_file(wide(tmp_path / "w.csv"), freq="D")
    frame = pandas.read_csv(tmp_path / "w.csv")
    frame.to_parquet(tmp_path / "w.parquet")
    long = frame.melt(id_vars="time", var_name="who", value_name="much").sample(frac=1, random_state=0)
    long.to_csv(tmp_path / "l.csv", index=False)
    found = [
        read_file(tmp_path / "w.parquet", freq="D"),
        read_file(tmp_path / "l.csv", freq="D", time_column="time", series_column="who", value_column="much"),
    ]
    for table in found:
        assert table.names == expected.names
        assert np.array_equal(table.values, expected.values)


def test_gaps_and_nan_are_not_observed_and_nothing_is_filled(tmp_path: Path) -> None:
    rows = ["time;a;b", "2024-01-01 00:00;1;2", "2024-01-01 02:00;;4", "2024-01-01 01:00;5;inf", "2024-01-01 05:00;7;8"]
    table = read_file(write(tmp_path / "g.csv", "\n".join(rows)), freq="H")
    assert table.freq == "h"
    assert table.observed.tolist() == [[True, True], [True, False], [False, True], [False] * 2, [False] * 2, [True] * 2]
    assert np.isnan(table.values[3]).all()


def test_times_with_a_zone_are_read(tmp_path: Path) -> None:
    rows = [f"2024-03-0{day}T00:00:00Z,{day}" for day in range(1, 6)]
    assert len(read_file(write(tmp_path / "z.csv", "t,a\n" + "\n".join(rows)), freq="D")) == 5


@pytest.mark.parametrize(
    ("text", "how", "message"),
    [
        ("", {}, "cannot be read as a table|is empty"),
        ("t,a\n", {}, "is empty"),
        ("t,a\nyesterday?,1\nno,2\nx,3\n", {}, "column 't' is not made of times"),
        ("t,a\n2024-01-01,1\n,2\n2024-01-03,3\n", {"freq": "D"}, "has 1 rows without a time"),
        ("t,a\n2024-01-01,1\n2024-01-01,2\n", {"freq": "D"}, "1 duplicate times, first 2024-01-01"),
        ("t,a\n2024-01-01,1\n2024-01-02,2\n2024-01-09,2\n", {}, "cannot be told from the times; give dataset.freq"),
        ("t,a\n2024-01-01,1\n2024-01-02,2\n", {"freq": "fortnight"}, "'fortnight', which pandas does not know"),
        ("t,a\n2024-01-01,1\n2024-01-02,2\n", {"freq": "M"}, "puts several rows into one step, first 2024-01"),
        ("t,a\n2024-01-01,x\n2024-01-02,y\n", {"freq": "D"}, "no column of numbers"),
        ("t,a\n2024-01-01,x\n2024-01-02,y\n", {"freq": "D", "columns": ("a",)}, "a value that is not a number"),
        ("t,alpha\n2024-01-01,1\n", {"freq": "D", "columns": ("alpah",)}, "no column 'alpah'.*did you mean 'alpha'"),
        ("t,a,b\n2024-01-01,1,\n2024-01-02,2,\n", {"columns": ("a", "c")}, "no column 'c'"),
        ("t,s,v\n2024-01-01,x,1\n", {"freq": "D", "series_column": "s"}, "needs both"),
        (
            "t,s,v\n2024-01-01,x,1\n2024-01-01,x,2\n",
            {"freq": "D", "series_column": "s", "value_column": "v"},
            "1 duplicate times, first 2024-01-01",
        ),
        ("t,a\n1900-01-01,1\n2024-01-02,2\n", {"freq": "min"}, "more than 20,000,000 numbers"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, text: str, how: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_file(write(tmp_path / "x.csv", text), **{"freq": None, **how})
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line() -> None:
    with pytest.raises(UserError, match=r"nothing\.csv does not exist"):
        read_file("nothing.csv", freq="D")


# ---------------------------------------------------------------------------------------------------- dates, lags


@pytest.mark.parametrize(
    ("freq", "lags"),
    [
        ("M", (1, 12)),
        ("D", (1, 7, 14)),
        ("B", (1, 2)),
        ("h", (1, 24, 168)),
        ("H", (1, 24, 168)),
        ("30min", (1, 4, 12, 24, 48)),
        ("Q", (1, 4)),
        ("Y", (1,)),
    ],
)
def test_lags_are_those_of_the_method(freq: str, lags: tuple[int, ...]) -> None:
    assert lags_of(freq) == lags


def test_date_features_lie_on_circles_and_come_round() -> None:
    dates = date_features("2024-01-01 00:00", "h", 24 * 15)
    circles = dates.reshape(len(dates), 2, -1)
    assert np.allclose((circles**2).sum(axis=1), 1, atol=1e-5)
    assert np.allclose(dates[5, 0], dates[5 + 24, 0])  # the same hour
    assert not np.allclose(dates[5], dates[5 + 24])  # another day
    assert checked_freq("H") == "h"


# -------------------------------------------------------------------------------------------------------- windows


def test_a_window_holds_its_steps_its_lags_and_none_of_its_future() -> None:
    windows = SeriesWindows(counting(), [20, 40], (1, 7), 6, 4)
    batch = windows.__getitems__([0, 1])
    assert batch.values[0, :, 0].tolist() == [10.0 * t for t in range(10, 20)]
    assert batch.observed.all()
    assert batch.lagged[0, :, 1, 0].tolist()[:6] == [10.0 * (t - 7) for t in range(10, 16)]
    # behind the history, a lag is known where it reaches back before the forecast
    assert batch.lag_known[0, :, 0, 0].tolist() == [True] * 7 + [False] * 3
    assert batch.lag_known[0, :, 1, 0].tolist() == [True] * 10
    changed = counting()
    changed.values[16:] = -1
    after = SeriesWindows(changed, [20], (1, 7), 6, 4)[0]
    assert np.array_equal(after.lagged[0], batch.lagged[0])
    assert np.array_equal(after.values[0, :6], batch.values[0, :6])


def test_the_last_season_is_known_before_the_forecast_and_never_in_it() -> None:
    batch = SeriesWindows(counting(), [30], (1,), 6, 9, season=4)[0]
    assert batch.seasonal is not None
    assert batch.season_known is not None
    assert batch.season_known.all()
    history = [t - 4 for t in range(15, 21)]
    ahead = [17, 18, 19, 20, 17, 18, 19, 20, 17]  # the forecast begins at step 21
    assert batch.seasonal[0, :, 0].tolist() == [10.0 * t for t in [*history, *ahead]]


def test_a_series_that_returns_with_its_season_is_known_by_its_changes() -> None:
    days, drawn = np.arange(400), np.random.default_rng(0)
    values = np.stack(
        [
            np.sin(days * 2 * np.pi / 14) + 0.1 * drawn.normal(size=400),
            drawn.normal(size=400).cumsum(),
            drawn.normal(size=400),
        ],
        axis=1,
    )
    spec = spec_of(Table(values.astype(np.float32), "2024-01-01", "D", ("a", "b", "c")), 400, (1, 7, 14), 14, 7)
    assert spec.season == 14
    assert spec.season_std[0] == pytest.approx(0.1 * 2**0.5, rel=0.1)
    assert spec.season_std[1:].tolist() == [0, 0]


def test_before_the_beginning_and_behind_the_end_nothing_was_observed() -> None:
    batch = SeriesWindows(counting(8), [8, 11], (1,), 6, 4).__getitems__([0, 1])
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
    assert spec.step_std[0] == pytest.approx(20.0)  # two steps of 10
    assert not spec.has_gaps


def test_a_constant_variate_is_scaled_by_one() -> None:
    table = counting()
    table.values[:, 1] = 5
    spec = spec_of(table, 40, (1,), 6, 4)
    assert (spec.mean[1], spec.std[1], spec.step_std[1]) == (5, 1, 1)


def test_a_series_that_begins_after_the_training_part_is_one_line() -> None:
    table = counting()
    table.values[:30, 1] = np.nan
    with pytest.raises(UserError, match="series 'b' has no value in the 30 steps to train on"):
        spec_of(table, 30, (1,), 6, 4)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"source": "csv"}, "needs dataset.path"),
        ({"source": "csv", "path": "x"}, "needs dataset.prediction_length"),
        ({"source": "ecb", "prediction_length": 0}, "dataset.prediction_length.*0"),
        ({"source": "ecb", "prediction_length": 3, "lags": (0,)}, "dataset.lags.*0"),
        ({"source": "ecb", "prediction_length": 3, "test_windows": 0}, "dataset.test_windows.*0"),
        ({"source": "ecb", "prediction_length": 3, "currencies": ()}, "dataset.currencies is empty"),
    ],
)
def test_options_that_cannot_be_are_one_line(how: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SeriesOptions(**how)


def test_a_series_that_is_too_short_says_what_it_would_take(tmp_path: Path) -> None:
    data = TimeSeries(SeriesOptions(source="csv", path=str(wide(tmp_path / "w.csv", 30)), prediction_length=5))
    with pytest.raises(
        UserError, match="30 steps are too few: 5 test windows and 5 validation windows of 5 steps leave 0"
    ):
        data.prepare()


@pytest.mark.slow
def test_two_thousand_series_are_cut_and_one_more_is_refused(tmp_path: Path) -> None:
    names = ",".join(f"s{n}" for n in range(2001))
    path = str(wide(tmp_path / "many.csv", 40, names))
    options: dict[str, Any] = {
        "source": "csv",
        "path": path,
        "prediction_length": 3,
        "test_windows": 2,
        "validation_windows": 2,
    }
    with pytest.raises(UserError, match=r"2,001 series, dataset.variates allows 2,000"):
        TimeSeries(SeriesOptions(**options)).prepare()
    data = TimeSeries(SeriesOptions(**options, variates=3000))
    assert data.training().__getitems__([0, 1]).lagged.shape == (2, 6, 3, 2001)


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
    assert (data.table.freq, data.spec.lags) == ("h", (1, 24, 168))
    assert -0.5 < np.nanmin(data.table.values) < np.nanmax(data.table.values) < 10  # shares of a customer's peak
    assert (~data.table.observed).sum() == 96  # the hour that summer time leaves out


def test_a_gluonts_data_set_that_lies_on_the_disk_is_read(tmp_path: Path) -> None:
    from gluonts.dataset.common import MetaData, TrainDatasets
    from gluonts.dataset.jsonl import JsonLinesWriter

    series = [np.arange(60.0) + 100 * n for n in range(3)]
    start = "2024-01-01"
    import pandas

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


@pytest.mark.parametrize(
    ("freq", "read"),
    [
        ("D", "D"),
        ("B", "B"),
        ("h", "h"),
        ("15min", "15min"),
        ("MS", "M"),
        ("ME", "M"),
        ("W-WED", "W-WED"),
        ("7h", "7h"),
    ],
)
def test_a_frequency_is_found_between_gaps(tmp_path: Path, freq: str, read: str) -> None:
    pandas = pytest.importorskip("pandas")
    times = pandas.date_range("2023-01-02", periods=120, freq=freq)
    frame = pandas.DataFrame({"time": times, "a": np.arange(120.0)}).drop(index=[5, 40, 41, 90])
    frame.to_csv(tmp_path / "a.csv", index=False)
    table = read_file(tmp_path / "a.csv", freq=None)
    assert table.freq == read
    assert len(table) == 120
    assert np.flatnonzero(~table.observed[:, 0]).tolist() == [5, 40, 41, 90]
    assert table.values[[4, 6, 119], 0].tolist() == [4, 6, 119]


@pytest.mark.parametrize("days", [(0, 1, 2, 2.4, 9), (0, 1, 10, 20, 30)])
def test_times_without_a_rhythm_want_a_frequency(tmp_path: Path, days: tuple[float, ...]) -> None:
    pandas = pytest.importorskip("pandas")
    times = pandas.Timestamp("2023-01-01") + pandas.to_timedelta(days, unit="D")
    pandas.DataFrame({"time": times, "a": range(5)}).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(UserError, match=r"cannot be told from the times; give dataset\.freq"):
        read_file(tmp_path / "a.csv", freq=None)


def test_remarks_before_the_header_are_skipped_and_a_header_that_looks_like_one_is_not(tmp_path: Path) -> None:
    rows = "\n".join(f"2023-01-{day:02d},{day}" for day in range(1, 9))
    (tmp_path / "a.csv").write_text(f"# from somewhere\n# two, even, of them\ntime,a\n{rows}")
    (tmp_path / "b.csv").write_text(f"#time,a\n{rows}")
    for name in ("a.csv", "b.csv"):
        assert read_file(tmp_path / name, freq=None).names == ("a",)


def test_an_epoch_of_a_short_series_shows_its_windows_again() -> None:
    data = TimeSeries(SeriesOptions(source="ecb", prediction_length=30, epoch_windows=10_000))
    data.prepare(progress=False)
    once = TimeSeries(SeriesOptions(source="ecb", prediction_length=30, epoch_windows=1))
    count = len(once.training())
    assert count == once.training_end - 59
    assert len(data.training()) == 2 * count
    first, again = (data.training()[index] for index in (3, count + 3))
    assert all(bool((a == b).all()) for a, b in zip(first, again, strict=True))

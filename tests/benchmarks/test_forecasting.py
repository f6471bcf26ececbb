"""The forecasting benchmark: data sets are what is said of them, forecasters see a season, the table's arithmetic is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest

from benchmarks import forecasters, forecasting, series
from benchmarks.forecasters import MODELS, PATHS
from benchmarks.series import SETS, Series
from diffusion_forcing.datasets.series.dataset import SeriesOptions, TimeSeries
from diffusion_forcing.metrics.forecasting import crps

pytest.importorskip("statsforecast")
pytest.importorskip("lightgbm")


def sine(steps: int = 80) -> Series:
    """Two waves of 4 quarters with a little noise, around a level of 10; the second has gaps."""
    random = np.random.default_rng(0)
    values = 10 + np.sin(np.arange(steps)[:, None] * 2 * np.pi / 4 + np.arange(2))
    values += 0.1 * random.standard_normal(values.shape)
    values[random.random(steps) < 0.1, 1] = np.nan
    values[20:25, 1] = np.nan
    index = pandas.date_range("2000-01", periods=steps, freq="QS")
    return Series("sine", pandas.DataFrame(values, index), "Q", 4, (4,))


@pytest.mark.parametrize("name", ["co2", "employment", "ecb", "parking"])
def test_a_data_set_is_what_its_definition_says_and_a_csv_keeps_it(name: str, tmp_path: Path) -> None:
    try:
        data = series.load(name)
    except series.UserError as missing:
        if "not installed" not in str(missing):
            raise
        pytest.skip(str(missing))
    one = SETS[name]
    assert (data.freq, data.ahead, data.season) == (one.freq, one.ahead, one.seasons[-1])
    assert data.target.shape == (5, one.ahead, data.values.shape[1])
    assert np.isfinite(data.target).any(axis=(1, 2)).all()
    assert np.isfinite(data.values).any(axis=0).all()
    series.write_csv(name, tmp_path / "series.csv")
    options = SeriesOptions(
        source="csv",
        path=str(tmp_path / "series.csv"),
        freq=None if name == "employment" else one.freq,
        prediction_length=one.ahead,
    )
    again = TimeSeries(options)
    np.testing.assert_allclose(again.table.values, data.values, rtol=1e-12)
    assert [end - one.ahead for end in again.test_ends] == data.starts


def test_what_is_not_installed_is_said_with_how_to_install_it() -> None:
    with pytest.raises(series.UserError, match="pip install"):
        series._file("no_such_package", "data.csv")


@pytest.mark.parametrize("name", ["last season", "AutoETS", "AutoARIMA", "AutoTheta", "MSTL", "LightGBM"])
def test_a_forecaster_of_seasons_is_better_than_drawing_past_values(name: str) -> None:
    data = sine()
    random = np.random.default_rng(1)
    target = data.target
    samples = MODELS[name](data, 0)()
    assert samples.shape == (5, PATHS, 4, 2)
    assert np.isfinite(samples).all()
    known = data.values[: data.starts[0], 0]
    noise = random.choice(known[np.isfinite(known)], size=samples.shape)
    assert crps(samples, target) < 0.5 * crps(noise, target)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DeepAR", "TFT", "PatchTST", "ours, rnn"])
def test_a_network_runs_and_is_scored(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecasters, "EFFORT", 0.05)
    monkeypatch.setattr(forecasters, "BATCHES", 2)
    monkeypatch.setattr(forecasting, "QUICK_STEPS", 40)
    row = forecasting.run(sine(), name, 0)
    assert 0 < row["crps"] < 1
    assert 0 <= row["coverage_90"] <= 1


def test_last_value_and_drift_go_on_from_where_a_series_stands() -> None:
    data = sine()
    line = Series("line", data.frame.fillna(0) * 0 + np.arange(80)[:, None], "Q", 4, (4,))
    steps = np.arange(1, 5)[:, None]
    for start, last, drift in zip(
        data.starts, MODELS["last value"](line, 0)(), MODELS["drift"](line, 0)(), strict=True
    ):
        np.testing.assert_allclose(last, np.broadcast_to(start - 1 + steps, last.shape))  # its errors were 1, 2, …
        np.testing.assert_allclose(drift, np.broadcast_to(start - 1 + steps, drift.shape))  # it made none


def test_no_forecaster_sees_what_it_is_asked_for() -> None:
    data = sine()
    other = data.frame.copy()
    other.iloc[data.starts[-1] :] = 1e6
    later = Series("sine", other, "Q", 4, (4,))
    for name in ("last season", "drift", "MSTL", "LightGBM"):
        np.testing.assert_array_equal(MODELS[name](data, 0)(), MODELS[name](later, 0)(), err_msg=name)


def test_levels_between_quantiles_are_interpolated() -> None:
    quantiles = (0.1, 0.5, 0.9)
    paths = forecasters.at_levels(np.array([[0.0], [4.0], [8.0]]), quantiles)[:, 0]
    assert paths[0] == 0.0
    assert paths[-1] == 8.0
    np.testing.assert_allclose(paths[20:80], np.linspace(1.05, 6.95, 60))


def row(data: str, model: str, value: float, seed: int = 0) -> forecasting.Row:
    names = ("crps", "crps_sum", "mase", *forecasting._OTHERS)
    return {"data": data, "model": model, "seed": seed, **dict.fromkeys(names, value)}


def test_the_table_has_geometric_means_relative_to_the_last_season_and_mean_ranks() -> None:
    rows = [row("ecb", "last season", 1.0), row("load", "last season", 2.0), row("load", "drift", 1.0)]
    rows += [row("ecb", "drift", 3.0), row("ecb", "drift", 5.0, seed=1)]  # mean 4
    scores = forecasting.means(rows, "crps")
    assert scores == {"last season": {"load": 2.0, "ecb": 1.0}, "drift": {"load": 1.0, "ecb": 4.0}}
    assert forecasting.relative(scores, "drift") == pytest.approx(np.sqrt(4 * 0.5))
    assert forecasting.ranks(scores) == {"last season": 1.5, "drift": 1.5}
    assert "| drift | 2 | 2 | 1.414 | 1.414 | 1.414 | 1.5 |" in forecasting.summary(rows)
    assert "| ecb | **1.0000** | 4.0000 |" in forecasting.details(rows)


def test_mase_is_relative_to_the_last_season_of_the_training_part() -> None:
    data = sine()
    known = data.values[: data.starts[0]]
    expected = np.mean(1 / np.nanmean(np.abs(known[4:] - known[:-4]), axis=0))
    samples = np.repeat(data.target[:, None] + 1, PATHS, axis=1)
    assert forecasting.mase(data, samples) == pytest.approx(expected)


def test_a_results_file_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"seed": 0}\n{"se')
    assert forecasting.read(path) == [{"seed": 0}]
    assert forecasting.read(tmp_path / "none.jsonl") == []

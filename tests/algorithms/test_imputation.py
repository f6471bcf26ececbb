"""Filling gaps: what was observed stays and steers from both sides, what is missing is never read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion_forcing.algorithms.imputation import impute
from diffusion_forcing.datasets.series.dataset import SeriesOptions, TimeSeries
from diffusion_forcing.datasets.series.table import Table
from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments.forecasting import (
    HIDDEN_SHARES,
    PATTERNS,
    cases,
    hide,
    interpolated,
    last_season,
    windows_with_gaps,
    windows_without,
)
from tests.algorithms.test_forecasting import AHEAD, CONTEXT, Known, batch, build, generator, spec

BOTH_SIDES = {"network": "transformer", "causal": False, "together": False}


def test_what_was_observed_stays_and_what_is_missing_is_not_read() -> None:
    forecaster, windows = build(**BOTH_SIDES), batch()
    windows.observed[0, 2:5, 1] = windows.observed[1, -1] = False
    paths = impute(forecaster, windows, generator=generator())
    assert paths.shape == (2, 5, CONTEXT + AHEAD, 3)
    kept = windows.observed[:, None].expand_as(paths)
    assert torch.equal(paths[kept], windows.values[:, None].expand_as(paths)[kept])
    assert (paths.std(dim=1)[~windows.observed] > 0).all()
    other = windows._replace(values=torch.where(windows.observed, windows.values, 1e9))
    assert torch.equal(impute(forecaster, other, generator=generator()), paths)


@pytest.mark.parametrize("step", [1, 7])
def test_a_gap_is_steered_from_before_and_from_behind(step: int) -> None:
    forecaster, windows = build(**BOTH_SIDES), batch(1)
    windows.observed[0, 4, 0] = False
    paths = impute(forecaster, windows, generator=generator())
    windows.values[0, step, 0] += 1.0
    moved = impute(forecaster, windows, generator=generator())
    assert (moved - paths)[0, :, 4, 0].abs().min() > 1e-4
    assert torch.equal(moved[..., 1], paths[..., 1])  # each series by itself


def test_paths_have_the_spread_of_what_the_network_predicts() -> None:
    forecaster = build(
        **BOTH_SIDES,
        calc_crps_sum=800,
        diffusion={"sampling_timesteps": 50, "objective": "pred_x0"},
        use_covariates=False,
    )
    forecaster.forcing.network = Known(forecaster.forcing.schedule, 0.5, 0.8)
    windows = batch(1)
    windows.observed[0, 3:5] = False
    found = impute(forecaster, windows, generator=generator())[0, :, 3:5]
    base, spread = windows.base[0, 3:5], windows.spread[0, 3:5]
    assert torch.allclose(found.mean(dim=0).float(), base + 0.5 * spread, atol=0.3)
    assert torch.allclose(found.std(dim=0).float(), 0.8 * spread, rtol=0.15)


@pytest.mark.parametrize(
    "changes", [{}, {"network": "transformer", "together": False}, {**BOTH_SIDES, "together": True}]
)
def test_a_network_that_cannot_see_both_sides_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"train with .*algorithm\.causal=False algorithm\.together=False"):
        impute(build(**changes), batch())


def test_a_forecaster_that_looks_ahead_forecasts_too() -> None:
    paths = build(spec(has_gaps=True), **BOTH_SIDES).forecast(batch(), generator=generator())
    assert paths.shape == (2, 5, AHEAD, 3) and paths.isfinite().all()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("share", HIDDEN_SHARES)
def test_so_many_values_are_hidden(pattern: str, share: float) -> None:
    random = np.random.default_rng(0)
    observed = random.random((200, 3)) < 0.8
    hidden = hide(observed, share, pattern, 10, random)
    assert not (hidden & ~observed).any()
    np.testing.assert_array_equal(hidden.sum(axis=0), np.round(share * observed.sum(axis=0)))
    runs = (np.diff(hidden.astype(int), axis=0) == 1).sum()
    assert (runs < 0.4 * hidden.sum()) == (pattern == "blocks")
    for places in ([4], []):
        few = np.zeros((9, 1), bool)
        few[places] = True
        assert not hide(few, 0.5, pattern, 4, random).any()


def test_simple_fillings() -> None:
    gaps = np.array([[np.nan, 1.0], [2.0, np.nan], [np.nan, np.nan], [4.0, 7.0], [np.nan, np.nan]])
    np.testing.assert_allclose(interpolated(gaps), [[2, 1], [2, 3], [3, 5], [4, 7], [4, 7]])
    np.testing.assert_allclose(last_season(gaps, 2), [[2, 1], [2, 3], [3, 1], [4, 7], [4, 1]])
    assert np.isnan(gaps).sum() == 6  # the input stays


def dataset_of(values: np.ndarray) -> TimeSeries:
    dataset = TimeSeries(SeriesOptions(source="csv", path="x", prediction_length=4, context_length=8))
    table, length = Table(values, "2020-01-01", "D", ("a", "b")), 4
    dataset._read = lambda: (table, [], length)  # type: ignore[method-assign]
    return dataset


def test_a_table_shorter_than_a_window_has_its_gaps_in_one() -> None:
    values = np.ones((30, 2))
    values[5:9, 0] = np.nan
    dataset = dataset_of(values)
    dataset.split = dataset.split._replace(context_length=40)
    assert windows_with_gaps(dataset) == [30]


def test_windows_hold_every_gap_and_no_hidden_value() -> None:
    values = np.random.default_rng(0).normal(size=(101, 2)) + 5
    values[[3, 50, 100], [0, 1, 0]] = np.nan
    dataset = dataset_of(values)
    ends = windows_with_gaps(dataset)
    held = {step for end in ends for step in range(end - 12, end)}
    assert {3, 50, 100} <= held and ends == [12, 60, 101]
    for name, hidden in cases(dataset, seed=0):
        windows = windows_without(dataset, hidden, dataset.test_ends)
        seen = windows.__getitems__(range(len(windows)))
        steps = windows.ends[:, None] + np.arange(-12, 0)
        np.testing.assert_array_equal(seen.observed.numpy(), (dataset.table.observed & ~hidden)[steps], err_msg=name)
        assert hidden[: dataset.test_ends[0] - 12].sum() == 0 and hidden.any()
        changed = dataset_of(np.where(hidden, 1e6, values))  # a hidden value reaches nothing
        changed.spec = dataset.spec
        again = windows_without(changed, hidden, dataset.test_ends).__getitems__(range(len(windows)))
        for before, after in zip(seen, again, strict=True):
            torch.testing.assert_close(before, after)

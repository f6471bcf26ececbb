"""Scores of sample paths: GluonTS's own numbers, and what they are for forecasts that are known to be right."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_forcing.metrics.forecasting import (
    INTERVALS,
    QUANTILES,
    calibration,
    coverage,
    crps,
    crps_sum,
    forecast_report,
    nd,
    nrmse,
    weighted_quantile_losses,
    why_missing,
)

WINDOWS, PATHS, TIME, VARIATES = 4, 100, 6, 3


def drawn(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    samples = 5 + random.standard_normal((WINDOWS, PATHS, TIME, VARIATES))
    return samples, 5 + random.standard_normal((WINDOWS, TIME, VARIATES))


def test_they_are_those_of_gluonts() -> None:
    pytest.importorskip("gluonts")
    import pandas
    from gluonts.evaluation import MultivariateEvaluator
    from gluonts.model.forecast import SampleForecast

    samples, target = drawn()
    starts = [pandas.Period("2024-01-01", freq="D") + 10 * window for window in range(WINDOWS)]
    forecasts = [SampleForecast(samples[w], start_date=starts[w]) for w in range(WINDOWS)]
    series = [
        pandas.DataFrame(target[w], index=pandas.period_range(starts[w], periods=TIME, freq="D"))
        for w in range(WINDOWS)
    ]
    evaluator = MultivariateEvaluator(quantiles=list(QUANTILES), target_agg_funcs={"sum": np.sum})
    theirs, _ = evaluator(iter(series), iter(forecasts), num_series=WINDOWS)
    ours = forecast_report(samples, target)
    assert ours["forecast/crps_sum"] == pytest.approx(theirs["m_sum_mean_wQuantileLoss"], abs=1e-6)
    assert ours["forecast/crps"] == pytest.approx(theirs["mean_wQuantileLoss"], abs=1e-6)
    assert ours["forecast/nd"] == pytest.approx(theirs["ND"], abs=1e-6)
    assert ours["forecast/nrmse"] == pytest.approx(theirs["NRMSE"], abs=1e-6)
    for q, loss in zip(QUANTILES, weighted_quantile_losses(samples, target), strict=True):
        assert loss == pytest.approx(theirs[f"wQuantileLoss[{q}]"], abs=1e-6)
        assert calibration(samples, target, [q])[0] == pytest.approx(theirs[f"Coverage[{q}]"], abs=1e-6)


def test_a_forecast_that_knows_is_perfect() -> None:
    _, target = drawn()
    samples = np.repeat(target[:, None], PATHS, axis=1)
    report = forecast_report(samples, target)
    for name in ("crps_sum", "crps", "nd", "nrmse"):
        assert report[f"forecast/{name}"] == pytest.approx(0, abs=1e-12)


def test_paths_out_of_the_true_distribution_are_calibrated_and_cover_what_they_say() -> None:
    random = np.random.default_rng(0)
    samples, target = random.standard_normal((2000, 201, 2, 1)), random.standard_normal((2000, 2, 1))
    for interval in INTERVALS:
        assert coverage(samples, target, interval) == pytest.approx(interval, abs=0.03)
    assert np.allclose(calibration(samples, target), QUANTILES, atol=0.03)
    wider = crps(3 * samples, target)
    assert crps(samples, target) < min(wider, crps(0.2 * samples, target))


def test_what_was_not_observed_counts_for_nothing() -> None:
    samples, target = drawn()
    gap = target.copy()
    gap[:, 2:, 1] = np.nan
    other = samples.copy()
    other[:, :, 2:, 1] = 1e6
    for score in (crps, nd, nrmse):
        assert score(samples, gap) == pytest.approx(score(other, gap))
    assert coverage(samples, gap, 0.9) == coverage(other, gap, 0.9)
    assert np.isfinite(crps_sum(samples, gap))


def test_the_sum_is_of_what_was_observed() -> None:
    samples, target = drawn()
    ended = target.copy()
    ended[..., 1] = np.nan
    assert crps_sum(samples, ended) == pytest.approx(crps_sum(samples[..., [0, 2]], target[..., [0, 2]]))
    ended[:, 3:] = np.nan
    assert crps_sum(samples, ended) == pytest.approx(crps_sum(samples[:, :, :3, ::2], target[:, :3, ::2]))


@pytest.mark.parametrize(
    ("target", "why"), [(np.nan, "nothing was observed"), (0.0, "is 0"), (1.0, "paths are not finite")]
)
def test_a_missing_score_has_a_reason(target: float, why: str) -> None:
    values, samples = np.full((WINDOWS, TIME, VARIATES), target), np.ones((WINDOWS, PATHS, TIME, VARIATES))
    if target == 1.0:
        samples[0, 0] = np.nan
    assert why in why_missing(samples, values)
    if target != 1.0:
        assert np.isnan(forecast_report(samples, values)["forecast/crps_sum"])


def test_the_sum_sees_how_variates_move_together() -> None:
    random = np.random.default_rng(0)
    common = random.standard_normal((500, 1, 1, 1)) + 0.01 * random.standard_normal((500, 1, 1, 4))
    target = (10 + common)[:, 0]
    together = 10 + random.standard_normal((500, PATHS, 1, 1)) + np.zeros((1, 1, 1, 4))
    apart = 10 + random.standard_normal((500, PATHS, 1, 4))
    assert crps(together, target) == pytest.approx(crps(apart, target), rel=0.1)
    assert crps_sum(together, target) < 0.96 * crps_sum(apart, target)

"""GluonTS's own tools on our Estimator and Predictor, unchanged."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gluonts")

import pandas
from gluonts.dataset.common import ListDataset
from gluonts.dataset.multivariate_grouper import MultivariateGrouper
from gluonts.evaluation import MultivariateEvaluator, backtest_metrics, make_evaluation_predictions
from gluonts.model.predictor import Predictor

from diffusion_forcing.errors import UserError
from diffusion_forcing.gluonts import DiffusionForcingEstimator, DiffusionForcingPredictor

SMALL: dict[str, Any] = {
    "z_shape": [16],
    "warmup_steps": 10,
    "diffusion": {"network_size": 4, "num_gru_layers": 1, "sampling_timesteps": 3},
}
STEPS, AHEAD = 120, 7


def series(steps: int, count: int = 2) -> list[dict[str, Any]]:
    weeks = np.sin(2 * np.pi * np.arange(steps) / 7)
    return [{"target": 10 + n + weeks, "start": pandas.Period("2024-01-01", freq="D")} for n in range(count)]


def grouped(steps: int = STEPS) -> Any:
    return MultivariateGrouper(max_target_dim=2)(ListDataset(series(steps), freq="D"))


def estimator(**changes: Any) -> DiffusionForcingEstimator:
    return DiffusionForcingEstimator("D", **{"prediction_length": AHEAD, "max_steps": 10, "options": SMALL, **changes})


@pytest.fixture(scope="module")
def predictor() -> DiffusionForcingPredictor:
    return estimator(max_steps=150).train(grouped())


def test_their_evaluation_runs_on_our_predictor(predictor: DiffusionForcingPredictor) -> None:
    data = MultivariateGrouper(max_target_dim=2, num_test_dates=2)(
        ListDataset([*series(STEPS), *series(STEPS + AHEAD)], freq="D")
    )
    forecasts, truths = make_evaluation_predictions(data, predictor, num_samples=20)
    forecasts, truths = list(forecasts), list(truths)
    assert [forecast.samples.shape for forecast in forecasts] == [(20, AHEAD, 2)] * 2
    assert forecasts[0].start_date == pandas.Period("2024-01-01", freq="D") + STEPS - AHEAD
    evaluator = MultivariateEvaluator(quantiles=[0.1, 0.5, 0.9], target_agg_funcs={"sum": np.sum})
    scores, _ = evaluator(iter(truths), iter(forecasts), num_series=2)
    assert 0 < scores["m_sum_mean_wQuantileLoss"] < 0.05  # a wave of ±1 about 21; copying its mean has 0.04


def test_their_backtest_scores_a_predictor_that_our_estimator_trained(predictor: DiffusionForcingPredictor) -> None:
    data = MultivariateGrouper(max_target_dim=2, num_test_dates=1)(ListDataset(series(STEPS + AHEAD), freq="D"))
    evaluator = MultivariateEvaluator(quantiles=[0.1, 0.5, 0.9])
    scores = [
        backtest_metrics(data, each, evaluator, num_samples=20)[0]["mean_wQuantileLoss"]
        for each in (predictor, estimator(max_steps=1).train(grouped(), cache_data=True))
    ]
    assert 0 < scores[0] < scores[1]
    assert scores[0] < 0.05


def test_a_predictor_is_kept_and_found_again(predictor: DiffusionForcingPredictor, tmp_path: Path) -> None:
    predictor.serialize(tmp_path)
    again = Predictor.deserialize(tmp_path)
    assert isinstance(again, DiffusionForcingPredictor)
    one, other = (next(iter(each.predict(grouped(), num_samples=3))) for each in (predictor, again))
    assert np.array_equal(one.samples, other.samples)


def test_a_single_series_has_forecasts_without_an_axis_of_variates() -> None:
    data = ListDataset(series(60, 1), freq="D")
    forecast = next(
        iter(estimator(options={**SMALL, "network": "transformer"}).train(data).predict(data, num_samples=2))
    )
    assert forecast.samples.shape == (2, AHEAD)


def test_what_cannot_be_is_one_line(predictor: DiffusionForcingPredictor) -> None:
    with pytest.raises(UserError, match=r"has 2 entries.*MultivariateGrouper"):
        estimator().train(ListDataset(series(60), freq="D"))
    with pytest.raises(UserError, match=r"the series has 10 steps; a window has 7 \+ 7"):
        estimator().train(grouped(10))
    with pytest.raises(UserError, match=r"entry 0 has 1 series.*trained on 2"):
        list(predictor.predict(ListDataset(series(60, 1), freq="D")))
    with pytest.raises(UserError, match="netwrok"):
        estimator(options={"netwrok": "rnn"})
    with pytest.raises(UserError, match="'fortnight', which pandas does not know"):
        DiffusionForcingEstimator("fortnight", AHEAD)


@pytest.mark.parametrize(
    ("start", "begin"),
    [
        (pandas.Timestamp("2024-01-01"), "2024-04-30"),
        ("2024-01-01", "2024-04-30"),
        (np.datetime64("2024-01-01"), "2024-04-30"),
        (pandas.Period("2024-01-01", freq="D"), "2024-04-30"),
    ],
)
def test_the_start_may_be_any_time(predictor: DiffusionForcingPredictor, start: Any, begin: str) -> None:
    entry = {**next(iter(grouped())), "start": start}
    assert str(next(predictor.predict([entry], num_samples=1)).start_date) == begin


def test_entries_that_cannot_be_forecast_are_refused(predictor: DiffusionForcingPredictor) -> None:
    entry = next(iter(grouped()))
    for freq in ("h", "W", "M", "30min"):
        with pytest.raises(UserError, match="steps of"):
            next(predictor.predict([{**entry, "start": pandas.Period("2024-01-01", freq=freq)}]))
    with pytest.raises(UserError, match="entry 0 has an empty target"):
        next(predictor.predict([{**entry, "target": np.zeros((2, 0))}]))
    for count in (0, -1, 2.5, True, "3"):
        with pytest.raises(UserError, match=f"num_samples is {count!r}"):
            next(predictor.predict([entry], num_samples=count))  # type: ignore[arg-type]
    for wrong in ({"target": ["a", "b"]}, {"target": None}, {"target": np.zeros((1, 2, 9))}):
        with pytest.raises(UserError, match=r"entry 0 has .*target"):
            next(predictor.predict([{**entry, **wrong}]))
    for start in (None, pandas.NaT, 5, "soon"):
        with pytest.raises(UserError, match="entry 0 has no start"):
            next(predictor.predict([{**entry, "start": start}]))
    for name in ("prediction_length", "max_steps", "batch_size"):
        with pytest.raises(UserError, match=f"{name} is 0"):
            estimator(**{name: 0})
    same = {**entry, "start": pandas.Period("2024-01-01", freq="24h")}  # a day by another name
    assert str(next(predictor.predict([same], num_samples=1)).start_date)[:10] == "2024-04-30"
    with pytest.raises(UserError, match="steps of h"):
        estimator().train([{**entry, "start": pandas.Period("2024-01-01", freq="h")}])


def test_a_predictor_can_be_pickled_and_loading_options_change_nothing() -> None:
    made = estimator(max_steps=2).train(grouped(), cache_data=True, num_workers=0)
    again = pickle.loads(pickle.dumps(made))
    one, other = (next(each.predict(grouped(), num_samples=2)) for each in (made, again))
    assert np.array_equal(one.samples, other.samples)


def test_features_are_series_whose_future_is_known(predictor: DiffusionForcingPredictor) -> None:
    entry = {**next(iter(grouped())), "feat_dynamic_real": np.sin(np.arange(STEPS))[None]}
    made = estimator(max_steps=2).train([entry])
    futures = [np.concatenate([entry["feat_dynamic_real"], np.full((1, AHEAD), value)], axis=1) for value in (0, 1)]
    found = [next(made.predict([{**entry, "feat_dynamic_real": future}], num_samples=2)).samples for future in futures]
    assert found[0].shape == (2, AHEAD, 2)
    assert not np.array_equal(found[0], found[1])
    with pytest.raises(UserError, match="1 features, the predictor was trained on 2 and 0"):
        next(predictor.predict([entry]))
    with pytest.warns(UserWarning, match="feat_static_cat"):
        next(predictor.predict([{**next(iter(grouped())), "feat_static_cat": [1]}], num_samples=1))


def test_large_values_are_forecast_with_their_small_changes() -> None:
    rising = 1.2e9 + 24.3 * np.arange(STEPS)
    data = [{"target": rising[None], "start": pandas.Period("2024-01-01", freq="D")}]
    made = estimator(max_steps=2, options=SMALL).train(data)
    samples = next(made.predict(data, num_samples=3)).samples
    assert samples.dtype == np.float64
    assert np.abs(samples - rising[-1]).max() < 24.3 * 100
    assert len(np.unique(samples)) == samples.size
    with pytest.raises(UserError, match=r"algorithm\.scaling"):
        estimator(options={**SMALL, "scaling": "last"})

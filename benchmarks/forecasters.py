"""The forecasters that ours is compared with: naive, statistical (statsforecast), boosted trees (LightGBM), GluonTS's networks.

A `Model` is trained on what lies before the test windows and returns a function that forecasts all of them: sample paths (windows, PATHS,
ahead, variates). What gives quantiles gives them as PATHS sorted values at equally spaced levels, shuffled for each series: models of single
series know nothing of how series move together.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas
from numpy.typing import NDArray

from benchmarks.series import Series
from diffusion_forcing.datasets.series.times import quietly

Array = NDArray[np.float64]
Predict = Callable[[], Array]
Model = Callable[[Series, int], Predict]

PATHS = 100
LEVELS = (np.arange(PATHS) + 0.5) / PATHS
RECENT = 1000
"""Steps of history that the statistical models are given, or three seasons where that is more."""
LONGEST_SEASON = 24
"""Of AutoETS and AutoARIMA; a series with a longer one is given to them as one without."""
ORDERS = {"max_p": 3, "max_q": 3, "max_P": 1, "max_Q": 1}
"""The highest of AutoARIMA."""
ERRORS = 1000
"""Earlier forecasts whose errors a naive forecast draws from."""
TREES, ROWS = 150, 30_000
QUANTILES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
EPOCHS, BATCHES = {"DeepAR": 10, "TFT": 10, "PatchTST": 20}, 50
"""Of GluonTS's networks, 32 windows a batch."""
EFFORT = 1.0
"""The share of their epochs that networks are trained for."""


def filled(values: Array, season: int) -> Array:
    """`values` with every gap filled: from the season before, else the step before, else the step behind."""
    if np.isfinite(values).all():
        return values
    frame = pandas.DataFrame(values)
    result: Array = frame.groupby(np.arange(len(frame)) % season).ffill().ffill().bfill().fillna(0.0).to_numpy()
    return result


def shuffled(paths: Array, seed: int) -> Array:
    """(windows, PATHS, ahead, variates) with the paths of each window and series in an order of their own."""
    order = np.random.default_rng(seed).random((len(paths), PATHS, 1, paths.shape[-1])).argsort(axis=1)
    return np.take_along_axis(paths, order, axis=1)


# Naive forecasts with the errors that they made before


def _last(known: Array, origins: NDArray[np.int64], ahead: int, season: int) -> Array:
    return known[origins - 1][:, None].repeat(ahead, axis=1)


def _season(known: Array, origins: NDArray[np.int64], ahead: int, season: int) -> Array:
    return known[origins[:, None] - season + np.arange(ahead) % season]


def _drift(known: Array, origins: NDArray[np.int64], ahead: int, season: int) -> Array:
    slope = (known[origins - 1] - known[0]) / np.maximum(origins - 1, 1)[:, None]
    return known[origins - 1][:, None] + slope[:, None] * np.arange(1, ahead + 1)[:, None]


def naive(point: Callable[[Array, NDArray[np.int64], int, int], Array]) -> Model:
    """A point forecast, and added to it the errors of earlier ones, all steps and series of an origin together."""

    def fit(data: Series, seed: int) -> Predict:
        random, values, ahead, season = np.random.default_rng(seed), data.values, data.ahead, data.season
        first = season if point is _season else 2

        def forecast(start: int) -> Array:
            known = filled(values[:start], season)
            origins = random.choice(np.arange(min(first, start - ahead), start - ahead + 1), ERRORS)
            observed = values[origins[:, None] + np.arange(ahead)]
            errors = observed - point(known, origins, ahead, season)
            paths = errors[:PATHS].copy()
            for step, variate in np.argwhere(np.isnan(paths).any(axis=0)):  # the error of another origin
                found = errors[np.isfinite(errors[:, step, variate]), step, variate]
                gaps = np.isnan(paths[:, step, variate])
                paths[gaps, step, variate] = random.choice(found, gaps.sum()) if len(found) else 0.0
            return point(known, np.array([start]), ahead, season) + paths

        return lambda: np.stack([forecast(start) for start in data.starts])

    return fit


# Statistical models, a series at a time


def statistical(name: str) -> Model:
    """One of statsforecast's: selected and fitted once, before the first window, then applied to what each window knows
    (AutoTheta, which is quick, is fitted again). Levels from its prediction intervals."""

    def fit(data: Series, seed: int) -> Predict:
        from statsforecast import models

        season = data.seasons[0]
        if name in ("AutoETS", "AutoARIMA") and season > LONGEST_SEASON:
            season = 1
        recent = max(RECENT, 3 * (data.season if name == "MSTL" else season))
        known = filled(data.values, data.season)
        histories = [known[max(0, start - recent) : start] for start in data.starts]

        def fitted(series: Array) -> Any:
            match name:
                case "MSTL":
                    model = models.MSTL([length for length in data.seasons if 2 * length < len(series)])
                case "AutoTheta":
                    kind = "multiplicative" if series.min() > 0.1 * series.mean() else "additive"
                    model = models.AutoTheta(season_length=season, decomposition_type=kind)
                case "AutoARIMA":
                    quick = season > 12 or len(series) > 150  # as R's auto.arima chooses
                    model = models.AutoARIMA(season_length=season, approximation=quick, **ORDERS)
                case _:
                    model = models.AutoETS(season_length=season)
            try:
                return model.fit(series)
            except Exception:  # of a constant series, say
                return models.RandomWalkWithDrift()

        def levels(model: Any, history: Array) -> Array:
            """(PATHS, ahead): the values at LEVELS of a forecast behind `history`."""
            central = list(range(1, 100, 2))  # per cent; their bounds are LEVELS
            again = name == "AutoTheta" or isinstance(model, models.RandomWalkWithDrift)
            found = (model.forecast if again else model.forward)(history, data.ahead, level=central)
            bounds = [found[f"lo-{level}"] for level in reversed(central)] + [found[f"hi-{level}"] for level in central]
            return np.where(np.isfinite(bounds), bounds, found["mean"])

        def columns(history: Array) -> list[Array]:
            return [column.copy() for column in history.T]

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            each = [fitted(column) for column in columns(histories[0])]

        def predict() -> Array:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                windows = [
                    np.stack([levels(model, column) for model, column in zip(each, columns(history), strict=True)], -1)
                    for history in histories
                ]
            return shuffled(np.stack(windows), seed)

        return predict

    return fit


# Boosted trees


def boosted(data: Series, seed: int) -> Predict:
    """LightGBM: one direct model of all series and steps a quantile. It forecasts the difference from the last season
    in deviations of the recent past; features: lags likewise, the step, the series, the date."""
    import lightgbm

    random, values, ahead, season = np.random.default_rng(seed), data.values, data.ahead, data.season
    short, known = data.seasons[0], filled(values, data.season)
    variates, longest = known.shape[1], max(2 * season, 2 * short)
    index = data.frame.index
    dates = np.stack([index.month, index.day, index.dayofweek, index.hour, index.minute], axis=1)
    if data.starts[0] < longest + 4 * ahead:
        longest = season
    totals = np.vstack([np.zeros(variates), known.cumsum(axis=0)])
    squares = np.vstack([np.zeros(variates), (known**2).cumsum(axis=0)])
    recent, floor = max(short, ahead, 8), 0.1 * known[: data.starts[0]].std(axis=0) + 1e-9

    def rows(origin: NDArray[np.int64], step: NDArray[np.int64], variate: NDArray[np.int64]) -> tuple[Array, ...]:
        """Features (n, …) of forecasting step `step` (from 0) behind `origin`, and base and scale of each."""
        begin = np.maximum(origin - recent, 0)
        count = (origin - begin).astype(np.float64)
        mean = (totals[origin, variate] - totals[begin, variate]) / count
        spread = np.sqrt(np.maximum((squares[origin, variate] - squares[begin, variate]) / count - mean**2, 0))
        scale = np.maximum(spread, floor[variate])
        base = known[origin - season + step % season, variate]
        lags = [known[origin - lag, variate] for lag in (1, 2, 3, short)]
        lags += [known[origin - short + step % short, variate], mean]
        if longest > season:
            lags.append(known[origin - 2 * season + step % season, variate])
            lags.append(known[origin - season - 1, variate])
        features = [(lag - base) / scale for lag in lags] + [base / scale, step, variate]
        return np.column_stack([*features, dates[origin + step]]), base, scale

    end = data.starts[0]
    origin = random.integers(longest + 1, end - ahead + 1, ROWS)
    step, variate = random.integers(ahead, size=ROWS), random.integers(variates, size=ROWS)
    seen = np.isfinite(values[origin + step, variate])
    origin, step, variate = (one[seen] for one in (origin, step, variate))
    if len(known) * variates * ahead < ROWS:  # each once
        origin, step, variate = np.unique(np.stack([origin, step, variate]), axis=1)
    features, base, scale = rows(origin, step, variate)
    target = (values[origin + step, variate] - base) / scale
    common = {"objective": "quantile", "verbosity": -1, "num_threads": 1, "seed": seed, "learning_rate": 0.05}
    common |= {"num_leaves": 31 if len(target) > 10_000 else 7, "min_data_in_leaf": 20 if len(target) > 1000 else 8}
    common |= {"bagging_fraction": 0.8, "bagging_freq": 1, "feature_fraction": 0.8}
    content = lightgbm.Dataset(features, target, categorical_feature=[features.shape[1] - 6], free_raw_data=False)
    trees = [lightgbm.train({**common, "alpha": level}, content, TREES) for level in QUANTILES]

    def predict() -> Array:
        windows = []
        for start in data.starts:
            step, variate = (one.ravel() for one in np.mgrid[:ahead, :variates])
            features, base, scale = rows(np.full(len(step), start), step, variate)
            found = np.sort([one.predict(features) for one in trees], axis=0) * scale + base
            windows.append(at_levels(found, QUANTILES).reshape(PATHS, ahead, variates))
        return shuffled(np.stack(windows), seed)

    return predict


def at_levels(values: Array, quantiles: tuple[float, ...]) -> Array:
    """(quantiles, n) → (PATHS, n): the values at LEVELS, linear between quantiles and the nearest one outside."""
    where = np.interp(LEVELS, quantiles, np.arange(len(quantiles)))
    low = np.minimum(where.astype(int), len(quantiles) - 2)
    share = (where - low)[:, None]
    result: Array = values[low] * (1 - share) + values[low + 1] * share
    return result


# GluonTS's networks


def entry(values: Array, start: pandas.Timestamp, freq: str, name: str = "0") -> dict[str, Any]:
    """A series or a table of them, (steps,) or (steps, variates), as GluonTS takes it."""
    with quietly():
        return {"target": values.T, "start": pandas.Period(start, freq=freq), "item_id": name}


def gluonts(name: str) -> Model:
    """A network of single series, trained on all of them."""

    def fit(data: Series, seed: int) -> Predict:
        import lightning
        from gluonts.dataset.common import ListDataset
        from gluonts.torch import DeepAREstimator, PatchTSTEstimator, TemporalFusionTransformerEstimator

        for logger in ("lightning.pytorch", "lightning", "gluonts"):
            logging.getLogger(logger).setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
        lightning.seed_everything(seed, verbose=False)
        ahead, values, first = data.ahead, data.values, data.frame.index[0]
        context = max(2 * ahead, min(data.season, 6 * ahead))
        common = {"prediction_length": ahead, "context_length": context, "num_batches_per_epoch": BATCHES}
        trainer = {
            "max_epochs": max(1, round(EFFORT * EPOCHS[name])),
            "enable_progress_bar": False,
            "logger": False,
            "enable_model_summary": False,
        }
        common["trainer_kwargs"] = {**trainer, "default_root_dir": tempfile.mkdtemp()}  # where checkpoints go
        match name:
            case "DeepAR":
                estimator: Any = DeepAREstimator(freq=data.freq, **common)
            case "PatchTST":
                estimator = PatchTSTEstimator(patch_len=8, **common)
            case _:
                estimator = TemporalFusionTransformerEstimator(freq=data.freq, quantiles=list(QUANTILES), **common)

        def listed(ends: list[int]) -> ListDataset:
            entries = [entry(values[:end, v], first, data.freq, str(v)) for end in ends for v in range(values.shape[1])]
            return ListDataset(entries, freq=data.freq)

        predictor = estimator.train(listed(data.starts[:1]))

        def predict() -> Array:
            paths = []
            for one in predictor.predict(listed(data.starts), num_samples=PATHS):
                if hasattr(one, "samples"):
                    paths.append(one.samples)
                elif hasattr(one, "to_sample_forecast"):
                    paths.append(one.to_sample_forecast(PATHS).samples)
                else:
                    found = np.sort([one.quantile(level) for level in QUANTILES], axis=0)
                    paths.append(at_levels(found, QUANTILES))
            shape = (len(data.starts), values.shape[1], PATHS, ahead)
            return shuffled(np.stack(paths).reshape(shape).transpose(0, 2, 3, 1).astype(np.float64), seed)

        return predict

    return fit


MODELS: dict[str, Model] = {
    "last value": naive(_last),
    "last season": naive(_season),
    "drift": naive(_drift),
    **{name: statistical(name) for name in ("AutoETS", "AutoARIMA", "AutoTheta", "MSTL")},
    "LightGBM": boosted,
    **{name: gluonts(name) for name in ("DeepAR", "TFT", "PatchTST")},
}
LEARNED = ("LightGBM", "DeepAR", "TFT", "PatchTST")
"""Models that a seed changes."""

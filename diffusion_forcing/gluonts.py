"""An Estimator and a Predictor for GluonTS, whose own tools evaluate them unchanged.

    from diffusion_forcing.gluonts import DiffusionForcingEstimator

    predictor = DiffusionForcingEstimator(freq="h", prediction_length=24, max_steps=400).train(grouped)
    forecasts, series = make_evaluation_predictions(test, predictor, num_samples=100)

Data sets are multivariate: one entry whose target is (V, T), as `MultivariateGrouper` makes it. `feat_dynamic_real` (F,
T + prediction_length) and `past_feat_dynamic_real` (F, T) are further series of the same model; values that are there
behind the target's end are known futures.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pandas
import torch
from gluonts.model.estimator import Estimator
from gluonts.model.forecast import SampleForecast
from gluonts.model.predictor import Predictor

from diffusion_forcing.algorithms.forecasting import Forecasting, ForecastingOptions
from diffusion_forcing.checkpoints import load, save
from diffusion_forcing.checkpoints.format import sized_by
from diffusion_forcing.datasets.batch import SeriesBatch, SeriesSpec
from diffusion_forcing.datasets.series.dataset import SeriesWindows, spec_of
from diffusion_forcing.datasets.series.smoothing import Base
from diffusion_forcing.datasets.series.table import Table
from diffusion_forcing.datasets.series.times import checked_freq, count_and_unit, lags_of
from diffusion_forcing.errors import UserError, first_line, require
from diffusion_forcing.files import write_json
from diffusion_forcing.limits import load_json, reading
from diffusion_forcing.options import build_options

_FILE, _FOLDER = "forecaster.json", "checkpoint"
_FEATURES = ("feat_dynamic_real", "past_feat_dynamic_real")
_UNUSED = ("feat_static_cat", "feat_static_real", "feat_dynamic_cat")


class DiffusionForcingEstimator(Estimator):
    """Trains a forecaster. context_length: null is as long as the prediction; lags: null, the frequency's; max_steps of
    batch_size windows.

    options: keys of `algorithm=df_prediction`, nested as there: {"network": "transformer", "diffusion":
    {"sampling_timesteps": 20}}.
    """

    def __init__(
        self,
        freq: str,
        prediction_length: int,
        *,
        context_length: int | None = None,
        lags: tuple[int, ...] | None = None,
        max_steps: int = 1000,
        batch_size: int = 32,
        gradient_clip_val: float = 10.0,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
        trainer_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        for name, value in (
            ("prediction_length", prediction_length),
            ("max_steps", max_steps),
            ("batch_size", batch_size),
        ):
            _check_count(name, value)
        self.freq = checked_freq(freq)
        self.prediction_length = prediction_length
        self.context_length = context_length or prediction_length
        self.lags = lags_of(self.freq) if lags is None else lags
        self.max_steps, self.batch_size, self.gradient_clip_val = max_steps, batch_size, gradient_clip_val
        self.seed = seed
        self.options = build_options(ForecastingOptions, options or {}, "algorithm")
        self.trainer_kwargs = dict(trainer_kwargs or {})

    def train(
        self,
        training_data: Iterable[Mapping[str, Any]],
        validation_data: Any = None,
        *,
        cache_data: bool = False,
        num_workers: int | None = None,
        shuffle_buffer_length: int | None = None,
    ) -> DiffusionForcingPredictor:
        """A Predictor trained on `training_data`; `validation_data` is not read. The data lies in memory, so GluonTS's
        settings for loading it (cache_data, num_workers, shuffle_buffer_length) change nothing."""
        entries = list(training_data)
        if len(entries) != 1:
            raise UserError(
                f"the data set has {len(entries)} entries; several series are forecast together as one entry with a "
                "target (V, T): group them with gluonts.dataset.multivariate_grouper.MultivariateGrouper"
            )
        table, _ = _table(entries[0], self.freq, ahead=0)
        shortest = self.context_length + self.prediction_length
        if len(table) <= shortest:
            raise UserError(
                f"the series has {len(table)} steps; a window has {self.context_length} + {self.prediction_length}"
            )
        spec = spec_of(table, len(table), self.lags, self.context_length, self.prediction_length)
        ends, base = range(shortest, len(table) + 1), Base(table.values, spec.methods)
        windows = SeriesWindows(table, ends, self.lags, self.context_length, self.prediction_length, base)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            algorithm = Forecasting(self.options)
            algorithm.adapt(spec)
        algorithm.seed = self.seed
        trainer = lightning.Trainer(
            **{
                "max_steps": self.max_steps,
                "gradient_clip_val": self.gradient_clip_val,
                "logger": False,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                **self.trainer_kwargs,
            }
        )
        trainer.fit(algorithm, _Batches(windows, self.batch_size, self.max_steps, self.seed))
        algorithm.trainer = None  # holds the data, and cannot be pickled
        return DiffusionForcingPredictor(algorithm.cpu().eval(), seed=self.seed)


class DiffusionForcingPredictor(Predictor):
    """Sample paths from a trained `Forecasting`. `serialize(path)` and `Predictor.deserialize(path)` store it; it can
    be pickled."""

    def __init__(self, algorithm: Forecasting, *, seed: int = 0) -> None:
        super().__init__(prediction_length=algorithm.spec.prediction_length)
        self.algorithm = algorithm
        self.seed = seed

    def predict(
        self, dataset: Iterable[Mapping[str, Any]], num_samples: int | None = None, **kwargs: Any
    ) -> Iterator[SampleForecast]:
        """A SampleForecast of (num_samples, prediction_length, V) for each entry, in their order. num_samples: None is
        the options' own."""
        if num_samples is not None:
            _check_count("num_samples", num_samples)
        spec, ahead = self.algorithm.spec, self.prediction_length
        for number, entry in enumerate(dataset):
            table, count = _table(entry, spec.freq, ahead=ahead, number=number)
            if table.names != spec.names:
                trained = sum(name.isdigit() for name in spec.names)
                raise UserError(
                    f"entry {number} has {count} series and {table.variates - count} features, the predictor was "
                    f"trained on {trained} and {spec.variates - trained}; give the same ones"
                )
            base = Base(table.values, spec.methods, len(table) - ahead)
            windows = SeriesWindows(table, [len(table)], spec.lags, spec.context_length, ahead, base)
            samples = self.algorithm.forecast(
                windows[0],
                paths=num_samples,
                known=torch.arange(table.variates) >= count if table.variates > count else None,
                generator=torch.Generator(self.algorithm.device).manual_seed(self.seed * 1_000_003 + number),
            )
            drawn = samples[0, ..., :count].cpu().numpy()
            yield SampleForecast(
                drawn if np.ndim(entry["target"]) > 1 else drawn[..., 0],
                start_date=_start(entry["start"], spec.freq, number) + len(table) - ahead,
                item_id=entry.get("item_id"),
            )

    def serialize(self, path: Path) -> None:
        """Write the predictor into the folder `path`."""
        super().serialize(path)
        algorithm = self.algorithm
        save(path / _FOLDER, None, metadata=algorithm.describe(), model=algorithm.sampling_weights(), step=1)
        content = {"options": asdict(algorithm.options), "data": algorithm.describe()["data"], "seed": self.seed}
        write_json(path / _FILE, content)

    @classmethod
    def deserialize(cls, path: Path, **kwargs: Any) -> DiffusionForcingPredictor:
        """The predictor that was written to `path`."""
        with reading(path / _FILE, "take another predictor"):
            content = load_json(path / _FILE)
            with sized_by(path / _FOLDER):
                algorithm = Forecasting(build_options(ForecastingOptions, content["options"], "algorithm"))
                algorithm.adapt(SeriesSpec.from_plain(content["data"]))
            algorithm.load_weights(load(path / _FOLDER))
            return cls(algorithm.eval(), seed=content["seed"])


class _Batches(torch.utils.data.IterableDataset[SeriesBatch]):
    """`count` batches of windows drawn from the seed; Lightning takes it as its loader."""

    def __init__(self, windows: SeriesWindows, size: int, count: int, seed: int) -> None:
        self.windows, self.size, self.count, self.seed = windows, size, count, seed

    def __iter__(self) -> Iterator[SeriesBatch]:
        drawn = np.random.default_rng(self.seed)
        for _ in range(self.count):
            yield self.windows.__getitems__(drawn.integers(len(self.windows), size=self.size).tolist())


def _check_count(name: str, value: Any) -> None:
    """UserError unless `value` is a whole number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise UserError(f"{name} is {value!r}; it must be a whole number, 1 or more")


def _table(entry: Mapping[str, Any], freq: str, *, ahead: int, number: int = 0) -> tuple[Table, int]:
    """An entry's target, (V, T) or (T,), and behind it the features that it has, as a table of T + ahead steps; and
    V."""
    try:
        target = np.asarray(entry["target"], np.float64)
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"entry {number} has no target of numbers ({first_line(error)}); give an array (V, T)"
        ) from None
    if target.ndim not in (1, 2):
        raise UserError(f"entry {number} has a target of shape {target.shape}; give (V, T), one series a row")
    target = np.atleast_2d(target)
    require(bool(target.shape[-1]), f"entry {number} has an empty target; give at least one step of history")
    for name in _UNUSED:
        if entry.get(name) is not None and np.size(entry[name]):
            warnings.warn(f"{name} is not used: the forecaster is conditioned on dates, lags and series", stacklevel=3)
    series, names = list(target), [str(count) for count in range(len(target))]
    for feature in _FEATURES:
        if entry.get(feature) is not None:
            found = np.atleast_2d(np.asarray(entry[feature], np.float64))
            series += list(found)
            names += [f"{feature} {count}" for count in range(len(found))]
    values = np.full((target.shape[1] + ahead, len(series)), np.nan)
    for column, one in enumerate(series):
        values[: min(len(one), len(values)), column] = one[: len(values)]
    values[~np.isfinite(values)] = np.nan
    start = _start(entry.get("start"), freq, number).asfreq(freq, how="start")
    return Table(values, str(start), freq, tuple(names)), len(target)


def _start(start: Any, freq: str, number: int) -> pandas.Period:
    """The first step; a period keeps its own weekday or month. UserError for one of other steps than `freq`."""
    if not isinstance(start, pandas.Period):
        try:
            start = pandas.NaT if isinstance(start, int | float) else pandas.Period(pandas.Timestamp(start), freq=freq)
        except (ValueError, TypeError):
            start = pandas.NaT
        if start is pandas.NaT:
            raise UserError(
                f"entry {number} has no start; give a pandas.Period of {freq}, or a time such as 2024-01-31"
            )
        return start
    if count_and_unit(start.freqstr) != count_and_unit(freq):
        raise UserError(
            f"entry {number} has steps of {start.freqstr}, the forecaster those of {freq}; give data with these steps"
        )
    return start

"""Diffusion Forcing as a citizen of GluonTS: an Estimator and a Predictor that its own tools evaluate unchanged.

    from diffusion_forcing.gluonts import DiffusionForcingEstimator

    predictor = DiffusionForcingEstimator(freq="h", prediction_length=24, max_steps=400).train(grouped)
    forecasts, series = make_evaluation_predictions(test, predictor, num_samples=100)

Data sets are multivariate: one entry whose target is (V, T), as `MultivariateGrouper` makes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from gluonts.model.estimator import Estimator
from gluonts.model.forecast import SampleForecast
from gluonts.model.predictor import Predictor

from diffusion_forcing.algorithms.base import TransformerOptions
from diffusion_forcing.algorithms.forecasting import (
    STATISTICS,
    Forecasting,
    ForecastingDiffusionOptions,
    ForecastingOptions,
)
from diffusion_forcing.checkpoints import load, save
from diffusion_forcing.datasets.batch import SeriesBatch, SeriesSpec
from diffusion_forcing.datasets.series.dataset import SeriesWindows, spec_of
from diffusion_forcing.datasets.series.table import Table
from diffusion_forcing.datasets.series.times import checked_freq, lags_of
from diffusion_forcing.errors import UserError

_FILE, _FOLDER = "forecaster.json", "checkpoint"


class DiffusionForcingEstimator(Estimator):
    """Trains a forecaster. context_length: null is as long as the prediction; lags: null, the frequency's; max_steps of batch_size windows.

    options: keys of `algorithm=df_prediction`, nested as there: {"network": "transformer", "diffusion": {"sampling_timesteps": 20}}.
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
        self.freq = checked_freq(freq)
        self.prediction_length = prediction_length
        self.context_length = context_length or prediction_length
        self.lags = lags_of(self.freq) if lags is None else lags
        self.max_steps, self.batch_size, self.gradient_clip_val = max_steps, batch_size, gradient_clip_val
        self.seed = seed
        self.options = options_of(options or {})
        self.trainer_kwargs = dict(trainer_kwargs or {})

    def train(
        self, training_data: Iterable[Mapping[str, Any]], validation_data: Any = None
    ) -> DiffusionForcingPredictor:
        """A Predictor trained on `training_data`; `validation_data` is not read."""
        table = _table(_only(training_data), self.freq)
        shortest = self.context_length + self.prediction_length
        if len(table) <= shortest:
            raise UserError(
                f"the series has {len(table)} steps; a window has {self.context_length} + {self.prediction_length}"
            )
        spec = spec_of(table, len(table), self.lags, self.context_length, self.prediction_length)
        ends = list(range(shortest, len(table) + 1))
        windows = SeriesWindows(table, ends, self.lags, self.context_length, self.prediction_length, spec.season)
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
        return DiffusionForcingPredictor(algorithm.cpu().eval(), seed=self.seed)


class DiffusionForcingPredictor(Predictor):
    """Sample paths from a trained `Forecasting`. `serialize(path)` and `Predictor.deserialize(path)` keep it."""

    def __init__(self, algorithm: Forecasting, *, seed: int = 0) -> None:
        super().__init__(prediction_length=algorithm.known.prediction_length)
        self.algorithm = algorithm
        self.seed = seed

    def predict(
        self, dataset: Iterable[Mapping[str, Any]], num_samples: int | None = None, **kwargs: Any
    ) -> Iterator[SampleForecast]:
        """A SampleForecast of (num_samples, prediction_length, V) for each entry, in their order."""
        spec = self.algorithm.known
        device = next(self.algorithm.parameters()).device
        for number, entry in enumerate(dataset):
            table = _table(entry, spec.freq)
            if table.variates != spec.variates:
                raise UserError(
                    f"entry {number} has {table.variates} series, the predictor was trained on {spec.variates}; give the same ones"
                )
            end = len(table) + self.prediction_length
            window = SeriesWindows(table, [end], spec.lags, spec.context_length, self.prediction_length, spec.season)[0]
            samples = self.algorithm.forecast(
                window.on(device),
                paths=num_samples,
                generator=torch.Generator(device).manual_seed(self.seed * 1_000_003 + number),
            )
            drawn = samples[0].cpu().numpy()
            yield SampleForecast(
                drawn if np.ndim(entry["target"]) > 1 else drawn[..., 0],
                start_date=entry["start"] + len(table),
                item_id=entry.get("item_id"),
            )

    def serialize(self, path: Path) -> None:
        """Write the predictor into the folder `path`."""
        super().serialize(path)
        algorithm = self.algorithm
        save(path / _FOLDER, None, metadata=algorithm.describe(), model=algorithm.sampling_weights(), step=1)
        content = {"options": asdict(algorithm.options), "data": algorithm.describe()["data"], "seed": self.seed}
        (path / _FILE).write_text(json.dumps(content))

    @classmethod
    def deserialize(cls, path: Path, **kwargs: Any) -> DiffusionForcingPredictor:
        """The predictor that was written to `path`."""
        content = json.loads((path / _FILE).read_text())
        data = content["data"]
        for name in STATISTICS:
            data[name] = np.array(data.get(name, [0.0]), np.float32)
        for name in ("lags", "names"):
            data[name] = tuple(data[name])
        algorithm = Forecasting(options_of(content["options"]))
        algorithm.adapt(SeriesSpec(**data))
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


def options_of(nested: Mapping[str, Any]) -> ForecastingOptions:
    """Options from plain values, lists as tuples; UserError for a key there is not."""
    own = dict(nested)
    diffusion = dict(own.pop("diffusion", {}))
    architecture = diffusion.pop("architecture", {})
    return ForecastingOptions(
        **_plain(ForecastingOptions, own),
        diffusion=ForecastingDiffusionOptions(
            **_plain(ForecastingDiffusionOptions, diffusion),
            architecture=TransformerOptions(**_plain(TransformerOptions, architecture)),
        ),
    )


def _plain(options: type, values: Mapping[str, Any]) -> dict[str, Any]:
    allowed = {field.name for field in fields(options)}
    for key in values:
        if key not in allowed:
            raise UserError(f"there is no option '{key}'; {options.__name__} has {', '.join(sorted(allowed))}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _only(dataset: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    entries = list(dataset)
    if len(entries) != 1:
        raise UserError(
            f"the data set has {len(entries)} entries; several series are forecast together as one entry with a target (V, T): "
            "group them with gluonts.dataset.multivariate_grouper.MultivariateGrouper"
        )
    return entries[0]


def _table(entry: Mapping[str, Any], freq: str) -> Table:
    """An entry's target, (V, T) or (T,), as a table."""
    target = np.atleast_2d(np.asarray(entry["target"], np.float32)).T.copy()
    target[~np.isfinite(target)] = np.nan
    return Table(target, str(entry["start"]), freq, tuple(str(number) for number in range(target.shape[1])))

"""Forecasting: train on windows of several series until validation gets no better, sample paths, score and draw them.

`test` forecasts the test windows, exactly `algorithm.calc_crps_sum` paths each, and leaves metrics.json, fan charts and a calibration plot.
`forecast` goes on behind the data's end, and leaves a table of quantiles and every path. Series in `dataset.known_future` are given, not
forecast, and not scored.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from diffusion_forcing.algorithms.forecasting import Forecasting
from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.datasets.batch import SeriesBatch
from diffusion_forcing.datasets.series.dataset import SeriesWindows, TimeSeries
from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments import devices
from diffusion_forcing.experiments.base import BaseExperiment
from diffusion_forcing.experiments.checkpointing import best_of, load_weights
from diffusion_forcing.experiments.options import ExperimentOptions
from diffusion_forcing.files import write_atomic
from diffusion_forcing.metrics.forecasting import (
    QUANTILES,
    calibration,
    crps_sum,
    forecast_report,
    random_walk,
    seasonal,
)
from diffusion_forcing.visualization.forecast import draw_calibration, draw_fans

MOST_DRAWN = 6  # variates on a sheet of fan charts
SHOWN_QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
COMPARED = ("crps_sum", "crps", "nd")  # what metrics.json holds of the naive forecasts
HISTORY_DRAWN = 2  # histories before the forecast


@dataclass(frozen=True, kw_only=True)
class ForecastingExperimentOptions(ExperimentOptions):
    """`experiment=exp_prediction`. patience: validations without a better CRPS_sum after which training ends; null: never."""

    patience: int | None = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patience is not None and self.patience < 1:
            raise UserError(f"experiment.patience is {self.patience}; it must be 1 validation or more, or null")


class ForecastingExperiment(BaseExperiment):
    """Tasks: save_mean_std_metadata, training, validation, test, forecast."""

    Options = ForecastingExperimentOptions
    task = "prediction"
    shared_tasks = frozenset({"training"})
    options: ForecastingExperimentOptions
    algorithm: Forecasting

    @classmethod
    def one_batch(cls, options: ExperimentOptions) -> ExperimentOptions:
        return replace(super().one_batch(options), patience=None)  # type: ignore[call-arg]

    def save_mean_std_metadata(self) -> None:
        """Write what the series are scaled by, and how they are split, to tables/series.csv and metrics.json."""
        self._read()
        spec = self.dataset.spec
        columns = zip(spec.names, spec.mean.tolist(), spec.std.tolist(), spec.step_std.tolist(), strict=True)
        rows = [{"series": name, "mean": mean, "std": std, "step_std": step} for name, mean, std, step in columns]
        self.run.table(
            "series", rows, caption="Each series in the training part; step_std: its change in half a prediction"
        )
        self.run.summary(
            {
                "data/series": spec.variates,
                "data/steps": len(self.dataset.table),
                "data/training_steps": self.dataset.training_end,
                "data/missing": float(1 - self.dataset.table.observed.mean()),
            }
        )
        self._say(
            f"{spec.variates} series of {len(self.dataset.table):,} steps of {spec.freq}: {self.dataset.training_end:,} to train on, then "
            f"{len(self.dataset.validation_ends)} windows to validate and {len(self.dataset.test_ends)} to test, {spec.prediction_length} steps each"
        )

    def training(self) -> None:
        """Train until validation/crps_sum gets no better, and go on with the best checkpoint."""
        super().training()
        options = self.options.training.checkpointing
        best = best_of(self.run.folder / "checkpoints", options.mode) if options.monitor else None
        if best is not None:
            loaded = native.load(best)
            load_weights(self.algorithm, loaded)
            self.step = loaded.step
            self._say(f"the best checkpoint by {options.monitor}: {best}")

    def validation(self) -> None:
        """Forecast and score the validation windows."""
        self._forecast("validation")

    def test(self) -> None:
        """Forecast and score the test windows."""
        self._forecast("test")

    def _read(self) -> None:
        if not isinstance(self.dataset, TimeSeries):
            raise UserError(
                f"this experiment forecasts series, and {type(self.dataset).__name__} has none; "
                "choose dataset=ts_ecb, ts_load, ts_csv or another ts_*"
            )
        self.dataset.prepare()

    def _prepare(self, *, weights: bool = True, data: bool = True) -> None:
        self._read()
        self.algorithm.adapt(self.dataset.spec)
        self.algorithm.score = crps_sum
        super()._prepare(weights=weights, data=data)

    def _callbacks(self) -> list[Callback]:
        monitor = self.options.training.checkpointing.monitor
        if self.options.patience is None or monitor is None:
            return []
        mode = self.options.training.checkpointing.mode
        # looked at after validations alone; of a metric that is not there a line is said where the best checkpoints are kept
        return [
            EarlyStopping(
                monitor, patience=self.options.patience, mode=mode, strict=False, check_on_train_epoch_end=False
            )
        ]

    def forecast(self) -> None:
        """Sample paths of what comes behind the data: tables/forecast.csv, forecast.npz, a picture."""
        self._prepare()
        windows: SeriesWindows = self.dataset.future()
        _, samples, target = self._sample("forecast", windows)
        names, table, begin = self.algorithm.known.names, self.dataset.table, self.dataset.end
        times = table.times(begin, samples.shape[2])
        quantiles = np.quantile(samples[0], SHOWN_QUANTILES, axis=0)
        rows = [
            {"time": time, "series": name, "mean": float(samples[0, :, step, variate].mean())}
            | {f"q{level:g}": float(quantiles[number, step, variate]) for number, level in enumerate(SHOWN_QUANTILES)}
            for step, time in enumerate(times)
            for variate, name in enumerate(names)
        ]
        self.run.table("forecast", rows, caption="What comes behind the data: mean and quantiles of the paths")
        content = io.BytesIO()
        np.savez_compressed(content, samples=samples[0].astype(np.float32), times=times, names=names)
        write_atomic(self.run.folder / "forecast.npz", content.getvalue())
        self._draw_fans("forecast", self._history(begin, windows), samples[0], target[0], names)
        self._say(
            f"forecast of {len(times)} steps from {times[0]}: {self.run.folder / 'tables' / 'forecast.csv'}; "
            f"all {samples.shape[1]} paths: {self.run.folder / 'forecast.npz'} (samples: path, step, series)"
        )

    def _forecast(self, task: str) -> None:
        self._prepare()
        windows: SeriesWindows = self.dataset.test() if task == "test" else self.dataset.validation()
        _, samples, target = self._sample(task, windows)
        free = ~self.dataset.known_future
        samples, target = samples[..., free], target[..., free]
        report = forecast_report(samples, target)
        self.run.summary({**report, "forecast/windows": len(windows), "forecast/paths": samples.shape[1]})
        naive = self._naive(windows, samples.shape[1], target, free)
        self.run.summary(
            {f"naive/{way}_{name}": of[f"forecast/{name}"] for way, of in naive.items() for name in COMPARED}
        )
        self._say(f"  {'':12s} {'forecast':>9s}" + "".join(f" {way:>9s}" for way in naive))
        for key, value in report.items():
            others = "".join(f" {of[key]:9.4g}" for of in naive.values())
            self._say(f"  {key.removeprefix('forecast/'):12s} {value:9.4g}{others}")
        self._draw(task, windows, samples, target, free)

    def _naive(
        self, windows: SeriesWindows, paths: int, target: np.ndarray, free: np.ndarray
    ) -> dict[str, dict[str, float]]:
        """Scores of what a forecast has to beat, on the same windows: the last value, the last season."""
        table, ahead = self.dataset.table, windows.prediction_length
        random = np.random.default_rng(self.seed)
        histories = [table.values[: end - ahead, free].astype(np.float64) for end in windows.ends]
        season = self.dataset.spec.season
        walks = [random_walk(one, ahead, paths=paths, random=random) for one in histories]
        again = [seasonal(one, ahead, season=season, paths=paths, random=random) for one in histories]
        return {
            "walk": forecast_report(np.stack(walks), target),
            "seasonal": forecast_report(np.stack(again), target),
        }

    def _sample(self, task: str, windows: SeriesWindows) -> tuple[SeriesBatch, np.ndarray, np.ndarray]:
        """The windows, sample paths of them (n, paths, h, V) and what came (n, h, V), NaN where nothing was observed."""
        if not self.step:
            self._say(f"{task}: the weights are not trained (no load=, no resume=, no training before)")
        device = devices.device()
        algorithm = self.algorithm.to(device).eval()
        batch = windows.__getitems__(range(len(windows)))
        known = self.dataset.known_future
        with _bar() as progress:
            bar = progress.add_task(
                f"{task}: {len(windows)} windows of {algorithm.options.calc_crps_sum} paths", total=None
            )
            samples = algorithm.forecast(
                batch.on(device),
                known=torch.from_numpy(known) if known.any() else None,
                generator=torch.Generator(device).manual_seed(self.seed),
                on_step=lambda done, all_: progress.update(bar, completed=done, total=all_),
            )
        context = algorithm.known.context_length
        target = torch.where(batch.observed, batch.values, torch.nan)[:, context:]
        return batch, samples.cpu().double().numpy(), target.double().numpy()

    def _history(self, begin: int, windows: SeriesWindows) -> np.ndarray:
        """The table's values before step `begin`, as many as are drawn."""
        values: np.ndarray = self.dataset.table.values
        return values[max(0, begin - HISTORY_DRAWN * windows.context_length) : begin]

    def _draw_fans(
        self, task: str, history: np.ndarray, samples: np.ndarray, target: np.ndarray, names: Sequence[str]
    ) -> None:
        shown = min(MOST_DRAWN, len(names))
        self.run.image(
            f"{task}_fans",
            draw_fans(history[:, :shown], samples[..., :shown], target[..., :shown], names=names[:shown]),
            caption=f"The last {task} window: what was known, 50, 80 and 90 % of the paths, and what came",
        )

    def _draw(
        self, task: str, windows: SeriesWindows, samples: np.ndarray, target: np.ndarray, free: np.ndarray
    ) -> None:
        names = [name for name, is_free in zip(self.algorithm.known.names, free, strict=True) if is_free]
        last = len(windows) - 1
        history = self._history(int(windows.ends[last]) - windows.prediction_length, windows)[:, free]
        self._draw_fans(task, history, samples[last], target[last], names)
        summed = samples[last].sum(-1, keepdims=True), target[last].sum(-1, keepdims=True)
        self.run.image(
            f"{task}_sum",
            draw_fans(history.sum(-1, keepdims=True), *summed, names=["sum of all series"]),
            caption="The same of the sum, which CRPS_sum scores",
        )
        self.run.image(
            f"{task}_calibration",
            draw_calibration(QUANTILES, calibration(samples, target)),
            caption="Share of values below each quantile; on the diagonal the paths are calibrated",
        )


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, transient=True)

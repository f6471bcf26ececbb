"""Forecasting: train on windows of several series until validation no longer improves, sample paths, score and draw
them.

`test` forecasts the test windows with exactly `algorithm.calc_crps_sum` paths each, and writes metrics.json, fan charts
and a calibration plot. `forecast` continues after the end of the data, and writes a table of quantiles and every path.
Series in `dataset.known_future` are given, not forecast, and not scored. `test_imputation` hides values of the test
windows and scores what is filled in, beside linear interpolation and the same time of the last season; `impute` fills
the gaps of the data.

What a network adds to simple methods depends on the data: much on thousands of steps, nothing on fifty. A `Pool` holds
the network's paths and those of its base forecast in the shares that scored best on validation windows, where neither
was trained (a linear pool; its CRPS is never above the mean of its members'), so that a network with nothing to add
costs little.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from numpy.typing import NDArray

from diffusion_forcing.algorithms.forecasting import Forecasting
from diffusion_forcing.algorithms.imputation import check_can_impute, impute
from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.datasets.series.dataset import SeriesWindows, TimeSeries
from diffusion_forcing.datasets.series.smoothing import Base
from diffusion_forcing.errors import UserError, require
from diffusion_forcing.experiments import devices
from diffusion_forcing.experiments.base import BaseExperiment
from diffusion_forcing.experiments.checkpointing import best_of, load_weights
from diffusion_forcing.experiments.options import ExperimentOptions
from diffusion_forcing.files import write_atomic
from diffusion_forcing.metrics.forecasting import (
    QUANTILES,
    calibration,
    coverage,
    crps,
    crps_sum,
    forecast_report,
    observed_sums,
    random_walk,
    seasonal,
    why_missing,
)
from diffusion_forcing.options import Count
from diffusion_forcing.progress import Bar
from diffusion_forcing.terminal import counted
from diffusion_forcing.visualization.charts import draw_calibration, draw_fans, draw_gaps

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# ------------------------------------------------------------------------------ the network's paths beside the base's

NETWORK_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
WIDTHS = (0.8, 1.0, 1.25, 1.6)
BETTER = 0.99
"""Of its score: what is chosen instead of the even pool must be better than this."""


class Pool(NamedTuple):
    """share: of paths that are the network's. width: how far those lie from their median, relative to what it
    sampled."""

    share: float
    width: float

    def __str__(self) -> str:
        if not self.share:
            return "the network adds nothing to the base forecast: all paths are the base forecast's"
        widened = f", {self.width:g} times as wide as sampled" if self.width != 1 else ""
        return f"{self.share:.0%} of the paths are the network's{widened}, {1 - self.share:.0%} the base forecast's"

    def mix(self, network: Array, base: Array) -> Array:
        """Paths (n, paths, h, V) of the network and of the base → as many of the pool."""
        own = round(self.share * network.shape[1])
        median = np.median(network, axis=1, keepdims=True)
        return np.concatenate([(median + self.width * (network - median))[:, :own], base[:, own:]], axis=1)


def choose_pool(network: Array, base: Array, target: Array) -> Pool:
    """The best pool of paths (n, paths, h, V) by CRPS on what was observed: target (n, h, V), NaN where nothing was. The
    even one, unless another is clearly better."""
    scores = {
        pool: crps(pool.mix(network, base), target)
        for pool in (Pool(share, width) for share in NETWORK_SHARES for width in (WIDTHS if share else (1.0,)))
    }
    even = Pool(0.5, 1.0)
    best = min(scores, key=lambda pool: (np.nan_to_num(scores[pool], nan=np.inf), pool != even))
    return best if scores[best] < BETTER * scores[even] else even


def ordered_as(network: Array, base: Array) -> Array:
    """The network's paths (n, paths, h, V), of series that it sampled one by one, reordered so that they move together
    as those of `base` do: the path of a series that is its k-th largest takes the place of the base's k-th largest
    (a Schaake shuffle of whole paths)."""
    rank = base.mean(axis=2).argsort(axis=1).argsort(axis=1)
    order = np.take_along_axis(network.mean(axis=2).argsort(axis=1), rank, axis=1)
    return np.take_along_axis(network, order[:, :, None], axis=1)


# ------------------------------------------------------------------------------------------------ gaps in series

HIDDEN_SHARES = (0.1, 0.3, 0.5)
"""Of the observed values, hidden."""
PATTERNS = ("points", "blocks")


def hide(observed: Mask, share: float, pattern: str, block: int, random: np.random.Generator) -> Mask:
    """Which of the observed values (L, V) are hidden: `share` of them, one by one or in blocks of `block` steps; of every
    series at least one stays."""
    hidden = np.zeros_like(observed)
    for series in range(observed.shape[1]):
        places = np.flatnonzero(observed[:, series])
        count = max(0, min(round(share * len(places)), len(places) - 1))
        if pattern == "points":
            hidden[random.choice(places, count, replace=False), series] = True
            continue
        while hidden[:, series].sum() < count:
            start = random.integers(1 - block, len(observed))
            left = count - hidden[:, series].sum()
            new = np.flatnonzero(observed[:, series] & ~hidden[:, series])
            hidden[new[(new >= start) & (new < start + block)][:left], series] = True
    return hidden


def windows_without(dataset: TimeSeries, hidden: Mask, ends: list[int]) -> SeriesWindows:
    """The windows that end before steps `ends` of a table (T, V) whose `hidden` values were not observed."""
    spec = dataset.spec
    table = replace(dataset.table, values=np.where(hidden, np.nan, dataset.table.values))
    base = Base(table.values, spec.methods, dataset.known_until)
    return SeriesWindows(table, ends, spec.lags, dataset.context_length, dataset.prediction_length, base)


def windows_with_gaps(dataset: TimeSeries) -> list[int]:
    """Where windows end that together hold every gap of the table between its first and its last step."""
    length = dataset.context_length + dataset.prediction_length
    ends = [*range(length, len(dataset.table), length), len(dataset.table)]
    gaps = ~dataset.table.observed.all(axis=1)
    return [end for end in ends if gaps[max(0, end - length) : end].any()]


def interpolated(values: Array) -> Array:
    """Values (T, V) with each gap on the straight line between its ends; at the beginning and the end the nearest value."""
    steps = np.arange(len(values))
    filled = values.copy()
    for series in filled.T:
        known = np.isfinite(series)
        if known.any():
            series[~known] = np.interp(steps[~known], steps[known], series[known])
    return filled


def last_season(values: Array, season: int) -> Array:
    """Values (T, V) with each gap filled by the same time of the last season that was observed, or interpolated."""
    filled, fallback = values.copy(), interpolated(values)
    for step in range(season, len(values)):
        filled[step] = np.where(np.isfinite(filled[step]), filled[step], filled[step - season])
    return np.where(np.isfinite(filled), filled, fallback)


def cases(dataset: TimeSeries, seed: int) -> Iterator[tuple[str, Mask]]:
    """Each pattern and share by name, and what it hides of the table (T, V), in the test windows alone."""
    table, ends = dataset.table, dataset.test_ends
    first = max(0, ends[0] - dataset.context_length - dataset.prediction_length)
    for pattern in PATTERNS:
        for share in HIDDEN_SHARES:
            random = np.random.default_rng(seed)
            hidden = np.zeros_like(table.observed)
            part = table.observed[first : ends[-1]]
            hidden[first : ends[-1]] = hide(part, share, pattern, max(2, dataset.prediction_length // 2), random)
            yield f"{pattern}_{100 * share:.0f}", hidden


MOST_DRAWN = 6  # variates in a grid of fan charts
SHOWN_QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
COMPARED = ("crps_sum", "crps", "nd")  # scores of the naive forecasts in metrics.json
HISTORY_DRAWN = 2  # context lengths before the forecast


@dataclass(frozen=True, kw_only=True)
class ForecastingExperimentOptions(ExperimentOptions):
    """`experiment=exp_prediction`. patience: validations without a better CRPS_sum after which training stops; null: it
    does not."""

    patience: Count | None = 6


class EarlyStopping(lightning_callbacks.EarlyStopping):
    """Lightning's, which says when it stops training, and takes a missing score for no reason to stop."""

    def __init__(self, monitor: str, *, patience: int, mode: str, say: Callable[[str], None]) -> None:
        super().__init__(
            monitor, patience=patience, mode=mode, strict=False, check_finite=False, check_on_train_epoch_end=False
        )
        self._say = say

    def _run_early_stopping_check(self, trainer: Trainer) -> None:
        score = trainer.callback_metrics.get(self.monitor)
        if score is None or not torch.isfinite(score):
            return
        before = trainer.should_stop
        super()._run_early_stopping_check(trainer)
        if trainer.should_stop and not before:
            self._say(
                f"training stops: {self.monitor} has not improved on {float(self.best_score):.4g} in "
                f"{self.wait_count} validations (experiment.patience={self.patience})"
            )


class ForecastingExperiment(BaseExperiment):
    """Tasks: save_mean_std_metadata, training, validation, test, forecast, test_imputation, impute."""

    Options = ForecastingExperimentOptions
    task = "prediction"
    shared_tasks = frozenset({"training", "distill"})
    options: ForecastingExperimentOptions
    algorithm: Forecasting
    _matched = False
    _horizon: int | None = None
    """Steps ahead that the loaded forecaster was trained for, if it says so."""

    @classmethod
    def one_batch(cls, options: ExperimentOptions) -> ExperimentOptions:
        return replace(super().one_batch(options), patience=None)  # type: ignore[call-arg]

    def save_mean_std_metadata(self) -> None:
        """Write the statistics that scale the series, and how they are split, to tables/series.csv and metrics.json."""
        self._read()
        spec = self.dataset.spec
        columns = zip(spec.names, spec.mean.tolist(), spec.std.tolist(), spec.methods, strict=True)
        rows = [
            {"series": name, "mean": mean, "std": std, "season": found[0].season, "logarithm": found[0].logarithm}
            for name, mean, std, found in columns
        ]
        self.run.table(
            "series", rows, caption="Each series in the training part; season and logarithm: of its best simple method"
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
            f"{spec.variates} series of {len(self.dataset.table):,} steps of {spec.freq}: "
            f"{self.dataset.training_end:,} to train on, then {counted(len(self.dataset.validation_ends), 'window')} to validate "
            f"and {len(self.dataset.test_ends)} to test, {counted(spec.prediction_length, 'step')} each"
        )

    def training(self) -> None:
        """Train until validation/crps_sum no longer improves, and continue with the best checkpoint."""
        if self._callbacks():
            training = self.options.training
            limits = {name: getattr(training, name) for name in ("max_steps", "max_epochs", "max_time")}
            ends = " or ".join(f"{name}={value}" for name, value in limits.items() if value not in (None, -1))
            self._say_once(
                f"training ends at {ends or 'no set step'}, and sooner where {training.checkpointing.monitor} "
                f"has not improved in {self.options.patience} validations in a row"
            )
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
        self._read()
        require(bool(self.dataset.test_ends), "dataset.test_windows=0 leaves nothing to test; keep at least one window")
        self._forecast("test")

    def _read(self) -> None:
        """Read the data, as the forecaster that is loaded or resumed knows it; say what was left out or is in doubt."""
        if not isinstance(self.dataset, TimeSeries):
            raise UserError(
                f"this experiment forecasts series, and {type(self.dataset).__name__} has none; "
                "choose dataset=ts_ecb, ts_load, ts_csv or another ts_*"
            )
        self.dataset.prepare()
        source = self.load if self.resume is None else self._checkpoint_to_resume()
        if source is not None and native.is_checkpoint(source) and not self._matched:
            data = native.read_header(source)["facts"].get("data")
            if isinstance(data, dict):
                self.dataset.match(data)
                self._horizon = data.get("horizon")
        self._matched = True
        for note in self.dataset.table.notes:
            self._say_once(f"{self.dataset.options.path or self.dataset.options.source}: {note}")

    def _prepare(self, *, weights: bool = True, data: bool = True) -> None:
        self._read()
        with native.sized_by(self.load or self.resume):
            self.algorithm.adapt(self.dataset.spec)
        self.algorithm.score = self._score
        super()._prepare(weights=weights, data=data)

    def _score(self, samples: np.ndarray, target: np.ndarray) -> float:
        score = crps_sum(samples, target)
        if not np.isfinite(score):
            self._say_once(f"validation/crps_sum is missing: {why_missing(samples, target)}; training goes on")
        return score

    def _callbacks(self) -> list[Callback]:
        options = self.options.training.checkpointing
        if self.options.patience is None or options.monitor is None:
            return []
        return [EarlyStopping(options.monitor, patience=self.options.patience, mode=options.mode, say=self._say)]

    def forecast(self) -> None:
        """Sample paths after the end of the data: tables/forecast.csv, forecast.npz, a fan chart."""
        samples, target = self.paths("forecast")
        windows = self.windows("forecast")
        names, table, begin = self.algorithm.spec.names, self.dataset.table, self.dataset.end
        times = table.times(begin, samples.shape[2])
        quantiles = np.quantile(samples[0], SHOWN_QUANTILES, axis=0)
        rows = [
            {"time": time, "series": name, "mean": float(samples[0, :, step, variate].mean())}
            | {f"q{level:g}": float(quantiles[number, step, variate]) for number, level in enumerate(SHOWN_QUANTILES)}
            for step, time in enumerate(times)
            for variate, name in enumerate(names)
        ]
        self.run.table("forecast", rows, caption="After the end of the data: mean and quantiles of the paths")
        content = io.BytesIO()
        np.savez_compressed(content, samples=samples[0], times=times, names=names)
        write_atomic(self.run.folder / "forecast.npz", content.getvalue())
        self._draw_fans("forecast", begin, windows, samples[0], target[0], np.ones(len(names), bool))
        self._say(
            f"forecast of {counted(len(times), 'step')} from {times[0]}: {self.run.folder / 'tables' / 'forecast.csv'}; "
            f"all {samples.shape[1]} paths: {self.run.folder / 'forecast.npz'} (samples: path, step, series)"
        )

    def test_imputation(self) -> None:
        """Hide 10, 30 and 50 % of the values of the test windows, singly and in blocks, and score what fills them."""
        self._prepare()
        check_can_impute(self.algorithm)
        require(bool(self.dataset.test_ends), "dataset.test_windows=0 leaves nothing to test; keep at least one window")
        rows = []
        for name, hidden in cases(self.dataset, self.seed):
            windows = windows_without(self.dataset, hidden, self.dataset.test_ends)
            samples = self._fill(windows, f"test_imputation: {name}")
            steps = windows.ends[:, None] + np.arange(-samples.shape[2], 0)
            inside, steps = steps >= 0, steps.clip(0)
            target = np.where(hidden[steps] & inside[..., None], self.dataset.table.values[steps], np.nan)
            simple = {
                "interpolation": interpolated(windows.table.values),
                "last_season": last_season(windows.table.values, self.dataset.spec.season),
            }
            scores = {"ours": samples} | {way: values[steps][:, None] for way, values in simple.items()}
            row = {f"{way}_crps": crps(paths, target) for way, paths in scores.items()}
            row["ours_coverage_90"] = coverage(samples, target, 0.9)
            self.run.summary({f"imputation/{name}_{key}": value for key, value in row.items()})
            rows.append({"hidden": name} | row)
            shown = "  ".join(f"{way} {row[f'{way}_crps']:.4g}" for way in scores)
            self._say(f"  {name:10s} CRPS: {shown}; {row['ours_coverage_90']:.0%} inside the 90 % band")
            if name == "blocks_30":
                self._draw_gaps("test_imputation", windows, samples[-1], target[-1])
        self.run.table("imputation", rows, caption="CRPS of hidden values of the test windows")

    def impute(self) -> None:
        """Fill the gaps of the data: tables/imputed.csv, the mean and quantiles of what was missing, and a chart."""
        self._prepare()
        check_can_impute(self.algorithm)
        table, ends = self.dataset.table, windows_with_gaps(self.dataset)
        require(bool(ends), f"the {len(table):,} steps of the data have no gaps: there is nothing to fill")
        windows = self.dataset.windows(ends)
        samples = self._fill(windows, "impute")
        rows, done = [], 0
        for end, paths in zip(ends, samples, strict=True):
            start = max(done, end - paths.shape[1])  # the last window may overlap the one before
            paths, done = paths[:, start - end :], end
            times = table.times(start, end - start)
            for step, series in np.argwhere(~table.observed[start:end]):
                levels = np.quantile(paths[:, step, series], SHOWN_QUANTILES)
                rows.append(
                    {"time": times[step], "series": table.names[series], "mean": float(paths[:, step, series].mean())}
                    | {f"q{level:g}": float(value) for level, value in zip(SHOWN_QUANTILES, levels, strict=True)}
                )
        self.run.table("imputed", rows, caption="What was missing: mean and quantiles of the paths")
        self._draw_gaps("impute", windows, samples[-1], np.full(samples[-1].shape[1:], np.nan))
        self._say(f"filled {counted(len(rows), 'missing value')}: {self.run.folder / 'tables' / 'imputed.csv'}")

    def _fill(self, windows: SeriesWindows, task: str) -> np.ndarray:
        """Sample paths (n, paths, L, V) of whole windows with their gaps filled."""
        self._note_untrained(task)
        device, found = devices.device(), []
        algorithm = self.algorithm.to(device).eval()
        generator = torch.Generator(device).manual_seed(self.seed)
        with Bar(task, total=len(windows), unit="windows") as bar:
            for number in range(len(windows)):
                found.append(impute(algorithm, windows[number], generator=generator).cpu().numpy())
                bar.advance()
        return np.concatenate(found)

    def _draw_gaps(self, task: str, windows: SeriesWindows, samples: np.ndarray, target: np.ndarray) -> None:
        """The last window, of the series with most gaps."""
        table, end = windows.table, int(windows.ends[-1])
        start = max(0, end - len(target))  # a short table begins within its window
        shown, samples, target = table.values[start:end], samples[:, start - end :], target[start - end :]
        most = np.argsort(-np.isnan(shown).sum(axis=0), kind="stable")[:MOST_DRAWN]
        self.run.image(
            f"{task}_gaps",
            draw_gaps(
                shown[:, most],
                samples[..., most],
                target[:, most],
                names=[table.names[series] for series in most],
                times=table.times(start, end - start),
            ),
            caption="The last window: what was observed, and 50, 80 and 90 % of the paths in its gaps"
            + (", and what was hidden" if np.isfinite(target).any() else ""),
        )

    def _forecast(self, task: str) -> None:
        samples, target = self.paths(task)
        windows = self.windows(task)
        free = ~self.dataset.known_future
        samples, target = samples[..., free], target[..., free]
        report = forecast_report(samples, target)
        self.run.summary({**report, "forecast/windows": len(windows), "forecast/paths": samples.shape[1]})
        naive = self._naive(windows, samples.shape[1], target, free)
        self.run.summary(
            {f"naive/{way}_{name}": of[f"forecast/{name}"] for way, of in naive.items() for name in COMPARED}
        )
        self._say(
            f"{task}: {counted(len(windows), 'window')} of {counted(samples.shape[2], 'step')}, {counted(samples.shape[1], 'path')} each"
        )
        self._say(f"  {'':12s} {'forecast':>9s}" + "".join(f" {way:>9s}" for way in naive))
        if not np.isfinite(report["forecast/crps_sum"]):
            self._say(f"  crps_sum is missing: {why_missing(samples, target)}")
        for key, value in report.items():
            others = "".join(f" {of[key]:9.4g}" for of in naive.values())
            self._say(f"  {key.removeprefix('forecast/'):12s} {value:9.4g}{others}")
        self._draw(task, windows, samples, target, free)

    def _naive(
        self, windows: SeriesWindows, paths: int, target: np.ndarray, free: np.ndarray
    ) -> dict[str, dict[str, float]]:
        """Scores of naive forecasts on the same windows: the last value, the last season."""
        table, ahead = self.dataset.table, windows.prediction_length
        random = np.random.default_rng(self.seed)
        histories = [table.values[: end - ahead, free] for end in windows.ends]
        season = self.dataset.spec.season
        walks = [random_walk(one, ahead, paths=paths, random=random) for one in histories]
        again = [seasonal(one, ahead, season=season, paths=paths, random=random) for one in histories]
        return {
            "walk": forecast_report(np.stack(walks), target),
            "seasonal": forecast_report(np.stack(again), target),
            "base": forecast_report(self._base(windows, paths)[..., free], target),
        }

    def windows(self, task: str) -> SeriesWindows:
        """The windows of `test`, `validation`, or the one of `forecast`, behind the data."""
        found: SeriesWindows = {"test": self.dataset.test, "validation": self.dataset.validation}.get(
            task, self.dataset.future
        )()
        return found

    def paths(self, task: str) -> tuple[np.ndarray, np.ndarray]:
        """Sample paths (n, paths, h, V) of the windows of `test`, `validation` or `forecast`, and what was observed (n, h,
        V), NaN where nothing was. With `algorithm.pool`, paths of the network and of its base forecast, in the shares
        that are best on the validation windows; those themselves are forecast by the network alone."""
        self._prepare()
        windows = self.windows(task)
        samples, target = self._sample(task, windows)
        if self.algorithm.options.scaling != "base" or not self.algorithm.options.pool:
            return samples, target
        pool = Pool(0.5, 1.0)
        validation, free = self.dataset.validation(), ~self.dataset.known_future
        ahead, trains = windows.prediction_length, "training" in self.options.tasks
        if self._horizon is not None and ahead > self._horizon and not trains:
            self._say_once(
                f"the forecaster was trained for {self._horizon} steps ahead, not for {ahead}: all paths are the base "
                f"forecast's; give at most {self._horizon}, or train it on the data first"
            )
            pool = Pool(0.0, 1.0)
        elif task != "validation" and len(validation):
            tuned, observed = self._sample("validation", validation)
            # The methods have seen these windows: for a fair comparison they are chosen again, on what lies before.
            first = int(validation.ends[0]) - validation.prediction_length
            base = self._base(validation, tuned.shape[1], self.dataset.base_before(first))
            pool = choose_pool(self._together(tuned, base)[..., free], base[..., free], observed[..., free])
            self._say(f"by the validation windows, {pool}")
        elif task == "validation":  # of the network itself
            pool = Pool(1.0, 1.0)
        base = self._base(windows, samples.shape[1])
        mixed = pool.mix(self._together(samples, base), base)
        known = np.isfinite(target) & self.dataset.known_future
        return np.where(known[:, None], target[:, None], self._in_range(mixed)), target

    def _together(self, samples: np.ndarray, base: np.ndarray) -> np.ndarray:
        return samples if self.algorithm.options.together else ordered_as(samples, base)

    def _base(self, windows: SeriesWindows, paths: int, base: Base | None = None) -> np.ndarray:
        """Sample paths of the windows' base forecast, or of another one."""
        random, ahead = np.random.default_rng(self.seed), windows.prediction_length
        origins = np.clip(windows.ends - ahead, 1, None)
        found = [(base or windows.base).paths(origin, ahead, paths=paths, random=random) for origin in origins]
        return self._in_range(np.stack(found))

    def _in_range(self, samples: np.ndarray) -> np.ndarray:
        kept: np.ndarray = self.algorithm.in_range(torch.from_numpy(samples)).numpy()
        return kept

    def _sample(self, task: str, windows: SeriesWindows) -> tuple[np.ndarray, np.ndarray]:
        """Sample paths of windows (n, paths, h, V), and what was observed (n, h, V), NaN where nothing was."""
        self._note_untrained(task)
        device = devices.device()
        algorithm = self.algorithm.to(device).eval()
        batch = windows.__getitems__(range(len(windows)))
        known = self.dataset.known_future
        with Bar(
            f"{task}: {counted(len(windows), 'window')} of {counted(algorithm.options.calc_crps_sum, 'path')}",
            total=None,
        ) as bar:
            samples = algorithm.forecast(
                batch,
                known=torch.from_numpy(known) if known.any() else None,
                generator=torch.Generator(device).manual_seed(self.seed),
                on_step=lambda done, total: bar.update(done, note=f"of {total}"),
            )
        target = torch.where(batch.observed, batch.values, torch.nan)[:, algorithm.spec.context_length :]
        return samples.cpu().numpy(), target.numpy()

    def _draw_fans(
        self, task: str, begin: int, windows: SeriesWindows, samples: np.ndarray, target: np.ndarray, free: np.ndarray
    ) -> None:
        """Fan charts of the first series that are `free`, and of the sum of all, of a forecast that begins at step
        `begin`."""
        first = max(0, begin - HISTORY_DRAWN * windows.context_length)
        table = self.dataset.table
        history = table.values[first:begin, free]
        times = table.times(first, begin - first + len(target))
        names = [name for name, is_free in zip(table.names, free, strict=True) if is_free][:MOST_DRAWN]
        shown = len(names)
        self.run.image(
            f"{task}_fans",
            draw_fans(history[:, :shown], samples[..., :shown], target[..., :shown], names=names, times=times),
            caption="After the end of the data: history, and 50, 80 and 90 % of the paths"
            if task == "forecast"
            else f"The last {task} window: history, 50, 80 and 90 % of the paths, and what was observed",
        )
        if task == "forecast":
            return
        paths, observed = observed_sums(samples[None], target[None])
        summed = np.nansum(history, axis=-1, keepdims=True), paths[0, ..., None], observed[0, :, None]
        self.run.image(
            f"{task}_sum",
            draw_fans(*summed, names=["sum of all series"], times=times),
            caption="The same of the sum of the series that were observed, which CRPS_sum scores",
        )

    def _draw(
        self, task: str, windows: SeriesWindows, samples: np.ndarray, target: np.ndarray, free: np.ndarray
    ) -> None:
        begin = int(windows.ends[-1]) - windows.prediction_length
        self._draw_fans(task, begin, windows, samples[-1], target[-1], free)
        self.run.image(
            f"{task}_calibration",
            draw_calibration(QUANTILES, calibration(samples, target)),
            caption="Share of values below each quantile; on the diagonal the paths are calibrated",
        )

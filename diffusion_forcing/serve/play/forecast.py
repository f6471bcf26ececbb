"""The forecast view: the shipped forecaster on its data, or a dropped table: at once by the one for any series, or by one
trained on it.

Any token may be known: a value that is given for the future is observed while the others are sampled.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from numpy.typing import NDArray

from diffusion_forcing.algorithms.forecasting import Forecasting
from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.datasets.series.dataset import TimeSeries
from diffusion_forcing.datasets.series.files import read_file
from diffusion_forcing.datasets.series.times import lags_of, season_of
from diffusion_forcing.errors import UserError, require
from diffusion_forcing.experiments.checkpointing import load_weights
from diffusion_forcing.experiments.devices import device
from diffusion_forcing.experiments.loader import BatchLoader
from diffusion_forcing.metrics.forecasting import random_walk, seasonal
from diffusion_forcing.serve.play.messages import Message
from diffusion_forcing.serve.play.models import command, plan_of
from diffusion_forcing.serve.play.session import Session

SHIPPED = ("dataset=ts_load", "load=ts_load_small")
QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
HISTORY = 3
"""Of the prediction's length, shown before it."""
MOST_SERIES = 200
"""Of a dropped table."""
SHORTEST, LONGEST = 4, 48
"""Steps that a dropped table is forecast."""

Array = NDArray[np.float64]


class Superseded(Exception):
    """The page asks for something else."""


class ForecastPlayer:
    """Forecasts `data`: the shipped one, or a table."""

    def __init__(self, shipped: tuple[TimeSeries, Forecasting] | None = None) -> None:
        self._shipped, self._why = shipped, ""
        try:
            self._shipped = self._shipped or forecaster(SHIPPED)
        except UserError as missing:
            self._why = str(missing)

    def play(self, session: Session) -> None:
        self._session = session
        with tempfile.TemporaryDirectory(prefix="play-") as folder:
            self._folder, self._file = Path(folder), ""
            self._show_shipped()
            while True:
                message = session.receive()
                try:
                    self._heed(message)
                except Superseded:
                    session.send("idle")
                except UserError as mistake:
                    session.send("error", text=str(mistake).replace(f"{folder}/", ""))
                    session.send("idle")

    def close(self) -> None:
        self._shipped = None

    def _heed(self, message: Message) -> None:
        match message:
            case {"do": "forecast", "window": window, "paths": paths, "way": way, "known": known}:
                self._forecast(window, paths=paths, way=way, known=known)
            case {"do": "table", "name": name, "content": content}:
                self._read(name, content)
            case {"do": "train", "seconds": seconds}:
                self._train(seconds)
            case {"do": "shipped"}:
                self._show_shipped()

    # ------------------------------------------------------------------------------------------------ data

    def _show_shipped(self) -> None:
        self.data: Any = None
        self.model: Any = None
        self._file = ""
        if self._shipped is None:
            self._session.send("nodata", why=self._why)
            return
        self.data, self.model = self._shipped
        self._send_data(0)

    def _read(self, name: str, content: bytes) -> None:
        """A dropped table; it is read as a file of `dataset=ts_csv` is."""
        require(content[:2] != b"\x1f\x8b" and content[:4] != b"PAR1", "drop a CSV file, not a compressed one")
        file = self._folder / f"{''.join(c for c in Path(name).stem if c.isalnum() or c in '-_')[:60] or 'table'}.csv"
        file.write_bytes(content)
        table = read_file(file, freq=None)
        require(table.variates <= MOST_SERIES, f"the table has {table.variates} series; this page takes {MOST_SERIES}")
        season = season_of(lags_of(table.freq), table.freq, len(table))
        horizon = max(SHORTEST, min(season if season > SHORTEST else 12, len(table) // 8, LONGEST))
        data = TimeSeries(planned(file, horizon).options["dataset"])
        data.prepare(progress=False)
        self.data, self.model, self._file, self._trained = data, None, file.name, False
        for note in data.table.notes:
            self._session.send("note", text=note)
        with contextlib.suppress(UserError):  # not shipped: naive forecasts, until one is trained
            self.data, self.model = forecaster([*words_of(file, horizon), "load=universal"])
        self._send_data(len(data.test_ends))
        self._forecast(len(data.test_ends))

    def _ends(self) -> list[int]:
        """Where windows end: the test's, of which the end is known, and one behind the data."""
        return [*self.data.test_ends, self.data.end + self.data.prediction_length]

    def _send_data(self, window: int) -> None:
        data = self.data
        horizon = data.prediction_length
        self._session.send(
            "data",
            file=self._file,
            names=data.table.names,
            horizon=horizon,
            begins=[data.table.times(end - horizon, 1)[0] for end in self._ends()],
            window=window,
            trained=self.model is not None,
            steps=len(data.table),
            rows=self.model.options.diffusion.sampling_timesteps if self.model is not None else 1,
            together=self.model is not None and self.model.options.scheduling_matrix == "full_sequence",
        )

    # ------------------------------------------------------------------------------------------------ forecasts

    def _forecast(self, window: int, *, paths: int = 50, way: str = "model", known: Sequence[Message] = ()) -> None:
        data = self.data
        if data is None:
            raise UserError("there is no data to forecast; drop a CSV file")
        ends, horizon = self._ends(), data.prediction_length
        end = ends[min(window, len(ends) - 1)]
        begin = end - horizon
        way = way if self.model is not None or way != "model" else "seasonal"
        self._say_command(paths)
        began = time.perf_counter()
        if way == "model":
            samples = self._sample(end, paths, known)
        else:
            naive = random_walk if way == "walk" else partial(seasonal, season=data.spec.season)
            samples = naive(data.table.values[:begin], horizon, paths=4 * paths, random=np.random.default_rng(0))
        self._send_forecast(
            samples, begin, way=way, window=window, known=list(known), seconds=round(time.perf_counter() - began, 2)
        )

    def _sample(self, end: int, paths: int, known: Sequence[Message]) -> Array:
        """Sample paths (paths, h, V); values that are known are kept by all."""
        data, model = self.data, self.model
        horizon, context = data.prediction_length, data.context_length
        batch = data.windows([end])[0]
        given = torch.zeros(1, horizon, data.table.variates, dtype=torch.bool)
        for one in known:
            require(
                one["series"] < given.shape[2] and one["step"] < horizon,
                f"there is no step {one['step']} of series {one['series']}; there are {horizon} steps of {given.shape[2]} series",
            )
            given[0, one["step"], one["series"]] = True
            batch.values[0, context + one["step"], one["series"]] = one["value"]
            batch.observed[0, context + one["step"], one["series"]] = True
        sent = 0.0

        def on_step(done: int, total: int) -> None:
            nonlocal sent
            if self._session.waiting:
                raise Superseded
            if time.perf_counter() - sent > 0.04 or done == total:
                sent = time.perf_counter()
                self._session.send("step", done=done, total=total)

        samples = model.forecast(
            batch,
            paths=paths,
            known=given if known else None,
            generator=torch.Generator(model.device).manual_seed(0),
            on_step=on_step,
        )
        return samples[0].cpu().numpy()

    def _send_forecast(self, samples: Array, begin: int, **fields: Any) -> None:
        """Of every series, and of the sum of all: history, quantiles, and what was observed, float32."""
        data = self.data
        horizon, table = data.prediction_length, data.table
        first = max(0, begin - HISTORY * horizon)
        history = table.values[first:begin]
        truth = np.full((horizon, table.variates), np.nan)
        seen = table.values[begin : begin + horizon]
        truth[: len(seen)] = seen
        parts = [history, *np.quantile(samples, QUANTILES, axis=0), truth]
        sums = [part.sum(axis=1, keepdims=True) for part in (history, truth)]
        of_sum = np.quantile(samples.sum(axis=2), QUANTILES, axis=0)[..., None]
        summed = [sums[0], *of_sum, sums[1]]
        whole = np.concatenate([np.concatenate(parts), np.concatenate(summed)], axis=1)  # (history + 7 h + h, V + 1)
        self._session.send(
            "forecast",
            np.ascontiguousarray(whole.T, np.float32).tobytes(),
            history=len(history),
            horizon=horizon,
            series=table.variates + 1,
            times=table.times(first, len(history) + horizon),
            paths=len(samples),
            **fields,
        )

    def _say_command(self, paths: int) -> None:
        data = self.data
        if self._file and not self._trained:
            text = f"diffusion-forcing forecast {self._file} --horizon {data.prediction_length}"
            self._session.send("command", text=f"{text} algorithm.calc_crps_sum={paths}")
            return
        if self._file:
            length = data.prediction_length
            words = ["dataset=ts_csv", f"dataset.path={self._file}", f"dataset.prediction_length={length}"]
            words += ["dataset.test_windows=1", "dataset.validation_windows=1", "experiment.tasks=[training,forecast]"]
        else:
            words = [*SHIPPED, "experiment.tasks=[test]"]
        self._session.send("command", text=command(*words, f"algorithm.calc_crps_sum={paths}", "+name=forecast"))

    # ------------------------------------------------------------------------------------------------ a small training

    def _train(self, seconds: int) -> None:
        """A forecaster of the dropped table, trained for so long, or until the page asks for something else."""
        data = self.data
        if data is None or not self._file:
            raise UserError("drop a CSV file first; the shipped forecaster is trained already")
        parts = planned(self._folder / self._file, data.prediction_length)
        torch.manual_seed(0)
        model: Forecasting = parts.classes["algorithm"](parts.options["algorithm"])
        model.adapt(data.spec)
        loader: Any = BatchLoader(data.training(), batch_size=32, shuffle=True)
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # its hints are not for this terminal
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = lightning.Trainer(
                max_epochs=-1,
                accelerator="auto",
                devices=1,
                gradient_clip_val=1.0,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                callbacks=[TrainingProgress(self._session, seconds)],
            )
            trainer.fit(model, loader)
        self.model, self._trained = model.to(device()).eval(), True
        self._send_data(len(data.test_ends))
        self._forecast(len(data.test_ends))


class TrainingProgress(lightning.Callback):
    """Tells how far a training of so many seconds is, and ends it."""

    def __init__(self, session: Session, seconds: float) -> None:
        self._session, self._seconds = session, seconds
        self._began = self._told = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        trainer.should_stop = now - self._began > self._seconds or self._session.waiting
        if now - self._told > 0.2 or trainer.should_stop:
            self._told = now
            share = 1.0 if trainer.should_stop else (now - self._began) / self._seconds
            loss = float(outputs["loss"] if isinstance(outputs, dict) else outputs)
            self._session.send("training", share=round(share, 3), step=trainer.global_step, loss=round(loss, 4))


def words_of(file: Path, horizon: int) -> list[str]:
    """The command line of `file`."""
    words = ["dataset=ts_csv", f"dataset.path='{file}'", f"dataset.prediction_length={horizon}"]
    return [*words, f"dataset.variates={MOST_SERIES}", "dataset.test_windows=1", "dataset.validation_windows=1"]


def planned(file: Path, horizon: int) -> Any:
    """The checked command line that trains on `file`."""
    return plan_of(words_of(file, horizon))


def forecaster(words: Sequence[str]) -> tuple[TimeSeries, Forecasting]:
    """The data and the trained forecaster of a command line with `load=`, ready to sample."""
    parts = plan_of([*words, "experiment.tasks=[test]"])
    assert parts.checkpoint is not None
    checkpoint = native.load(parts.checkpoint)
    data: TimeSeries = parts.classes["dataset"](parts.options["dataset"])
    data.prepare(progress=False)
    data.match(checkpoint.metadata["data"])
    model: Forecasting = parts.classes["algorithm"](parts.options["algorithm"])
    model.adapt(data.spec)
    load_weights(model, checkpoint)
    return data, model.to(device()).eval()

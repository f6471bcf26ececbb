"""CRPS_sum on real series: ours with both networks beside GluonTS's own models and the naive ones, over several seeds.

    python -m benchmarks.forecasting                          # ts_ecb and ts_load, 5 seeds: some hours on 2 cores
    python -m benchmarks.forecasting --data ecb --models rnn walk --seeds 2
    python -m benchmarks.forecasting --speed                  # 100 paths of 30 steps of 8 series, 5 windows, on 2 cores

Every model sees the same training part (all but the test windows), is asked for 100 sample paths of the same five test windows, and is scored by
the same function. Results are appended to `--results` as they come: an interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_forcing.datasets.series.dataset import SeriesOptions, TimeSeries
from diffusion_forcing.metrics.forecasting import forecast_report

PATHS = 100
DATA = {
    "ecb": SeriesOptions(source="ecb", prediction_length=30),
    "load": SeriesOptions(source="load", variates=96, prediction_length=24, context_length=48),
}
SEASON = {"ecb": 5, "load": 168}
SMALL = {
    "lr": 1e-3,
    "warmup_steps": 50,
    "scaling": "auto",
    "z_shape": [128],
    "diffusion": {
        "network_size": 8,
        "num_gru_layers": 1,
        "sampling_timesteps": 20,
        "architecture": {"network_size": 64, "num_layers": 3, "attn_heads": 4, "dim_feedforward": 128},
    },
}
"""algorithm=df_prediction_small."""
CHOSEN: dict[tuple[str, str], tuple[int, dict[str, Any]]] = {
    ("ecb", "rnn"): (800, {"scaling": "last", "use_covariates": False, "ema_decay": 0.99}),
    ("ecb", "transformer"): (1500, {"scaling": "last", "use_covariates": False, "ema_decay": 0.998}),
    ("load", "rnn"): (400, {"scaling": "global", "ema_decay": 0.99}),
    ("load", "transformer"): (1500, {"scaling": "global", "ema_decay": 0.99}),
}
"""Training steps of 32 windows, and settings, chosen by windows before the test's."""
THEIR_EPOCHS = 20
"""Epochs of 50 batches of GluonTS's models, their own default number of batches."""

Forecast = Callable[[TimeSeries, str, int], np.ndarray]


def walk(data: TimeSeries, which: str, seed: int) -> np.ndarray:
    """Random walks of steps drawn from the training part's, all variates of a moment together."""
    random, values, ahead = np.random.default_rng(seed), data.table.values, data.prediction_length
    steps = np.diff(values[: data.test_ends[0] - ahead], axis=0)
    steps = steps[np.isfinite(steps).all(axis=1)]
    return np.stack(
        [
            np.stack([last + np.cumsum(steps[random.integers(len(steps), size=ahead)], axis=0) for _ in range(PATHS)])
            for last in (values[end - ahead - 1] for end in data.test_ends)
        ]
    )


def seasonal(data: TimeSeries, which: str, seed: int) -> np.ndarray:
    """The last season again, with errors drawn from those it had in the training part, whole stretches at a time."""
    random, values, ahead, season = (
        np.random.default_rng(seed),
        data.table.values,
        data.prediction_length,
        SEASON[which],
    )
    back = season * -(-ahead // season)
    known = values[: data.test_ends[0] - ahead]
    errors = known[back:] - known[:-back]
    starts = np.flatnonzero([np.isfinite(errors[start : start + ahead]).all() for start in range(len(errors) - ahead)])
    return np.stack(
        [
            np.stack(
                [values[end - ahead - back : end - back] + errors[s : s + ahead] for s in random.choice(starts, PATHS)]
            )
            for end in data.test_ends
        ]
    )


def _entry(data: TimeSeries, end: int, variate: int | None = None) -> dict[str, Any]:
    import pandas

    values = data.table.values[:end].T if variate is None else data.table.values[:end, variate]
    return {"target": values, "start": pandas.Period(data.table.start, freq=data.table.freq), "item_id": str(variate)}


def ours(network: str) -> Forecast:
    """Ours, through the GluonTS Estimator."""

    def forecast(data: TimeSeries, which: str, seed: int) -> np.ndarray:
        from diffusion_forcing.gluonts import DiffusionForcingEstimator

        ahead = data.prediction_length
        steps, settings = CHOSEN[which, network]
        estimator = DiffusionForcingEstimator(
            data.table.freq,
            ahead,
            context_length=data.context_length,
            max_steps=steps,
            seed=seed,
            gradient_clip_val=1.0,
            options={**SMALL, "network": network, **settings},
        )
        predictor = estimator.train([_entry(data, data.test_ends[0] - ahead)])
        entries = [_entry(data, end - ahead) for end in data.test_ends]
        return np.stack([one.samples for one in predictor.predict(entries, num_samples=PATHS)])

    return forecast


def theirs(name: str) -> Forecast:
    """A GluonTS model of single series, trained on all of them; the paths of the series are put side by side."""

    def forecast(data: TimeSeries, which: str, seed: int) -> np.ndarray:
        import lightning
        from gluonts.dataset.common import ListDataset
        from gluonts.torch import DeepAREstimator, PatchTSTEstimator, SimpleFeedForwardEstimator

        lightning.seed_everything(seed, verbose=False)
        ahead, freq, series = data.prediction_length, data.table.freq, range(data.table.variates)
        common = {"prediction_length": ahead, "context_length": max(data.context_length, SEASON[which])}
        quiet: dict[str, Any] = {"max_epochs": THEIR_EPOCHS, "enable_progress_bar": False, "logger": False}
        quiet |= {
            "enable_model_summary": False,
            "default_root_dir": tempfile.mkdtemp(),
        }  # where they keep their checkpoints
        match name:
            case "deepar":
                estimator: Any = DeepAREstimator(freq=freq, **common, trainer_kwargs=quiet)
            case "patchtst":
                estimator = PatchTSTEstimator(patch_len=8, **common, trainer_kwargs=quiet)
            case _:
                estimator = SimpleFeedForwardEstimator(**common, trainer_kwargs=quiet)
        first = data.test_ends[0] - ahead
        predictor = estimator.train(ListDataset([_entry(data, first, variate) for variate in series], freq=freq))
        entries = [_entry(data, end - ahead, variate) for end in data.test_ends for variate in series]
        paths = []
        for one in predictor.predict(ListDataset(entries, freq=freq), num_samples=PATHS):
            paths.append(one.samples if hasattr(one, "samples") else one.to_sample_forecast(PATHS).samples)
        return np.stack(paths).reshape(len(data.test_ends), len(series), PATHS, ahead).transpose(0, 2, 3, 1)

    return forecast


MODELS: dict[str, Forecast] = {
    "rnn": ours("rnn"),
    "transformer": ours("transformer"),
    "deepar": theirs("deepar"),
    "patchtst": theirs("patchtst"),
    "feedforward": theirs("feedforward"),
    "walk": walk,
    "seasonal": seasonal,
}
SHOWN = ("crps_sum", "crps", "nd", "nrmse", "coverage_80")


def table(rows: list[dict[str, Any]]) -> str:
    """The results as a Markdown table: mean ± standard deviation over seeds."""
    lines = ["| data | model | seeds | " + " | ".join(SHOWN) + " | minutes |", "|" + "---|" * (len(SHOWN) + 4)]
    for data in DATA:
        for model in MODELS:
            mine = [row for row in rows if (row["data"], row["model"]) == (data, model)]
            if not mine:
                continue
            cells = []
            for name in SHOWN:
                values = np.array([row[f"forecast/{name}"] for row in mine])
                cells.append(f"{values.mean():.4f} ± {values.std():.4f}")
            minutes = np.mean([row["seconds"] for row in mine]) / 60
            lines.append(f"| {data} | {model} | {len(mine)} | " + " | ".join(cells) + f" | {minutes:.1f} |")
    return "\n".join(lines)


def speed() -> None:
    """Sample with the settings of both configurations and both networks, weights untrained, and say how long it takes."""
    from diffusion_forcing.algorithms.forecasting import Forecasting
    from diffusion_forcing.launch.run import plan

    torch.set_num_threads(2)
    data = TimeSeries(DATA["ecb"])
    windows = data.test().__getitems__(range(5))
    print("| algorithm | network | levels | parameters | seconds | processor seconds |\n|---|---|---|---|---|---|")
    for algorithm in ("df_prediction", "df_prediction_small"):
        for network in ("rnn", "transformer"):
            words = ["dataset=ts_ecb", f"algorithm={algorithm}", f"algorithm.network={network}"]
            options = plan(words).options["algorithm"]
            forecaster = Forecasting(options)
            forecaster.adapt(data.spec)
            forecaster.eval().forecast(windows, paths=1)  # what the first call allocates
            wall, processor = time.perf_counter(), time.process_time()
            samples = forecaster.forecast(windows, paths=PATHS, generator=torch.Generator().manual_seed(0))
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            assert samples.shape == (5, PATHS, 30, 8)
            count = sum(parameter.numel() for parameter in forecaster.network.parameters())
            levels = options.diffusion.sampling_timesteps
            print(f"| {algorithm} | {network} | {levels} | {count:,} | {wall:.1f} | {processor:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=Path("outputs/benchmark_forecasting.jsonl"))
    parser.add_argument("--speed", action="store_true", help="how long sampling takes, and nothing else")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    if asked.speed:
        speed()
        return
    for name in ("lightning.pytorch", "lightning", "gluonts"):
        logging.getLogger(name).setLevel(logging.ERROR)
    asked.results.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in asked.results.read_text().splitlines()] if asked.results.exists() else []
    done = {(row["data"], row["model"], row["seed"]) for row in rows}
    for seed in range(asked.seeds):
        for which in asked.data:
            data = TimeSeries(DATA[which])
            data.prepare()
            ahead = data.prediction_length
            target = np.stack([data.table.values[end - ahead : end] for end in data.test_ends]).astype(np.float64)
            for model in asked.models:
                if (which, model, seed) in done:
                    continue
                began = time.perf_counter()
                torch.manual_seed(seed)
                samples = MODELS[model](data, which, seed).astype(np.float64)
                row = {"data": which, "model": model, "seed": seed, **forecast_report(samples, target)}
                row["seconds"] = time.perf_counter() - began
                rows.append(row)
                with asked.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(
                    f"{which} {model} seed {seed}: CRPS_sum {row['forecast/crps_sum']:.4f} in {row['seconds']:.0f} s",
                    flush=True,
                )
    print(table(rows))
    print(f"every result: {asked.results}")


if __name__ == "__main__":
    main()

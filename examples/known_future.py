"""Forecasting around what is known: ice sold depends on how warm it will be, and the weather forecast is there already.

    python examples/known_future.py

Two made series, one network over both. Which of them is known is decided when it is asked, not when it is trained: any
element of a token may be clean. Prints the CRPS of what is sold, without and with the temperatures to come, and leaves
known_future.png.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas
import torch
from PIL import Image

from diffusion_forcing.datasets.series.dataset import SeriesOptions, TimeSeries
from diffusion_forcing.gluonts import DiffusionForcingEstimator
from diffusion_forcing.metrics.forecasting import crps
from diffusion_forcing.visualization.charts import draw_fans

AHEAD = 14


def write_ice(path: Path, days: int = 900) -> None:
    """A CSV file: degrees wander from day to day, and what is sold follows them, more on weekends."""
    random, warm = np.random.default_rng(0), np.zeros(days)
    for day in range(1, days):
        warm[day] = 0.9 * warm[day - 1] + random.normal(0, 1.5)
    when = pandas.date_range("2022-01-01", periods=days, freq="D")
    degrees = 16 + warm
    sold = 40 + 5 * degrees + 30 * (when.dayofweek >= 5) + random.normal(0, 5, days)
    pandas.DataFrame({"day": when, "sold": sold, "degrees": degrees}).to_csv(path, index=False)


def main(steps: int = 600) -> None:
    """Train, forecast in both ways, compare."""
    write_ice(Path("ice.csv"))
    data = TimeSeries(SeriesOptions(source="csv", path="ice.csv", prediction_length=AHEAD))
    past = data.table.values[: data.test_ends[0] - AHEAD]
    entry = {"target": past.T, "start": pandas.Period(data.table.start, freq="D")}
    small = {"network_size": 8, "num_gru_layers": 1, "sampling_timesteps": 20}
    options = {
        "lr": 1e-3,
        "warmup_steps": 50,
        "scaling": "global",
        "ema_decay": 0.99,
        "z_shape": [128],
        "diffusion": small,
    }
    forecaster = DiffusionForcingEstimator("D", AHEAD, max_steps=steps, options=options).train([entry]).algorithm

    windows = data.test().__getitems__(range(5))
    truth = windows.values[:, -AHEAD:].double().numpy()
    found = {}
    for name, known in (("nothing known", None), ("degrees known", torch.tensor([False, True]))):
        paths = forecaster.forecast(windows, known=known, generator=torch.Generator().manual_seed(0)).double().numpy()
        found[name] = paths
        print(f"{name}: CRPS of what is sold {crps(paths[..., :1], truth[..., :1]):.4f}")
    before = past[-2 * AHEAD :]
    chart = draw_fans(
        np.tile(before, 2),
        np.concatenate([paths[0] for paths in found.values()], axis=-1),
        np.tile(truth[0], 2),
        names=[title for name in found for title in (f"sold, {name}", "degrees")],
        share_columns=True,
    )
    Image.fromarray(chart).save("known_future.png")
    print("picture: known_future.png")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

"""Diffusion Forcing beside its two baselines, next-token prediction and full-sequence diffusion, on one small data set.

    python -m benchmarks.baselines                                    # about an hour on 2 cores
    python -m benchmarks.baselines --networks rnn --seeds 1

The same network, data (ts_load's 96 hourly profiles, told the date, no lags), steps and loss; only `algorithm.noise_level` differs, and
how what was trained can be sampled. Scored on the trained horizon of 24 hours, and on rollouts ten times as long: CRPS_sum in parts of them,
and whether values stay where the data's are. Results are appended to `--results` as they come: an interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch

from benchmarks.forecasters import entry
from diffusion_forcing.algorithms.forecasting import Forecasting
from diffusion_forcing.datasets.series.dataset import SeriesOptions, SeriesWindows, TimeSeries
from diffusion_forcing.datasets.series.smoothing import Base
from diffusion_forcing.metrics.forecasting import crps, crps_sum

HORIZON, CONTEXT, LONG, STARTS, APART = 24, 48, 240, 6, 48
PATHS = 50
STEPS = {"rnn": 600, "transformer": 1000}
SMALL = {
    "lr": 1e-3,
    "warmup_steps": 50,
    "ema_decay": 0.99,
    "z_shape": [128],
    "scaling": "global",
    "keep_range": False,
    "diffusion": {
        "network_size": 8,
        "num_gru_layers": 1,
        "sampling_timesteps": 20,
        "architecture": {"network_size": 64, "num_layers": 3, "attn_heads": 4, "dim_feedforward": 128},
    },
}
"""algorithm=df_prediction_small, of scaled values."""
DATA = SeriesOptions(
    source="load",
    variates=96,
    prediction_length=HORIZON,
    context_length=CONTEXT,
    lags=(),
    test_windows=(LONG + APART * (STARTS - 1)) // HORIZON,
)
SAMPLED: dict[str, dict[str, dict[str, Any]]] = {
    "random_all": {
        "autoregressive": {"scheduling_matrix": "autoregressive", "chunk_size": 1},
        "pyramid": {"scheduling_matrix": "pyramid", "chunk_size": HORIZON},
        "full_sequence, past clean": {"scheduling_matrix": "full_sequence", "chunk_size": HORIZON},
    },
    "teacher_forcing": {"autoregressive": {}},
    "full_sequence": {"full_sequence": {"resample": 1}, "full_sequence, 4 walks a row": {"resample": 4}},
    "shared": {
        "full_sequence, past clean": {"scheduling_matrix": "full_sequence", "chunk_size": HORIZON},
    },
}
"""noise_level: the ways its networks are sampled."""
FINE_TUNED, SHORT = "full_sequence, then random_all", "random_all, a tenth"
SAMPLED |= {FINE_TUNED: SAMPLED["random_all"], SHORT: SAMPLED["random_all"]}
"""Full-sequence diffusion made into Diffusion Forcing by a tenth as many steps with independent levels; those steps alone."""
OWN = {
    "teacher_forcing": {"scheduling_matrix": "autoregressive", "chunk_size": 1},
    "full_sequence": {"scheduling_matrix": "full_sequence", "chunk_size": HORIZON},
}
PARTS = ((0, 24), (24, 120), (120, 240))
"""Hours of a long rollout that are scored together."""


class StartFrom(lightning.Callback):
    """Begins a training with the weights of another."""

    def __init__(self, algorithm: Forecasting) -> None:
        self.algorithm = algorithm

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.take_weights(self.algorithm.sampling_weights())


def train(data: TimeSeries, network: str, kind: str, seed: int) -> Forecasting:
    """A small forecaster, by `noise_level=kind`, or by one of the two further ways."""
    from diffusion_forcing.gluonts import DiffusionForcingEstimator

    level = "random_all" if kind in (FINE_TUNED, SHORT) else kind
    before = [StartFrom(train(data, network, "full_sequence", seed))] if kind == FINE_TUNED else []
    estimator = DiffusionForcingEstimator(
        data.table.freq,
        HORIZON,
        context_length=CONTEXT,
        lags=(),
        max_steps=STEPS[network] // (10 if kind in (FINE_TUNED, SHORT) else 1),
        seed=seed,
        gradient_clip_val=1.0,
        options={**SMALL, "network": network, "noise_level": level, **OWN.get(level, {})},
        trainer_kwargs={"callbacks": before},
    )
    known = data.table.values[: data.test_ends[0] - HORIZON]
    return estimator.train([entry(known, data.table.start, data.table.freq)]).algorithm


def measure(data: TimeSeries, algorithm: Forecasting) -> dict[str, float]:
    """Scores of rollouts of LONG hours from STARTS moments."""
    begin = data.test_ends[0] - HORIZON
    ends = [begin + APART * number + LONG for number in range(STARTS)]
    base = Base(data.table.values, algorithm.spec.methods, begin)
    batch = SeriesWindows(data.table, ends, (), CONTEXT, LONG, base).__getitems__(range(STARTS))
    began = time.perf_counter()
    samples = algorithm.forecast(batch, paths=PATHS, generator=torch.Generator().manual_seed(0)).double().numpy()
    seconds = time.perf_counter() - began
    target = torch.where(batch.observed, batch.values, torch.nan)[:, CONTEXT:].double().numpy()
    scores = {f"crps_sum_{a}_{b}": crps_sum(samples[:, :, a:b], target[:, a:b]) for a, b in PARTS}
    scores["crps_0_24"] = crps(samples[:, :, :HORIZON], target[:, :HORIZON])
    known = data.table.values[:begin]
    low, high = np.nanmin(known, axis=0), np.nanmax(known, axis=0)
    late = samples[:, :, PARTS[-1][0] :]
    scores["outside"] = float(((late < low - (high - low)) | (late > high + (high - low))).mean())
    scores["spread"] = float(late.std(axis=1).mean() / np.nanstd(known, axis=0).mean())
    return {**scores, "seconds": seconds}


SHOWN = {
    "crps_sum_0_24": "CRPS_sum, hours 1–24",
    "crps_sum_24_120": "25–120",
    "crps_sum_120_240": "121–240",
    "crps_0_24": "CRPS, 1–24",
    "outside": "outside, 121–240",
    "spread": "spread, 121–240",
}


def table(rows: list[dict[str, Any]]) -> str:
    """The results as a Markdown table: mean ± standard deviation over seeds."""
    lines = ["| network | trained by | sampled | seeds | " + " | ".join(SHOWN.values()) + " |"]
    lines.append("|" + "---|" * (len(SHOWN) + 4))
    for network in STEPS:
        for kind, ways in SAMPLED.items():
            for way in ways:
                mine = [row for row in rows if (row["network"], row["kind"], row["way"]) == (network, kind, way)]
                if not mine:
                    continue
                values = {name: np.array([row[name] for row in mine]) for name in SHOWN}
                cells = [f"{value.mean():.4f} ± {value.std():.4f}" for value in values.values()]
                lines.append(f"| {network} | `{kind}` | {way} | {len(mine)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--kinds", nargs="+", choices=SAMPLED, default=list(SAMPLED))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path("outputs/benchmark_baselines.jsonl"))
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning", "gluonts"):
        logging.getLogger(name).setLevel(logging.ERROR)
    asked.results.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in asked.results.read_text().splitlines()] if asked.results.exists() else []
    done = {(row["network"], row["kind"], row["way"], row["seed"]) for row in rows}
    data = TimeSeries(DATA)
    for seed in range(asked.seeds):
        for network in asked.networks:
            for kind in asked.kinds:
                ways = {way: how for way, how in SAMPLED[kind].items() if (network, kind, way, seed) not in done}
                if not ways:
                    continue
                began = time.perf_counter()
                algorithm = train(data, network, kind, seed)
                training = time.perf_counter() - began
                trained_for = algorithm.options
                for way, how in ways.items():
                    algorithm.options = replace(trained_for, **how)
                    row = {"network": network, "kind": kind, "way": way, "seed": seed, **measure(data, algorithm)}
                    row["training_seconds"] = training
                    rows.append(row)
                    with asked.results.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(
                        f"{network} {kind}, {way}, seed {seed}: CRPS_sum {row['crps_sum_0_24']:.4f}, late {row['crps_sum_120_240']:.4f}; "
                        f"{training:.0f} s of training, {row['seconds']:.0f} s of sampling",
                        flush=True,
                    )
    print(table(rows))
    print(f"every result: {asked.results}")


if __name__ == "__main__":
    main()

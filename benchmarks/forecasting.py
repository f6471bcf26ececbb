"""Forecasters on real series that ship inside packages: ours beside naive, statistical and boosted ones and GluonTS's networks.

    python -m benchmarks.forecasting                          # 18 data sets, 15 rows, 5 seeds: a day on 2 cores
    python -m benchmarks.forecasting --quick                  # 4 data sets, one seed, short trainings: 5 minutes
    python -m benchmarks.forecasting --data ecb load --models "ours, rnn" "last value" --seeds 2
    python -m benchmarks.forecasting --models base "last value" "last season" --windows 25    # does the order hold for longer?
    python -m benchmarks.forecasting --table                  # of the results there are, computing nothing
    python -m benchmarks.forecasting --speed                  # 100 paths of 30 steps of 8 series, 5 windows, on 2 cores

Every model sees the same training part (all but the test windows), is asked for 100 sample paths of the same test windows, and is scored by
the same function. Results are appended to `--results` as they come: an interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import forecasters
from benchmarks.forecasters import LEARNED, MODELS, PATHS, Array, Model, Predict
from benchmarks.series import SETS, WINDOWS, Series, load
from diffusion_forcing.datasets.series.dataset import SeriesOptions, TimeSeries
from diffusion_forcing.datasets.series.smoothing import Base, choose, seasons_of
from diffusion_forcing.metrics.forecasting import INTERVALS, forecast_report, quantile

BASE = "last season"
"""What scores are relative to."""
QUICK = ("equipment", "walmart", "bikes", "taylor")
QUICK_STEPS = 600
"""Of 32 windows, times the share of the full effort; otherwise training stops by itself."""


def _through_the_command_line(data: Series, seed: int, *words: str) -> Any:
    """An experiment on `data` as a CSV file, with the defaults of dataset=ts_csv; its files lie in a folder that the
    process leaves behind."""
    from diffusion_forcing.launch.run import build, plan
    from diffusion_forcing.tracking.run import Run

    folder = Path(tempfile.mkdtemp(prefix="forecasting-"))
    data.frame.to_csv(folder / "data.csv")
    windows = [f"dataset.prediction_length={data.ahead}", f"dataset.test_windows={len(data.starts)}"]
    chosen = plan(["dataset=ts_csv", f"dataset.path='{folder / 'data.csv'}'", *windows, f"seed={seed}", *words])
    return build(chosen, Run.create(folder, data.name))


def ours(network: str) -> Model:
    """Ours, trained on the data: dataset=ts_csv as it comes."""

    def fit(data: Series, seed: int) -> Predict:
        limit = [f"experiment.training.max_steps={round(QUICK_STEPS * forecasters.EFFORT)}"] * (forecasters.EFFORT < 1)
        words = (f"algorithm.network={network}", "experiment.tasks=[training,test]", *limit)
        experiment = _through_the_command_line(data, seed, *words)
        experiment.training()
        return lambda: experiment.paths("test")[0]

    return fit


def universal(data: Series, seed: int) -> Predict:
    """The shipped forecaster for any series, which never saw the data."""
    experiment = _through_the_command_line(data, seed, "load=universal", "experiment.tasks=[test]")
    return lambda: experiment.paths("test")[0]


def base(data: Series, seed: int) -> Predict:
    """The base forecast alone, chosen on what lies before the test windows."""
    end, random = data.starts[0], np.random.default_rng(seed)
    found = Base(data.values, choose(data.values[:end], data.ahead, seasons_of(data.freq, end)), end)
    return lambda: np.stack([found.paths(start, data.ahead, paths=PATHS, random=random) for start in data.starts])


OURS: dict[str, Model] = {f"ours, {network}": ours(network) for network in ("rnn", "transformer")}
ALL = {**MODELS, "base": base, **OURS, "universal": universal}
SEEDED = (*LEARNED, *OURS, "universal")
Row = dict[str, Any]


def mase(data: Series, samples: Array) -> float:
    """Mean over series of the median's absolute error, relative to that of the last season in the training part."""
    known = data.values[: data.starts[0]]
    scale = np.nanmean(np.abs(known[data.season :] - known[: -data.season]), axis=0)
    errors = np.nanmean(np.abs(quantile(samples, 0.5) - data.target), axis=(0, 1))
    return float(np.nanmean(np.where(scale > 0, errors / np.where(scale > 0, scale, 1), np.nan)))


def run(data: Series, model: str, seed: int) -> Row:
    """Train, forecast and score; seconds are the processor's, so that other jobs beside it do not count."""
    torch.manual_seed(seed)
    clock = [time.process_time()]
    predict = ALL[model](data, seed)
    clock.append(time.process_time())
    samples = predict()
    clock.append(time.process_time())
    scores = {name.removeprefix("forecast/"): value for name, value in forecast_report(samples, data.target).items()}
    seconds = {"train_seconds": clock[1] - clock[0], "sample_seconds": clock[2] - clock[1]}
    return {
        "data": data.name,
        "model": model,
        "seed": seed,
        "windows": len(data.starts),
        **scores,
        "mase": mase(data, samples),
        **seconds,
    }


def means(rows: Sequence[Row], score: str) -> dict[str, dict[str, float]]:
    """model → data set → the score's mean over seeds; both in their orders, without those that have none."""
    found: dict[str, dict[str, float]] = {}
    for model in ALL:
        for data in SETS:
            values = [row[score] for row in rows if (row["data"], row["model"]) == (data, model)]
            if values:
                found.setdefault(model, {})[data] = float(np.mean(values))
    return found


def relative(scores: dict[str, dict[str, float]], model: str) -> float:
    """Geometric mean over data sets of a model's score relative to the last season's."""
    both = [scores[model][data] / value for data, value in scores[BASE].items() if data in scores[model]]
    return float(np.exp(np.mean(np.log(both)))) if both else float("nan")


def ranks(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    """model → its mean rank over its data sets, from 1 for the lowest score of those that a data set has."""
    found: dict[str, list[int]] = {model: [] for model in scores}
    for data in SETS:
        having = [model for model in scores if data in scores[model]]
        for rank, model in enumerate(sorted(having, key=lambda model: scores[model][data]), start=1):
            found[model].append(rank)
    return {model: float(np.mean(each)) for model, each in found.items()}


def summary(rows: Sequence[Row]) -> str:
    """A line a model: scores relative to the last season, mean rank, coverage, seconds, as Markdown."""
    shown = ("crps", "crps_sum", "mase")
    scores = {name: means(rows, name) for name in shown}
    mean_rank = ranks(scores["crps"])
    heads = [*("relative " + name.replace("_", "-").upper().replace("-SUM", "_sum") for name in shown), "rank"]
    heads += [f"inside {round(100 * one)} %" for one in INTERVALS] + ["processor seconds to train", "to sample"]
    lines = ["| model | data sets | seeds | " + " | ".join(heads) + " |", "|" + "---|" * (len(heads) + 3)]
    others = {name: means(rows, name) for name in _OTHERS}
    for model in sorted(scores["crps"], key=lambda name: relative(scores["crps"], name)):
        seeds = len({row["seed"] for row in rows if row["model"] == model})
        cells = [f"{relative(scores[name], model):.3f}" for name in shown] + [f"{mean_rank[model]:.1f}"]
        for name, one in others.items():
            value = float(np.mean(list(one[model].values())))
            cells.append(f"{value:.2f}" if name.startswith("coverage") else f"{value:.1f}")
        lines.append(f"| {model} | {len(scores['crps'][model])} | {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


_OTHERS = (*(f"coverage_{round(100 * one)}" for one in INTERVALS), "train_seconds", "sample_seconds")


def details(rows: Sequence[Row], score: str = "crps") -> str:
    """A line a data set, a column a model, as Markdown; the lowest score of a line in bold."""
    scores = means(rows, score)
    lines = ["| data | " + " | ".join(scores) + " |", "|" + "---|" * (len(scores) + 1)]
    for data in SETS:
        cells = [one.get(data) for one in scores.values()]
        lowest = min((cell for cell in cells if cell is not None), default=None)
        texts = ["" if cell is None else f"**{cell:.4f}**" if cell == lowest else f"{cell:.4f}" for cell in cells]
        if lowest is not None:
            lines.append(f"| {data} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def read(path: Path) -> list[Row]:
    """The results there are; a last line that was cut off is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def speed() -> None:
    """Sample with the settings of both configurations and both networks, weights untrained, and say how long it takes."""
    from diffusion_forcing.algorithms.forecasting import Forecasting
    from diffusion_forcing.launch.run import plan

    torch.set_num_threads(2)
    data = TimeSeries(SeriesOptions(source="ecb", prediction_length=30))
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
    parser.add_argument("--data", nargs="+", choices=SETS)
    parser.add_argument("--models", nargs="+", choices=ALL, default=list(ALL))
    parser.add_argument("--seeds", type=int, default=5, help="of the models that one changes")
    parser.add_argument("--windows", type=int, default=WINDOWS, help="to test on; at most half of the steps")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--quick", action="store_true", help=f"{', '.join(QUICK)}; one seed, a tenth of the training")
    parser.add_argument("--table", action="store_true", help="show the results there are, and nothing else")
    parser.add_argument("--speed", action="store_true", help="how long sampling takes, and nothing else")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    if asked.speed:
        speed()
        return
    if asked.quick:
        asked.seeds, forecasters.EFFORT = 1, 0.1
    kind = "_quick" * asked.quick + f"_{asked.windows}_windows" * (asked.windows != WINDOWS)
    results = asked.results or Path(f"outputs/benchmark_forecasting{kind}.jsonl")
    results.parent.mkdir(parents=True, exist_ok=True)
    rows = read(results)
    done = {(row["data"], row["model"], row["seed"], row.get("windows", WINDOWS)) for row in rows}
    for seed in range(0 if asked.table else asked.seeds):
        for name in asked.data or (QUICK if asked.quick else SETS):
            for model in asked.models:
                data = load(name)
                windows = min(asked.windows, len(data.frame) // (2 * data.ahead))
                if (name, model, seed, windows) in done or (seed and model not in SEEDED):
                    continue
                row = run(replace(data, windows=windows), model, seed)
                rows.append(row)
                with results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                seconds = row["train_seconds"] + row["sample_seconds"]
                print(f"{name}, {model}, seed {seed}: CRPS {row['crps']:.4f} in {seconds:.0f} s", flush=True)
    print(summary(rows), details(rows), f"every result: {results}", sep="\n\n")


if __name__ == "__main__":
    main()

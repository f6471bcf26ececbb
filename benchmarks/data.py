"""How many windows a second the data set serves: `python -m benchmarks.data [--maze medium] [--batches 50]`.

A step of training takes some tenths of a second, so a batch should take a few milliseconds. Data are generated when they are not there.
Prints a table and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from diffusion_forcing.datasets.mazes.base import Windows
from diffusion_forcing.datasets.mazes.maze2d import Maze2d, Maze2dOptions
from diffusion_forcing.environments.mazes.layout import MAZES


def windows_per_second(windows: Windows, batch_size: int, batches: int) -> float:
    """Windows a second over `batches` random batches after one to warm up."""
    order = np.random.default_rng(0).integers(len(windows), size=(batches + 1, batch_size)).tolist()
    windows.__getitems__(order[0])
    begin = time.perf_counter()
    for indices in order[1:]:
        windows.__getitems__(indices)
    return batches * batch_size / (time.perf_counter() - begin)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--maze", choices=list(MAZES), default="medium")
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--save-dir", default="data/maze2d")
    arguments = parser.parse_args()
    length = MAZES[arguments.maze].max_steps
    options = Maze2dOptions(env_id=f"maze2d-{arguments.maze}-v1", episode_len=length, save_dir=arguments.save_dir)
    data = Maze2d(options)
    data.prepare()
    windows = data.training()
    figures: dict[str, float] = {}
    print(f"{arguments.maze}: {len(data.store):,} steps, {len(windows):,} windows of {options.window} steps")
    print(f"{'batch':>6} {'windows/s':>12} {'ms a batch':>12} {'MB/s':>9}")
    for batch_size in (64, 1024):
        rate = windows_per_second(windows, batch_size, arguments.batches)
        megabytes = rate * options.window * 7 * 4 / 1e6
        print(f"{batch_size:>6} {rate:>12,.0f} {1000 * batch_size / rate:>12.2f} {megabytes:>9,.0f}")
        figures[f"windows_per_second_b{batch_size}"] = round(rate, 1)
    print(json.dumps({"benchmark": "data", "maze": arguments.maze, **figures}))


if __name__ == "__main__":
    main()

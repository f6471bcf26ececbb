"""What a training step costs beside the algorithm: `python -m benchmarks.trainer [--steps 3000]`.

Trains a linear layer, whose own step takes some tenths of a millisecond, bare and through an experiment (loader, guard,
metrics, step boundary, checkpoint at the end), and saves, loads and resumes a checkpoint of the released planner's
size. Prints a table and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.data import Dataset

from diffusion_forcing.checkpoints import load, save
from diffusion_forcing.experiments.base import BaseExperiment
from diffusion_forcing.experiments.options import (
    CheckpointingOptions,
    ExperimentOptions,
    TrainingOptions,
    ValidationOptions,
)
from diffusion_forcing.tracking.run import Run

PLANNER_WEIGHTS = 2_409_236  # of the released medium _x planner
TENSORS = 150


class Rows(Dataset[Tensor]):
    """100,000 rows of 4 numbers, served in batches."""

    def __init__(self) -> None:
        self.data = torch.randn(100_000, 4)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Tensor:
        return self.data[index]

    def __getitems__(self, indices: list[int]) -> Tensor:
        return self.data[indices]


class Data:
    """The dataset part of an experiment."""

    def training(self) -> Rows:
        return Rows()

    def validation(self) -> Rows:
        return Rows()


class Linear(LightningModule):
    """One layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def bare(steps: int) -> float:
    """CPU seconds of `steps` steps in a plain loop."""
    module, data = Linear(), torch.randn(64, 4)
    optimizer = module.configure_optimizers()
    start = time.process_time()
    for _ in range(steps):
        optimizer.zero_grad()
        module.training_step(data, 0).backward()
        optimizer.step()
    return time.process_time() - start


def trained(steps: int, folder: Path) -> float:
    """CPU seconds of `steps` steps of an experiment, its start and its last checkpoint included."""
    options = ExperimentOptions(
        training=TrainingOptions(
            precision=32,
            batch_size=64,
            max_steps=steps,
            checkpointing=CheckpointingOptions(every_n_train_steps=None),
        ),
        validation=ValidationOptions(val_every_n_step=None),
    )
    run = Run.create(folder, "benchmark")
    experiment = BaseExperiment(options, dataset=Data(), algorithm=Linear(), run=run)
    start = time.process_time()
    experiment.run_task("training")
    taken = time.process_time() - start
    run.finish()
    return taken


def checkpoint(folder: Path) -> dict[str, float]:
    """Seconds to save, load and resume a checkpoint of the released planner's size: weights, average, optimiser state."""
    size = PLANNER_WEIGHTS // TENSORS
    weights, average, first, second = ({f"w{i}": torch.randn(size) for i in range(TENSORS)} for _ in range(4))
    state = {"global_step": 1, "state_dict": weights, "ema": average, "optimizer_states": [first, second]}
    times = {}
    start = time.perf_counter()
    path = save(folder / "step-1", state, metadata={}, model=average)
    times["save"] = time.perf_counter() - start
    start = time.perf_counter()
    load(path)
    times["load"] = time.perf_counter() - start
    start = time.perf_counter()
    load(path, training=True)
    times["resume"] = time.perf_counter() - start
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trained(10, Path(folder))  # imports
        plain, ours = bare(steps) / steps, trained(steps, Path(folder)) / steps
        times = checkpoint(Path(folder))
    print(f"{'CPU time of a step, plain loop':44s}{1e3 * plain:9.3f} ms")
    print(f"{'CPU time of a step, experiment':44s}{1e3 * ours:9.3f} ms")
    for what, seconds in times.items():
        print(f"{what + ' a checkpoint of 2.4 M weights':44s}{1e3 * seconds:9.1f} ms")
    figures = {
        "ms_per_step_plain": 1e3 * plain,
        "ms_per_step_experiment": 1e3 * ours,
        "ms_per_step_overhead": 1e3 * (ours - plain),
        **{f"ms_{what}_checkpoint": 1e3 * seconds for what, seconds in times.items()},
    }
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()

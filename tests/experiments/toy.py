"""A tiny algorithm and dataset that draw random numbers everywhere a real one might; and a process to kill.

`python toy.py FOLDER [resume] [kill=N] …` trains in FOLDER and, with kill=N, ends itself by SIGKILL in the middle of
step N.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import Dataset

from diffusion_forcing.experiments.base import BaseExperiment
from diffusion_forcing.experiments.options import (
    CheckpointingOptions,
    DataOptions,
    ExperimentOptions,
    OptimOptions,
    TrainingOptions,
    ValidationOptions,
)


@dataclass
class ToyRun:
    """The parts of `tracking.Run` that an experiment uses."""

    folder: Path
    id: str = "toytoyto"
    name: str = "toy"
    status: str = "running"
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **{k: float(v) for k, v in metrics.items()}}) + "\n")

    def summary(self, metrics: dict[str, float]) -> None:
        self.metrics.update(metrics)

    def finish(self, status: str) -> None:
        self.status = status

    def lines(self) -> list[dict[str, float]]:
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def losses(self) -> dict[int, float]:
        return {int(line["step"]): line["training/loss"] for line in self.lines() if "training/loss" in line}


class Samples(Dataset[Tensor]):
    """`count` vectors (4,), a little noise added by the global generators, as augmentation does."""

    def __init__(self, count: int, *, whole_batches: bool = False) -> None:
        self.data = torch.arange(count * 4, dtype=torch.float32).reshape(count, 4) / count
        if whole_batches:
            self.__getitems__ = self._batch  # type: ignore[method-assign]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Tensor:
        return self.data[index] + 0.01 * torch.rand(4) + 0.01 * random.random() + 0.01 * np.random.rand()  # noqa: NPY002

    def _batch(self, indices: list[int]) -> Tensor:
        return torch.stack([self[i] for i in indices])


@dataclass
class ToyData:
    """A dataset part: training() and validation()."""

    count: int = 22
    prepared: bool = False

    def prepare(self, progress: bool = True) -> None:
        self.prepared = True

    def training(self) -> Samples:
        return Samples(self.count)

    def validation(self) -> Samples:
        return Samples(6)


class Toy(LightningModule):
    """Dropout, momentum, a schedule, and noise from all three global generators."""

    def __init__(self, *, lr: float = 0.05, kill: int | None = None, interrupt: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 4))
        self.lr, self.kill, self.interrupt = lr, kill, interrupt
        self.seen: list[Tensor] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.kill is not None and self.global_step + 1 == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.interrupt is not None and self.global_step + 1 == self.interrupt:
            os.kill(os.getpid(), signal.SIGINT)
        self.seen.append(batch.clone())
        noise = torch.randn_like(batch) * random.random() * np.random.rand()  # noqa: NPY002
        loss = ((self.network(batch + 0.1 * noise) - batch) ** 2).mean()
        self.log("training/noise", noise.mean())
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("validation/loss", ((self.network(batch) - batch + 0.01 * torch.randn(4)) ** 2).mean())

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("test/loss", ((self.network(batch) - batch) ** 2).mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.9), "interval": "step"},
        }


def options(
    *,
    max_steps: int = 17,
    max_epochs: int | None = 1000,
    every: int | None = 4,
    workers: int | None = 0,
    accumulate: int = 1,
    validate: int | None = None,
    validate_epochs: int | None = None,
    log_every: int = 1,
    batch_size: int = 4,
    shuffle: bool = True,
    clip: float = 0.0,
    max_time: str | None = None,
    **checkpointing: Any,
) -> ExperimentOptions:
    return ExperimentOptions(
        training=TrainingOptions(
            precision=32,
            batch_size=batch_size,
            max_steps=max_steps,
            max_epochs=max_epochs,
            max_time=max_time,
            log_every_n_steps=log_every,
            data=DataOptions(num_workers=workers, shuffle=shuffle),
            optim=OptimOptions(accumulate_grad_batches=accumulate, gradient_clip_val=clip),
            checkpointing=CheckpointingOptions(every_n_train_steps=every, **checkpointing),
        ),
        validation=ValidationOptions(
            precision=32, batch_size=3, val_every_n_step=validate, val_every_n_epoch=validate_epochs
        ),
    )


def experiment(
    folder: Path,
    opts: ExperimentOptions | None = None,
    *,
    module: LightningModule | None = None,
    resume: Path | None = None,
    load: Path | None = None,
    data: ToyData | None = None,
    kind: type[BaseExperiment] = BaseExperiment,
) -> BaseExperiment:
    return kind(
        opts or options(),
        dataset=data or ToyData(),
        algorithm=module or Toy(),
        run=ToyRun(folder),
        seed=1,
        resume=resume,
        load=load,
    )


def main(words: list[str]) -> None:
    folder = Path(words[0])
    given = dict(word.split("=") for word in words[1:] if "=" in word)
    numbers = {key: int(value) for key, value in given.items()}
    module = Toy(kill=numbers.pop("kill", None), interrupt=numbers.pop("interrupt", None))
    resume = folder if "resume" in words else None
    experiment(folder, options(**numbers), module=module, resume=resume).run_task("training")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])

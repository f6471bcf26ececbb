"""Small trainings of every kind in several processes: `python -m tests.experiments.processes FOLDER PROCESSES [case …]`.

Each case trains as an experiment does, in FOLDER/<case>, and leaves there what its run was told. With PROCESSES 2, Lightning starts the
second one with the same words. A case has the same whole batches however many processes share them. `case+5` goes on with what is there, to
step 5.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.data import Dataset

from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments.base import BaseExperiment
from diffusion_forcing.experiments.options import (
    CheckpointingOptions,
    DataOptions,
    ExperimentOptions,
    OptimOptions,
    TrainingOptions,
    ValidationOptions,
)
from diffusion_forcing.experiments.processes import Interrupted, is_main_process
from diffusion_forcing.experiments.video.experiment import VideoExperiment, VideoExperimentOptions
from diffusion_forcing.metrics.forecasting import crps_sum
from diffusion_forcing.tracking.run import NullRun
from tests.algorithms import small, test_forecasting, test_video
from tests.experiments import toy

WHOLE_BATCH, STEPS, VALIDATED = 4, 3, 5
"""Validation has an odd number of samples: in two processes the last batch is one process's alone."""


class Stored(Dataset[Any]):
    """The rows of one batch as a dataset that makes whole batches."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows[0])

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Any:
        return type(self.rows)(*(None if part is None else part[list(indices)] for part in self.rows))


class Data:
    """Made of `batch(size, seed=…)`."""

    def __init__(self, batch: Callable[..., Any]) -> None:
        self.make = batch

    def training(self) -> Stored:
        return Stored(self.make(14))

    def validation(self) -> Stored:
        return Stored(self.make(VALIDATED))


class Poisoned(toy.Toy):
    """A loss that is no number in the second process's part of the second batch."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.global_rank == 1 and batch_idx == 1 else loss


class Stopped(toy.Toy):
    """The second process is asked to stop, in its second step."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.global_rank == 1 and self.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().training_step(batch, batch_idx)


def gappy(size: int) -> Any:
    """Series whose rows have observed more or less: a mean over what was observed is no mean of the processes' means."""
    batch = test_forecasting.batch(size)
    observed = batch.observed.clone()
    for row in range(size):
        observed[row, : row % 5] = False
    return batch._replace(observed=observed, values=torch.where(observed, batch.values, 0.0))


def forecaster() -> LightningModule:
    made = test_forecasting.build(test_forecasting.spec(has_gaps=True), network="transformer", ema_decay=0.9)
    made.score = crps_sum
    return made


class Drawn(toy.ToyRun):
    """A run that also lists its pictures."""

    def image(self, name: str, *rest: Any, **more: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "pictures.txt").open("a") as file:
            file.write(f"{name}\n")


PARTS: dict[str, tuple[Callable[[], LightningModule], Callable[[], Any]]] = {
    "planning": (lambda: small.planning(ema_decay=0.9, warmup_steps=2), lambda: Data(small.batch)),
    "video": (lambda: test_video.video(ema_decay=0.9, warmup_steps=2).train(), lambda: Data(test_video.batch)),
    "forecasting": (forecaster, lambda: Data(gappy)),
    "poisoned": (Poisoned, lambda: toy.ToyData(8)),
    "stopped": (Stopped, lambda: toy.ToyData(8)),
}
"""Algorithm and data of a case; what is behind a dash in its name is the strategy, or what it does otherwise."""


def options(processes: int, *, strategy: str = "auto", steps: int = STEPS, kind: Any = ExperimentOptions) -> Any:
    return kind(
        training=TrainingOptions(
            precision=32,
            devices=processes,
            strategy=strategy,  # type: ignore[arg-type]
            batch_size=WHOLE_BATCH // processes,
            max_steps=steps,
            log_every_n_steps=1,
            data=DataOptions(num_workers=0),
            optim=OptimOptions(gradient_clip_val=0.5),
            checkpointing=CheckpointingOptions(every_n_train_steps=steps, monitor="validation/loss"),
        ),
        validation=ValidationOptions(precision=32, batch_size=WHOLE_BATCH // processes, val_every_n_step=1),
    )


def train(folder: Path, case: str, processes: int, *, resume: bool = False, steps: int = STEPS) -> BaseExperiment:
    """Run one case's training in folder/case; the experiment, trained."""
    name, _, strategy = Path(case).name.partition("-")
    kind = VideoExperiment if name == "video" else BaseExperiment
    options_kind = VideoExperimentOptions if name == "video" else ExperimentOptions
    algorithm, data = PARTS[name]
    run: Any = Drawn(folder / case) if is_main_process() else NullRun(folder / case)
    torch.manual_seed(0)
    experiment = kind(
        options(processes, strategy=strategy or "auto", steps=steps, kind=options_kind),
        dataset=data(),
        algorithm=algorithm(),
        run=run,
        seed=3,
        resume=folder / case if resume else None,
    )
    experiment.run_task("training")
    return experiment


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    folder, processes, cases = Path(words[0]), int(words[1]), words[2:]
    for case in cases:
        case, _, steps = case.partition("+")
        try:
            train(folder, case, processes, resume=bool(steps), steps=int(steps or STEPS))
        except (UserError, Interrupted) as ended:  # found by both processes together, which go on together
            if is_main_process():
                (folder / case / "ended.txt").write_text(f"{type(ended).__name__} {ended}")


if __name__ == "__main__":
    main(sys.argv[1:])

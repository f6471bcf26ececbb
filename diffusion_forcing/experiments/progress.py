"""How far training is: a bar with loss, rate and time left on a terminal, a line now and then everywhere else."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

REFRESH_SECONDS = 0.25
LINE_SECONDS = 30.0
FIRST_LINE_SECONDS = 5.0
_SMOOTHING = 0.3  # weight of the newest interval in the rate


class ProgressBar(Callback):
    """Shows the step, the loss, the rate and the time left on `console`, at most four times a second."""

    def __init__(
        self, loss: Callable[[], float], *, console: Console | None = None, line_seconds: float = LINE_SECONDS
    ) -> None:
        """`loss()`: the newest training loss."""
        self._loss = loss
        self._console = console or Console(stderr=True)
        self._line_seconds = line_seconds
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._total: int | None = None
        self._step = 0
        self._rate = math.nan  # steps a second
        self._mark = (0, 0.0)
        self._next = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._total = total_steps(trainer)
        self._step = trainer.global_step
        self._mark = (self._step, time.monotonic())
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                console=self._console,
                auto_refresh=False,
            )
            self._task = self._bar.add_task("training", total=self._total, completed=self._step, text="")
            self._bar.start()
            self._next = 0.0
        else:
            self._next = time.monotonic() + min(FIRST_LINE_SECONDS, self._line_seconds)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if now < self._next or not trainer.is_global_zero or trainer.global_step == self._step == 0:
            return
        self._step = trainer.global_step
        self._measure(now)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._step, text=self._text(), refresh=True)
            self._next = time.monotonic() + REFRESH_SECONDS
        else:
            self._console.print(f"training step {self._step}{self._of_total()} {self._text()}", highlight=False)
            self._next = now + self._line_seconds

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._describe("validating")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._describe("training")
        self._mark = (trainer.global_step, time.monotonic())  # a validation's time is not a step's

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step, refresh=True)
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _measure(self, now: float) -> None:
        step, then = self._mark
        if self._step > step and now > then:
            rate = (self._step - step) / (now - then)
            self._rate = rate if math.isnan(self._rate) else _SMOOTHING * rate + (1 - _SMOOTHING) * self._rate
            self._mark = (self._step, now)

    def _text(self) -> str:
        words = [f"loss {self._loss():.4g}"]
        if not math.isnan(self._rate):
            words.append(f"{self._rate:.3g} it/s" if self._rate >= 1 else f"{1 / self._rate:.3g} s/it")
            if self._total is not None:
                words.append(f"{_clock((self._total - self._step) / self._rate)} left")
        return " · ".join(words)

    def _of_total(self) -> str:
        return f"/{self._total}" if self._total is not None else ""

    def _describe(self, what: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=what, refresh=True)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def total_steps(trainer: Trainer) -> int | None:
    """Optimiser steps at which training ends by `max_steps` or `max_epochs`; None if neither says."""
    limits = []
    if trainer.max_steps is not None and trainer.max_steps >= 0:
        limits.append(trainer.max_steps)
    if trainer.max_epochs is not None and trainer.max_epochs >= 0 and math.isfinite(trainer.num_training_batches):
        limits.append(trainer.max_epochs * math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches))
    return min(limits, default=None)


def _clock(seconds: float) -> str:
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes:02d}:{whole % 60:02d}"

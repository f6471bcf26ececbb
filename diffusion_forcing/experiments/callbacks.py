"""What happens around each training step: numbers are logged, a loss that is not finite stops training.

`RunLogger` passes to `run.log` what a module logs with `self.log`; `Metrics` adds the loss, the learning rate, the
gradient norm and the speed. Metrics of one step are joined, so metrics.jsonl has one line per step.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers.logger import Logger
from rich.console import Console
from torch import Tensor
from torch.optim import Optimizer

from diffusion_forcing.algorithms.parallel import gathered, mean_of_processes
from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments.devices import full
from diffusion_forcing.experiments.loader import random_state, restore_random_state, seed_all
from diffusion_forcing.files import open_file
from diffusion_forcing.progress import Bar
from diffusion_forcing.tracking.records import parse_line

_UPDATE_SECONDS = 0.25
_SHOWN_INDICES = 8


class TrainingProgress(Callback):
    """Shows step, loss, rate and time left on stderr, in the main process; with early stopping also the score, the best
    one, and when training will stop."""

    def __init__(self, loss: Callable[[], float], *, console: Console | None = None) -> None:
        """`loss()`: the newest training loss."""
        self._loss = loss
        self._console = console
        self._bar: Bar | None = None
        self._shown = 0
        self._next = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._bar = Bar("training", total=total_steps(trainer), done=trainer.global_step, console=self._console)
            self._bar.__enter__()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.monotonic() >= self._next:
            self._show(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.update(description="validating")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.update(description="training")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(trainer)
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _show(self, trainer: Trainer) -> None:
        step = trainer.global_step
        if self._bar is not None and step > self._shown:
            self._bar.update(step, note=", ".join((f"loss {self._loss():.4g}", *stopping(trainer))))
            self._shown, self._next = step, time.monotonic() + _UPDATE_SECONDS

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None


def stopping(trainer: Trainer) -> Iterator[str]:
    """When training will stop, and why, where it is not a number of steps."""
    for early in trainer.early_stopping_callbacks:
        score = trainer.callback_metrics.get(early.monitor) if early.monitor else None
        if score is not None and bool(torch.isfinite(early.best_score)):
            yield (
                f"{early.monitor} {float(score):.4g}, best {float(early.best_score):.4g}, "
                f"stops after {early.patience - early.wait_count} more without a better one"
            )
    for timer in trainer.callbacks:  # type: ignore[attr-defined]
        left = timer.time_remaining() if isinstance(timer, Timer) else None
        if left is not None:
            yield f"at most {max(0, round(left))} s more"


def total_steps(trainer: Trainer) -> int | None:
    """Optimiser steps at which training ends by `max_steps` or `max_epochs`; None if it has no such end, or an early one."""
    if trainer.early_stopping_callbacks:
        return None
    limits = []
    if trainer.max_steps is not None and trainer.max_steps >= 0:
        limits.append(trainer.max_steps)
    if trainer.max_epochs is not None and trainer.max_epochs >= 0 and math.isfinite(trainer.num_training_batches):
        limits.append(trainer.max_epochs * math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches))
    return min(limits, default=None)


class RunLogger(Logger):
    """Lightning's logger interface for a run. Steps are optimiser steps taken, whatever Lightning counts."""

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.step = 0
        self._run = run
        self._pending: dict[str, float] = {}

    @property
    def name(self) -> str:
        return str(self._run.name)

    @property
    def version(self) -> str:
        return str(self._run.id)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """From Lightning: what the module logged; a name that this step already has is kept."""
        self._pending = {**metrics, **self._pending}

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: a run keeps its configuration."""

    def note(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of `step`, written once another step begins or `flush` is called."""
        self.at(step)
        self._pending.update(metrics)

    def at(self, step: int) -> None:
        """From here on, what is logged belongs to `step`."""
        if step != self.step:
            self.flush()
            self.step = step

    def flush(self) -> None:
        """Write what is pending."""
        if self._pending:
            self._run.log(self.step, self._pending)
            self._pending = {}

    def finalize(self, status: str) -> None:
        self.flush()


class FiniteGuard(Callback):
    """Stops training with a UserError at a loss or gradient that is not finite, before it is stepped with or saved.

    On a GPU the numbers are read every `every_n_steps` and before each checkpoint (`check`), so that no step waits for
    them; the message still names the step and the batch where it began. Several processes check together, at whole
    steps, and report the process where it began first.
    """

    def __init__(
        self, *, indices: Callable[[], list[int]], last_checkpoint: Callable[[], Path | None], every_n_steps: int
    ) -> None:
        """`indices()`: dataset indices of the current batch. `last_checkpoint()`: the last good one."""
        self.norm: Tensor | None = None
        """Gradient norm of the step being made, before clipping; None where gradients are scaled."""
        self._indices = indices
        self._last_checkpoint = last_checkpoint
        self._every = every_n_steps
        self._pending: list[tuple[str, int, list[int], Tensor]] = []
        self._several = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._several = trainer.world_size > 1

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._look_at("loss", trainer, loss.detach())
        if not self._several:
            self._check_if_due()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # A loss scaler overflows now and then by design, and skips that step.
        is_scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        self.norm = None if is_scaled else gradient_norm(optimizer)
        if self.norm is not None:
            self._look_at("gradient norm", trainer, self.norm)
        self._check_if_due()

    def check(self) -> None:
        """Check all that has not been checked; UserError for the first that is not finite."""
        pending, self._pending = self._pending, []
        bad = [
            (step, what != "loss", what, indices, value.mean().item())
            for what, step, indices, value in pending
            if not torch.isfinite(value).all()
        ][:1]
        if self._several:
            bad = gathered(bad)
        if not bad:
            return
        step, _, what, indices, value = min(bad, key=lambda found: found[:2])
        shown = ", ".join(map(str, indices[:_SHOWN_INDICES])) + (", …" if len(indices) > _SHOWN_INDICES else "")
        last = self._last_checkpoint()
        advice = (
            f"the last good checkpoint is {last}"
            if last
            else "there is no checkpoint yet; try a lower learning rate (experiment.training.lr)"
        )
        failure = UserError(
            f"the {what} became {value} at step {step}, in a batch of {len(indices)} samples "
            f"(dataset indices {shown}); training stopped and nothing was overwritten; {advice}"
        )
        failure.everywhere = True
        raise failure

    def _look_at(self, what: str, trainer: Trainer, value: Tensor) -> None:
        step = trainer.global_step + 1  # the step that is being made
        self._pending.append((what, step, self._indices(), value))

    def _check_if_due(self) -> None:
        if self._pending and (self._pending[-1][3].device.type == "cpu" or len(self._pending) >= 2 * self._every):
            self.check()


class Metrics(Callback):
    """Logs training/loss (mean since the line before, and over processes), lr, grad_norm (before clipping) and speed."""

    def __init__(self, logger: RunLogger, guard: FiniteGuard, *, every_n_steps: int, log: Path) -> None:
        """`log`: the run's metrics.jsonl, cut where a resumed run goes on."""
        self.last_loss = float("nan")
        """The newest loss that was read back from the device."""
        self._logger = logger
        self._every = every_n_steps
        self._window: tuple[float, int] = (0.0, 0)  # sum and number of the losses since the last line
        self._open: list[Tensor] = []  # losses not read back yet, those of an unfinished optimiser step among them
        self._step = 0
        self._several = False
        self._lr = 0.0
        self._guard = guard
        self._log = log
        self._clock = (0, time.monotonic())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        self._clock = (self._step, time.monotonic())
        self._several = trainer.world_size > 1
        if trainer.is_global_zero:
            rewind(self._log, self._step)
        self._logger.at(self._step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._logger.flush()  # the step before is complete: a kill from here on cannot lose it

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._lr = float(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self._open.append(loss.detach())
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self._logger.at(self._step)
        on_time = self._step % self._every == 0
        if on_time or len(self._open) >= self._every or (self._open and self._open[0].device.type == "cpu"):
            self._read_back()
        if on_time:
            self._note(trainer.current_epoch)

    def state_dict(self) -> dict[str, Any]:
        return {"window": self._window}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._window = state["window"]

    def _read_back(self) -> None:
        total, count = self._window
        losses = [loss.mean() for loss in self._open]
        if self._several and losses:
            losses = list(mean_of_processes(torch.stack(losses)))
        for loss in losses:
            self.last_loss = loss.item()
            total, count = total + self.last_loss, count + 1
        self._window, self._open = (total, count), []

    def _note(self, epoch: int) -> None:
        total, count = self._window
        self._window = (0.0, 0)
        step, start = self._clock
        now = time.monotonic()
        self._clock = (self._step, now)
        metrics = {"epoch": float(epoch)}
        if count:
            metrics["training/loss"] = total / count
        metrics["training/lr"] = self._lr
        if self._guard.norm is not None:
            metrics["training/grad_norm"] = self._guard.norm.item()
        metrics["training/steps_per_second"] = (self._step - step) / max(now - start, 1e-9)
        self._logger.note(self._step, metrics)


class ValidationRandomness(Callback):
    """Gives each validation the same random numbers, from `seed`; training goes on as if there had been none."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._before: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank:  # other noise in other processes
            seed_all((self._seed + trainer.global_rank) % 2**32)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not a context manager: one left open by a failed validation would restore itself whenever it is collected.
        self._before = random_state()
        seed_all(self._seed)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        restore_random_state(self._before)


def gradient_norm(optimizer: Optimizer) -> Tensor:
    """Euclidean norm of all gradients that `optimizer` is about to use, a scalar on their device; 0 if there are none.

    Where gradients are sharded, every process must call it.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    return full(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))


def rewind(log: Path, step: int) -> None:
    """Cut off the lines of metrics.jsonl after `step`, which a killed run wrote and its resumed one will write again.

    In place, for the file may be open for appending.
    """
    with contextlib.suppress(FileNotFoundError), open_file(log, "rb") as file:
        end = 0
        for line in file:
            record = parse_line(line)
            if record is not None and record["step"] > step:
                os.truncate(log, end)
                return
            end += len(line)

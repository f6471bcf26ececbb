"""When checkpoints are written, and what is in them.

Whatever moment a checkpoint is asked for (in a validation, when training ends or fails), what is saved is the last
*step boundary*: loop counters, data position and random state as they were right after the last optimiser step, when
the weights last changed. So resuming always starts before a whole step, and one kind of checkpoint is enough.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from diffusion_forcing.algorithms.sharing import gathered
from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.checkpoints.lightning_io import SAMPLING
from diffusion_forcing.errors import UserError, did_you_mean
from diffusion_forcing.experiments import randomness
from diffusion_forcing.experiments.interrupts import Interrupted, Interrupts
from diffusion_forcing.experiments.options import CheckpointingOptions
from diffusion_forcing.experiments.retention import Retention
from diffusion_forcing.experiments.sharded import whole
from diffusion_forcing.experiments.weights import describe, sampling_weights

_RANDOM = "random"


class Checkpoints(Callback):
    """Saves every so many steps, epochs or minutes, at the end, when interrupted; keeps the newest and the best."""

    def __init__(
        self,
        options: CheckpointingOptions,
        *,
        folder: Path,
        before_save: Callable[[], None] = lambda: None,
        time_limit: float | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """`folder`: where checkpoints lie. `before_save()`: called first, may refuse by raising. `time_limit`: seconds,
        all sessions."""
        self.options = options
        self.folder = folder
        self.last: Path | None = None
        """The newest whole checkpoint of this run."""
        self.interrupts = Interrupts()
        self._before_save = before_save
        self._time_limit = time_limit
        self._say = say
        self._boundary: tuple[int, dict[str, Any], dict[str, Any]] | None = None  # step, fit loop, random state
        self._restored: dict[str, Any] | None = None  # random state of the checkpoint that is being resumed from
        self._resumed = False
        self._due = False
        self._kept = Retention(options, folder)
        self._saved_step = -1
        self._last_time = time.monotonic()
        self._seconds = 0.0  # of training, before and in this session
        self._tick = time.monotonic()

    # What Lightning calls, in the order it does

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        states = checkpoint.get(_RANDOM)
        states = [states] if isinstance(states, dict) else states or []  # one, of a checkpoint of earlier versions
        self._resumed = bool(states)
        # a process more than there were starts from its own seed
        self._restored = states[trainer.global_rank] if trainer.global_rank < len(states) else None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seconds = state["seconds"]
        self._kept.written = set(state.get("written", ()))

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._seconds, "written": sorted(self._kept.written)}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        native.remove_leftovers(self.folder)
        self._saved_step = trainer.global_step if self._resumed else -1
        self._last_time = self._tick = time.monotonic()
        self._take_boundary(trainer, random=self._restored)
        self.interrupts.install()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._settle(trainer)
        if self._restored is not None:  # as late as can be, after everything that drew random numbers while setting up
            randomness.set_state(self._restored)
            self._restored = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self._boundary is not None
        if trainer.global_step == self._boundary[0]:
            return  # gradients are being accumulated
        self._take_boundary(trainer)
        now = time.monotonic()
        self._seconds, self._tick = self._seconds + now - self._tick, now
        self._due = self._is_due(trainer)
        if self._time_limit is not None and _agreed(trainer, self._seconds >= self._time_limit):
            self._due = trainer.should_stop = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._settle(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._settle(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._settle(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        monitor = self.options.monitor
        value = trainer.callback_metrics.get(monitor or "")
        if monitor is not None and value is None:
            known = sorted(trainer.callback_metrics)
            self._say(
                f"experiment.training.checkpointing.monitor='{monitor}' is not measured in validation{did_you_mean(monitor, known)}, so no "
                f"checkpoint is the best by it; there are: {', '.join(known) or 'none'}"
            )
        if self._boundary is None or value is None:
            return
        # the main process reads the scores, for it writes them too
        if _agreed(trainer, trainer.is_global_zero and self._kept.is_among_best(float(value))):
            path = self.save(trainer)
            if trainer.is_global_zero:
                self._kept.score(path, float(value))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step:
            self.save(trainer)
        self._leave()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if (
            self.options.save_on_exception
            and self._boundary is not None
            and not isinstance(exception, (UserError, Interrupted))
        ):
            self.save(trainer)
        self._leave(ending=isinstance(exception, Interrupted))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._boundary is None:
            return
        _, fit_loop, random = self._boundary
        checkpoint["loops"]["fit_loop"] = fit_loop
        checkpoint[_RANDOM] = gathered([random]) if trainer.world_size > 1 else [random]
        checkpoint[SAMPLING] = {
            "facts": describe(pl_module),
            "model": {name: whole(weight) for name, weight in sampling_weights(pl_module).items()},
            "resumable": not self.options.save_weights_only,
        }

    # What those do

    def save(self, trainer: Trainer) -> Path:
        """Save the last step boundary, unless that is done; then let go of what need not be kept. Returns the
        checkpoint's folder."""
        assert self._boundary is not None
        step = self._boundary[0]
        if step == self._saved_step and self.last is not None:
            return self.last
        self._before_save()
        path = self._path(trainer, step)
        self._kept.written.add(path.name)
        trainer.save_checkpoint(path, weights_only=False)
        self.last, self._saved_step = path, step
        self._last_time = time.monotonic()
        if trainer.is_global_zero:
            self._kept.add(path)
        if self.options.verbose:
            self._say(f"saved {path}")
        return path

    def _is_due(self, trainer: Trainer) -> bool:
        options, step = self.options, trainer.global_step
        fit_loop = trainer.fit_loop
        ends_epoch = fit_loop.epoch_loop.batch_progress.is_last_batch
        last_epoch = ends_epoch and trainer.current_epoch + 1 == fit_loop.max_epochs
        if step == fit_loop.max_steps or last_epoch:
            return True
        if options.save_top_k == 0:
            return False
        by_step = bool(options.every_n_train_steps) and step % (options.every_n_train_steps or 1) == 0
        by_epoch = (
            bool(options.every_n_epochs)
            and ends_epoch
            and (trainer.current_epoch + 1) % (options.every_n_epochs or 1) == 0
        )
        interval = options.interval
        by_time = interval is not None and time.monotonic() - self._last_time >= interval.total_seconds()
        return by_step or by_epoch or (interval is not None and _agreed(trainer, by_time))

    def _take_boundary(self, trainer: Trainer, *, random: dict[str, Any] | None = None) -> None:
        self._boundary = trainer.global_step, trainer.fit_loop.state_dict(), random or randomness.get_state()

    def _settle(self, trainer: Trainer) -> None:
        """Do what the last boundary left to do: save if that is due, stop if asked. Called once all of its metrics are
        in."""
        if self._boundary is None:
            return
        asked = _highest(trainer, self.interrupts.received or 0)
        if (self._due or asked) and trainer.global_step:
            self._due = False
            self.save(trainer)
        if asked:
            raise Interrupted(asked)

    def _leave(self, *, ending: bool = False) -> None:
        self.interrupts.remove(ending=ending)
        self._boundary = None

    def _path(self, trainer: Trainer, step: int) -> Path:
        name = f"step-{step:08d}"
        if self.options.filename is not None:
            values = {"step": step, "epoch": trainer.current_epoch}
            template = self.options.filename
            for key in values if self.options.auto_insert_metric_name else ():
                template = template.replace("{" + key, key + "={" + key)
            try:
                name = template.format(**values)
            except (KeyError, ValueError, IndexError) as error:
                raise UserError(
                    f"experiment.training.checkpointing.filename='{self.options.filename}' cannot be filled in ({error}); "
                    "it may use {step} and {epoch}"
                ) from None
        path, version = self.folder / name, 1
        while self.options.enable_version_counter and path.exists():
            path, version = self.folder / f"{name}-v{version}", version + 1
        return path


def _agreed(trainer: Trainer, decision: bool) -> bool:
    """Whether any process decided so; the same answer in all of them."""
    return trainer.strategy.reduce_boolean_decision(decision, all=False) if trainer.world_size > 1 else decision


def _highest(trainer: Trainer, number: int) -> int:
    """The highest `number` of all processes."""
    if trainer.world_size == 1:
        return number
    found = torch.tensor(number, device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(found, reduce_op="max"))

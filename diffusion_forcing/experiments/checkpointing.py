"""When checkpoints are written, what is in them, and which are kept.

Whenever a checkpoint is asked for (in a validation, when training ends or fails), the last *step boundary* is saved:
loop counters, data position and random state as they were right after the last optimiser step, when the weights last
changed. So resuming always starts before a whole step.

Lightning's ModelCheckpoint saves the state of the moment instead, and remembers the best checkpoints only in the
checkpoints themselves: a run resumed from an older one would not know them. The options are named as its are.
"""

from __future__ import annotations

import contextlib
import math
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from diffusion_forcing.algorithms.parallel import gathered
from diffusion_forcing.checkpoints import LoadedCheckpoint
from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.checkpoints.places import LATEST
from diffusion_forcing.errors import UserError, did_you_mean, explaining_os_errors
from diffusion_forcing.experiments.devices import full
from diffusion_forcing.experiments.loader import random_state, restore_random_state
from diffusion_forcing.experiments.options import CheckpointingOptions
from diffusion_forcing.experiments.processes import Interrupted, Interrupts
from diffusion_forcing.files import is_plain, point_to, read_json, remove_leftovers, write_json

_ASK_STEPS = 10
_RANDOM = "random"
_SCORES = "scores.json"
_STANDARD_NAME = re.compile(r"step-\d{8,}(-v\d+)?")


def load_weights(module: LightningModule, checkpoint: LoadedCheckpoint) -> None:
    """Load a checkpoint's weights into `module`: by its own `load_weights` if it has one, else as its state dict.

    UserError with the first weight that does not fit.
    """
    own = getattr(module, "load_weights", None)
    if callable(own):
        own(checkpoint)
        return
    check_fits(module, checkpoint.weights, checkpoint.path)
    module.load_state_dict(checkpoint.weights)


def check_fits(module: LightningModule, state: Mapping[str, Tensor], source: object) -> None:
    """UserError with the first weight, in the module's order, that `state` (from `source`) lacks or has in another shape."""
    ours = module.state_dict()
    for key in [*ours, *state]:
        needed, found = ours.get(key), state.get(key)
        if needed is None or found is None or needed.shape != found.shape:
            there = "is missing" if found is None else f"has shape {tuple(found.shape)}"
            here = "has no such weight" if needed is None else f"needs {tuple(needed.shape)}"
            raise UserError(
                f"checkpoint {source} does not fit {type(module).__name__}: '{key}' {there}, the algorithm {here}; "
                "use the configuration it was trained with"
            )


CUDA_GRAPHS = ("reduce-overhead", "max-autotune")
"""Modes of torch.compile in which each call overwrites what the call before it gave (`DiffusionForcing.forward`)."""


def compile_network(module: nn.Module, mode: bool | str) -> None:
    """Compile in place, so that weights keep their names: the module's `network` and the average of it, else the module itself.

    `mode`: True, or the name of one of torch.compile's modes.
    """
    name, average = "default" if mode is True else str(mode), getattr(module, "ema", None)
    for target in (getattr(module, "network", module), *([] if average is None else [average.module])):
        target.compile(mode=name)
        target.static_outputs = name in CUDA_GRAPHS
        if hasattr(target, "teacher_forced"):
            target.teacher_forced = torch.compile(target.teacher_forced, mode=name)


def best_of(folder: Path, mode: str) -> Path | None:
    """The checkpoint in `folder` with the best score by the monitored metric (`mode`: min or max); None if none has one."""
    scores = read_scores(folder)
    if not scores:
        return None
    return folder / (min if mode == "min" else max)(scores, key=lambda name: scores[name])


def read_scores(folder: Path) -> dict[str, float]:
    """The scores of the checkpoints that are in `folder`, by name."""
    scores = read_json(folder / _SCORES, {}).items()
    return {
        name: score
        for name, score in scores
        if is_plain(name) and isinstance(score, (int, float)) and native.is_checkpoint(folder / name)
    }


class Retention:
    """Keeps a run's newest checkpoints and the best by a metric. One is removed only after a newer one is complete."""

    def __init__(self, options: CheckpointingOptions, folder: Path) -> None:
        self.written: set[str] = set()
        """Names of the checkpoints this run wrote, before it was resumed too."""
        self._options = options
        self._folder = folder
        self._newest: Path | None = None

    def add(self, path: Path) -> None:
        """The checkpoint `path` is complete: point `latest` to it, and remove what it pushes out."""
        self._newest = path
        with contextlib.suppress(OSError):  # where links cannot be made, the newest is found by its step
            point_to(self._folder / LATEST, path)
        self._remove_old()

    def score(self, path: Path, value: float) -> None:
        """The checkpoint `path` has `value` in the monitored metric; remove what it pushes out."""
        self._write_scores(read_scores(self._folder) | {path.name: value})
        self._remove_old()

    def is_among_best(self, value: float) -> bool:
        """Whether a checkpoint with `value` would be kept as one of the best `save_top_k`."""
        k, scores = self._options.save_top_k, read_scores(self._folder).values()
        better = sum(score <= value if self._options.mode == "min" else score >= value for score in scores)
        return math.isfinite(value) and (k == -1 or better < k)

    def _remove_old(self) -> None:
        options = self._options
        if options.save_top_k == -1:
            return
        ours = [path for path in self._folder.iterdir() if self._is_ours(path)]
        ours.sort(key=lambda path: (path == self._newest, (path / native.HEADER).stat().st_mtime_ns))
        newest = options.keep_last if options.monitor else max(options.keep_last, options.save_top_k)
        scores = read_scores(self._folder)
        best = sorted(scores, key=lambda name: scores[name], reverse=options.mode == "max")[: options.save_top_k]
        for path in ours[:-newest]:
            if path.name not in best:
                shutil.rmtree(path, ignore_errors=True)
        if (left := read_scores(self._folder)) != scores:
            self._write_scores(left)

    def _is_ours(self, path: Path) -> bool:
        """Whether this run wrote it; a checkpoint that a user put there is not ours to remove."""
        is_written = path.name in self.written or _STANDARD_NAME.fullmatch(path.name) is not None
        return is_written and not path.is_symlink() and native.is_checkpoint(path)

    def _write_scores(self, scores: dict[str, float]) -> None:
        with explaining_os_errors(f"cannot write {self._folder / _SCORES}", "make room there"):
            write_json(self._folder / _SCORES, scores)


class Checkpoints(Callback):
    """Saves every so many steps, epochs or minutes, at the end and when interrupted; see `Retention` for what is kept."""

    def __init__(
        self,
        options: CheckpointingOptions,
        *,
        folder: Path,
        before_save: Callable[[], None] = lambda: None,
        time_limit: float | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """`folder`: of the checkpoints. `before_save()`: called first, may refuse by raising. `time_limit`: seconds of
        training, those before the run was resumed included."""
        self.options = options
        self.folder = folder
        self.last: Path | None = None
        """The newest complete checkpoint of this run."""
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
        self._seconds = 0.0  # of training, before the run was resumed too
        self._tick = time.monotonic()

    # Hooks, in the order in which Lightning calls them.

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        states = checkpoint.get(_RANDOM) or []
        self._resumed = bool(states)
        # A process that the saved training did not have starts from its own seed.
        self._restored = states[trainer.global_rank] if trainer.global_rank < len(states) else None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seconds = state["seconds"]
        self._kept.written = set(state["written"])

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._seconds, "written": sorted(self._kept.written)}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        remove_leftovers(self.folder)
        self._saved_step = trainer.global_step if self._resumed else -1
        self._last_time = self._tick = time.monotonic()
        self._take_boundary(trainer, random=self._restored)
        self.interrupts.install()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._settle(trainer, every=_ASK_STEPS)
        if self._restored is not None:  # late, after everything that draws random numbers while setting up
            restore_random_state(self._restored)
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
        if self._time_limit is not None and _any_process(trainer, self._seconds >= self._time_limit):
            self._due = trainer.should_stop = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._settle(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._settle(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._settle(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        monitor = self.options.monitor
        if monitor is None or self._boundary is None:
            return
        if monitor not in trainer.callback_metrics:
            known = sorted(trainer.callback_metrics)
            self._say(
                f"experiment.training.checkpointing.monitor='{monitor}' is not measured in validation"
                f"{did_you_mean(monitor, known)}, so no checkpoint is the best by it; there are: {', '.join(known) or 'none'}"
            )
            return
        value = float(trainer.callback_metrics[monitor])
        # Only the main process writes the scores, so it alone reads them.
        if _any_process(trainer, trainer.is_global_zero and self._kept.is_among_best(value)):
            path = self.save(trainer)
            if trainer.is_global_zero:
                self._kept.score(path, value)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step:
            self.save(trainer)
        self._leave()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        refused = isinstance(exception, (UserError, Interrupted))
        if self.options.save_on_exception and self._boundary is not None and not refused:
            self.save(trainer)
        self._leave(ending=isinstance(exception, Interrupted))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._boundary is None:
            return
        _, fit_loop, random = self._boundary
        checkpoint["loops"]["fit_loop"] = fit_loop
        checkpoint[_RANDOM] = gathered([random]) if trainer.world_size > 1 else [random]
        module: Any = pl_module
        weights = getattr(module, "sampling_weights", module.state_dict)()
        describe = getattr(module, "metadata", getattr(module, "describe", dict))
        checkpoint[SAMPLING] = {
            "metadata": dict(describe()),
            "model": {name: full(weight) for name, weight in weights.items()},
            "resumable": not self.options.save_weights_only,
        }

    def save(self, trainer: Trainer) -> Path:
        """Save the last step boundary, if it is not saved yet, and remove old checkpoints. Returns its folder."""
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
        options, step, fit_loop = self.options, trainer.global_step, trainer.fit_loop
        ends_epoch = fit_loop.epoch_loop.batch_progress.is_last_batch
        epochs = trainer.current_epoch + 1
        if step == fit_loop.max_steps or (ends_epoch and epochs == fit_loop.max_epochs):
            return True
        if options.save_top_k == 0:
            return False
        if options.every_n_train_steps and step % options.every_n_train_steps == 0:
            return True
        if options.every_n_epochs and ends_epoch and epochs % options.every_n_epochs == 0:
            return True
        if options.interval is None:
            return False
        return _any_process(trainer, time.monotonic() - self._last_time >= options.interval.total_seconds())

    def _take_boundary(self, trainer: Trainer, *, random: dict[str, Any] | None = None) -> None:
        self._boundary = trainer.global_step, trainer.fit_loop.state_dict(), random or random_state()

    def _settle(self, trainer: Trainer, *, every: int = 1) -> None:
        """Save the last boundary if that is due, and stop if asked to. Called once all of the step's metrics are in.

        `every`: steps between asking several GPUs' processes whether one was asked to stop, for which the GPUs wait.
        """
        if self._boundary is None:
            return
        waits = trainer.world_size > 1 and trainer.strategy.root_device.type != "cpu"
        asked = 0 if waits and trainer.global_step % every else _highest(trainer, self.interrupts.received or 0)
        if (self._due or asked) and trainer.global_step:
            self._due = False
            self.save(trainer)
        if asked:
            raise Interrupted(asked)

    def _leave(self, *, ending: bool = False) -> None:
        self.interrupts.remove(ending=ending)
        self._boundary = None

    def _path(self, trainer: Trainer, step: int) -> Path:
        values, template = {"step": step, "epoch": trainer.current_epoch}, self.options.filename
        if template is not None and self.options.auto_insert_metric_name:
            for key in values:
                template = template.replace("{" + key, key + "={" + key)
        name = f"step-{step:08d}" if template is None else template.format(**values)
        path, version = self.folder / name, 1
        while self.options.enable_version_counter and path.exists():
            path, version = self.folder / f"{name}-v{version}", version + 1
        return path


def _any_process(trainer: Trainer, decision: bool) -> bool:
    """Whether any process decided so; the same answer in all of them."""
    return trainer.strategy.reduce_boolean_decision(decision, all=False) if trainer.world_size > 1 else decision


def _highest(trainer: Trainer, number: int) -> int:
    """The highest `number` of all processes."""
    if trainer.world_size == 1:
        return number
    found = torch.tensor(number, device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(found, reduce_op="max"))


SAMPLING = "sampling"
"""Key, in the dict that Lightning saves, of `{"metadata": …, "model": …, "resumable": bool}`, which a callback puts there:
what goes into checkpoint.json and model.safetensors. Without it the module's whole state is saved."""
_NEEDED: dict[str, type] = {"state_dict": dict, "global_step": int, "loops": dict, "optimizer_states": list}
"""What a Lightning checkpoint has if it can be resumed from."""
_NOT_KEPT = {
    *(SAMPLING, "hyper_parameters", "hparams_name", "hparams_type"),
    *("datamodule_hyper_parameters", "datamodule_hparams_name"),
}


class SafetensorsCheckpointIO(CheckpointIO):
    """Reads and writes Lightning checkpoints as our folders."""

    def __init__(self) -> None:
        super().__init__()
        self._preloaded: dict[Path, dict[str, Any]] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write `checkpoint` as the folder `path`; UserError, an older one untouched, if the disk refuses."""
        kept = {key: value for key, value in checkpoint.items() if key not in _NOT_KEPT}
        sampling = checkpoint.get(SAMPLING) or {"metadata": {}, "model": kept["state_dict"], "resumable": True}
        native.save(
            Path(path),
            kept if sampling["resumable"] else None,
            metadata=sampling["metadata"],
            model=sampling["model"],
            step=int(kept.get("global_step", 0)),
        )

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The dict that was saved, its tensors on the CPU, its weights on the device `map_location` if that is one."""
        state = self.preload(Path(path))
        self._preloaded.clear()
        if isinstance(map_location, (str, torch.device)) and torch.device(map_location).type != "cpu":
            state["state_dict"] = {key: value.to(map_location) for key, value in state["state_dict"].items()}
        return state

    def preload(self, path: Path) -> dict[str, Any]:
        """Read the checkpoint `path` now, for inspection; Lightning's next load gets the same. UserError if it cannot."""
        if path not in self._preloaded:
            state: Any = native.load(path, training=True).training
            for key, kind in _NEEDED.items():
                if not isinstance(state, dict) or not isinstance(state.get(key), kind):
                    raise UserError(
                        f"cannot resume from {path}: its {native.TRAINING} has no {key}; take another checkpoint"
                    )
            self._preloaded = {path: state}
        return self._preloaded[path]

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove the folder `path` if it is one of ours."""
        if native.is_checkpoint(Path(path)):
            shutil.rmtree(path, ignore_errors=True)

"""When checkpoints are written, and what is in them.

Whatever moment a checkpoint is asked for (in a validation, when training ends or fails), what is saved is the last
*step boundary*: loop counters, data position and random state as they were right after the last optimiser step, when
the weights last changed. So resuming always starts before a whole step, and one kind of checkpoint is enough.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from diffusion_forcing.algorithms.parallel import gathered
from diffusion_forcing.checkpoints import LoadedCheckpoint
from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.checkpoints.lightning_io import SAMPLING
from diffusion_forcing.checkpoints.resolve import LATEST
from diffusion_forcing.errors import UserError, did_you_mean
from diffusion_forcing.experiments import loader as randomness
from diffusion_forcing.experiments.options import CheckpointingOptions
from diffusion_forcing.experiments.parallel import whole
from diffusion_forcing.experiments.processes import Interrupted, Interrupts
from diffusion_forcing.files import point_to, remove_leftovers, write_json

# Between an algorithm (any LightningModule) and a checkpoint: what goes in, what comes out, and whether it fits.


def describe(module: LightningModule) -> dict[str, Any]:
    """The facts a checkpoint of `module` carries: its `describe()`, or none for a module that has no such method."""
    found = getattr(module, "describe", None)
    return dict(found()) if callable(found) else {}


def sampling_weights(module: LightningModule) -> dict[str, Tensor]:
    """What one samples with: the module's `sampling_weights()`, or its whole state for one that has no such method."""
    found = getattr(module, "sampling_weights", None)
    return dict(found()) if callable(found) else module.state_dict()


def load_weights(module: LightningModule, checkpoint: LoadedCheckpoint) -> None:
    """Put a checkpoint's weights into `module`: its own `load_weights`, or its state dict for one without that method.

    UserError with the first weight that does not fit.
    """
    own = getattr(module, "load_weights", None)
    if callable(own):
        own(checkpoint)
        return
    check_fits(module, checkpoint.weights, checkpoint.path)
    module.load_state_dict(checkpoint.weights)


def check_fits(module: LightningModule, state: Mapping[str, Tensor], source: object) -> None:
    """UserError with the first weight, in the module's order, that `state` (read from `source`) has not or has in
    another shape."""
    ours = module.state_dict()
    for key in [*ours, *state]:
        needed, given = ours.get(key), state.get(key)
        if needed is None or given is None or needed.shape != given.shape:
            there = "is missing" if given is None else f"has shape {tuple(given.shape)}"
            here = "has no such weight" if needed is None else f"needs {tuple(needed.shape)}"
            raise UserError(
                f"checkpoint {source} does not fit {type(module).__name__}: '{key}' {there}, the algorithm {here}; "
                "use the configuration it was trained with"
            )


def compile_network(module: nn.Module, mode: bool | str) -> None:
    """Compile in place, so that weights keep their names: the module's `network` if it has one, else its `forward`.

    `mode`: True, or the name of one of torch.compile's modes.
    """
    target = getattr(module, "network", module)
    target.compile(mode="default" if mode is True else str(mode))


# Which checkpoints of a run are kept: the newest, the best by a metric, and whatever a user put beside them.

_SCORES = "scores.json"
_STANDARD_NAME = re.compile(r"step-\d{8,}(-v\d+)?")


def best_of(folder: Path, mode: str) -> Path | None:
    """The checkpoint in `folder` with the best score by the monitored metric; None where none has one."""
    try:
        scores = json.loads((folder / _SCORES).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    here = {name: score for name, score in scores.items() if native.is_checkpoint(folder / name)}
    if not here:
        return None
    return folder / (min if mode == "min" else max)(here, key=lambda name: here[name])


class Retention:
    """Looks after the folder of a run's checkpoints. Something is removed only once a newer one is whole on the disk."""

    def __init__(self, options: CheckpointingOptions, folder: Path) -> None:
        self.written: set[str] = set()
        """Names of the checkpoints this run wrote, in earlier sessions too."""
        self._options = options
        self._folder = folder
        self._newest: Path | None = None

    def add(self, path: Path) -> None:
        """`path` was written whole: `latest` points to it, and what it pushes out is removed."""
        self._newest = path
        self._point_to(path)
        self._remove_old()

    def score(self, path: Path, value: float) -> None:
        """The checkpoint `path` has `value` in the monitored metric; what it pushes out is removed."""
        self._write_scores(self._scores() | {path.name: value})
        self._remove_old()

    def is_among_best(self, value: float) -> bool:
        """Whether a checkpoint with `value` would be kept as one of the best `save_top_k`."""
        if not math.isfinite(value):
            return False
        k, scores = self._options.save_top_k, list(self._scores().values())
        if k == -1 or len(scores) < k:
            return True
        better = sum(score <= value if self._options.mode == "min" else score >= value for score in scores)
        return better < k

    def _point_to(self, path: Path) -> None:
        """Make `latest` a link to `path` in one step. Where links cannot be made the newest is found by its step."""
        with contextlib.suppress(OSError):
            point_to(self._folder / LATEST, path)

    def _remove_old(self) -> None:
        options = self._options
        if options.save_top_k == -1:
            return
        here = [path for path in self._folder.iterdir() if self._is_ours(path) and native.is_checkpoint(path)]
        here.sort(key=lambda path: (path == self._newest, (path / native.FACTS).stat().st_mtime_ns))
        newest = options.keep_last if options.monitor else max(options.keep_last, options.save_top_k)
        scores = self._scores()
        best = sorted(scores, key=lambda name: scores[name], reverse=options.mode == "max")[: options.save_top_k]
        for path in here[:-newest]:
            if path.name not in best:
                shutil.rmtree(path, ignore_errors=True)
        left = self._scores()
        if left != scores:
            self._write_scores(left)

    def _is_ours(self, path: Path) -> bool:
        """Whether this run wrote it; a checkpoint that a user put there is not ours to remove."""
        return not path.is_symlink() and (path.name in self.written or _STANDARD_NAME.fullmatch(path.name) is not None)

    def _scores(self) -> dict[str, float]:
        """The scores of the checkpoints that are here."""
        try:
            scores = json.loads((self._folder / _SCORES).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return {name: score for name, score in scores.items() if (self._folder / name).is_dir()}

    def _write_scores(self, scores: dict[str, float]) -> None:
        file = self._folder / _SCORES
        try:
            write_json(file, scores)
        except OSError as error:
            raise UserError(f"cannot write {file}: {error.strerror or error}; make room there") from error


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
        remove_leftovers(self.folder)
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

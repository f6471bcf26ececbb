"""What every experiment does: its public methods without arguments are tasks, and training, validation and test run on
Lightning.

Built from finished parts (`dataset`, `algorithm`, `run`) and plain values; nothing is read, moved or seeded before a
task runs. A user's experiment subclasses this and adds methods; `experiment.tasks=[training,my_task]` runs them in
order.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from diffusion_forcing.checkpoints import LoadedCheckpoint, latest
from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.checkpoints.lightning_io import SafetensorsCheckpointIO
from diffusion_forcing.errors import UserError, did_you_mean
from diffusion_forcing.experiments import randomness
from diffusion_forcing.experiments.callbacks import FiniteGuard, Metrics, RunLogger, ValidationRandomness
from diffusion_forcing.experiments.interrupts import Interrupted
from diffusion_forcing.experiments.loader import BatchLoader, ResumableLoader
from diffusion_forcing.experiments.options import (
    ExperimentOptions,
    TestOptions,
    TrainingOptions,
    ValidationOptions,
    precision,
)
from diffusion_forcing.experiments.progress import ProgressBar
from diffusion_forcing.experiments.saving import Checkpoints

_QUIET = (  # remarks of Lightning's that say nothing to a user of ours
    ".*does not have many workers.*",
    ".*`isinstance.treespec, LeafSpec.`.*",
    ".*You passed in a `val_dataloader` but have no.*",
)


class BaseExperiment:
    """Tasks training, validation and test for any LightningModule. Subclasses add tasks, callbacks and options."""

    Options: type[ExperimentOptions] = ExperimentOptions

    def __init__(
        self,
        options: ExperimentOptions,
        *,
        dataset: Any,
        algorithm: LightningModule,
        run: Any,
        seed: int = 0,
        debug: bool = False,
        load: Path | None = None,
        resume: Path | None = None,
    ) -> None:
        """`dataset`: `.training()` and `.validation()` (also `.test()`, `.prepare(progress)` where it has them) give
        map-style datasets.

        `run`: where results go (`tracking.Run` or `NullRun`). `load`: a checkpoint to take weights from. `resume`: a
        run's folder or one of its checkpoints, to go on with; `run` is then that run. `debug`: stop at the operation
        that makes a NaN, with Lightning's trace.
        """
        self.options = options
        self.dataset = dataset
        self.algorithm = algorithm
        self.run = run
        self.seed = seed
        self.debug = debug
        self.load = load
        self.resume = resume
        self.step = 0
        """Optimiser steps behind the weights that are in the algorithm."""
        self._data_ready = False
        self._weights_ready = False

    # Tasks

    def training(self) -> None:
        """Train until max_steps, max_epochs or max_time; with `resume`, as if the run had never stopped."""
        options = self.options.training
        resumed = self._checkpoint_to_resume()
        self._prepare(weights=resumed is None)
        if options.compile:
            _compile(self.algorithm, options.compile)
        batches = _Data(self)
        trainer, checkpoints = self._trainer_for_training(options, batches)
        if resumed is not None:
            step = int(native.read_header(resumed)["step"])
            _rewind(self.run.folder / "metrics.jsonl", step)
            checkpoints.last = resumed if resumed.parent == checkpoints.folder else None
            self._say(f"resuming run {self.run.id} at step {step}")
        try:
            trainer.fit(self.algorithm, datamodule=batches, ckpt_path=resumed)
        except Interrupted:
            self.run.finish("interrupted")
            kept = f"saved {checkpoints.last}; " if checkpoints.last else ""
            self._say(f"interrupted at step {trainer.global_step}; {kept}go on with resume={self.run.id}")
            raise
        self.step = trainer.global_step
        if checkpoints.last is not None:
            self._say(f"trained to step {self.step}; checkpoint {checkpoints.last}")

    def validation(self) -> None:
        """Run `validation_step` over `dataset.validation()` with the weights that were trained, loaded or resumed."""
        self._evaluate("validation", self.options.validation)

    def test(self) -> None:
        """Run `test_step` over `dataset.test()`, or over `dataset.validation()` for a dataset without one."""
        self._evaluate("test", self.options.test)

    # For subclasses

    def run_task(self, name: str) -> None:
        """Run the task `name`: a public method without arguments. UserError with the list for another name."""
        tasks = task_names(type(self))
        if name not in tasks:
            raise UserError(
                f"experiment.tasks: {type(self).__name__} has no task '{name}'{did_you_mean(name, tasks)}; "
                f"it has {', '.join(tasks)}"
            )
        randomness.seed_all(self.seed)
        getattr(self, name)()

    def _callbacks(self) -> list[Callback]:
        """More Lightning callbacks for training; a subclass's own."""
        return []

    def _prepare(self, *, weights: bool = True, data: bool = True) -> None:
        """Make sure the data is there, and put the weights of `load` or `resume` into the algorithm; each once."""
        if data and not self._data_ready:
            if hasattr(self.dataset, "prepare"):
                self.dataset.prepare()
            self._data_ready = True
        source = self.load if self.resume is None else self._checkpoint_to_resume()
        if weights and source is not None and not self._weights_ready:
            loaded = native.load(source)
            load_weights(self.algorithm, loaded)
            self.step = loaded.step
            self._say(f"loaded {source} (step {loaded.step})")
        # weights that were trained, or skipped for a resume that brings its own, are not to be loaded over later
        self._weights_ready = True

    def _say(self, text: str) -> None:
        """One line to the person at the terminal."""
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:
            print(text, file=sys.stderr, flush=True)

    # How

    def _checkpoint_to_resume(self) -> Path | None:
        if self.resume is None or native.is_checkpoint(self.resume):
            return self.resume
        found = latest(self.resume) if self.resume.is_dir() else None
        if found is None:
            raise UserError(f"cannot resume {self.resume}: it has no checkpoint; start a new run (leave resume= out)")
        return found

    def _trainer_for_training(self, options: TrainingOptions, batches: _Data) -> tuple[Trainer, Checkpoints]:
        every = options.log_every_n_steps
        logger = RunLogger(self.run)

        def before_save() -> None:
            guard.check()
            logger.flush()

        checkpoints = Checkpoints(
            options.checkpointing,
            folder=self.run.checkpoints,
            before_save=before_save,
            time_limit=options.time_limit.total_seconds() if options.time_limit else None,
            say=self._say,
        )
        guard = FiniteGuard(
            indices=lambda: batches.training_loader.indices,
            advice=lambda: (
                f"the last good checkpoint is {checkpoints.last}"
                if checkpoints.last
                else "there is no checkpoint yet; try a lower learning rate (experiment.training.lr)"
            ),
            every_n_steps=every,
        )
        metrics = Metrics(logger, guard, every_n_steps=every)
        validation = self.options.validation
        accumulated = options.optim.accumulate_grad_batches
        by_step, by_epoch = validation.val_every_n_step, validation.val_every_n_epoch
        trainer = self._trainer(
            options.precision,
            logger=logger,
            callbacks=[
                ValidationRandomness(self.seed),
                guard,
                metrics,
                *self._callbacks(),
                checkpoints,
                ProgressBar(lambda: metrics.last_loss),
            ],
            max_epochs=-1 if options.max_epochs is None else options.max_epochs,
            max_steps=options.max_steps,
            accumulate_grad_batches=accumulated,
            gradient_clip_val=options.optim.gradient_clip_val or None,
            log_every_n_steps=every,
            val_check_interval=by_step * accumulated if by_step else 1.0,
            check_val_every_n_epoch=None if by_step else by_epoch or 1,
            limit_val_batches=_limit(validation.limit_batch) if by_step or by_epoch else 0,
        )
        return trainer, checkpoints

    def _evaluate(self, task: str, options: ValidationOptions | TestOptions) -> None:
        self._prepare()
        if options.compile:
            _compile(self.algorithm, options.compile)
        if not self.step:
            self._say(f"{task}: the weights are not trained (no load=, no resume=, no training before)")
        logger = RunLogger(self.run)
        logger.at(self.step)
        limit = _limit(options.limit_batch)
        trainer = self._trainer(
            options.precision,
            logger=logger,
            callbacks=self._callbacks(),
            inference_mode=options.inference_mode,
            limit_val_batches=limit,
            limit_test_batches=limit,
        )
        evaluate = trainer.validate if task == "validation" else trainer.test
        evaluate(self.algorithm, datamodule=_Data(self), verbose=False)
        logger.flush()

    def _trainer(self, precision_option: str | int, **settings: Any) -> Trainer:
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        for message in _QUIET:
            warnings.filterwarnings("ignore", message)
        gpus = torch.cuda.device_count()
        wanted = precision("precision", precision_option)
        if gpus == 0 and wanted == "16-mixed":
            wanted = "32-true"
            self._say_once("precision 16-mixed needs a CUDA GPU; using 32-true")
        return Trainer(
            accelerator="auto",
            strategy="ddp" if gpus > 1 or self.options.num_nodes > 1 else "auto",
            devices="auto",
            num_nodes=self.options.num_nodes,
            precision=wanted,  # type: ignore[arg-type]
            default_root_dir=self.run.folder,
            plugins=[SafetensorsCheckpointIO()],
            detect_anomaly=self.debug,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            **settings,
        )

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._say(text)

    _said: set[str] = set()


class _Data(LightningDataModule):
    """The experiment's dataset as loaders, made when Lightning asks, once it knows the number of processes."""

    training_loader: ResumableLoader

    def __init__(self, experiment: BaseExperiment) -> None:
        super().__init__()
        self._experiment = experiment

    def train_dataloader(self) -> ResumableLoader:
        options = self._experiment.options.training
        self.training_loader = ResumableLoader(
            self._experiment.dataset.training(),
            batch_size=options.batch_size,
            shuffle=options.data.shuffle,
            num_workers=options.data.num_workers,
            drop_last=options.data.shuffle,
            **self._shared(),
        )
        return self.training_loader

    def val_dataloader(self) -> BatchLoader:
        return self._evaluation(self._experiment.dataset.validation(), self._experiment.options.validation)

    def test_dataloader(self) -> BatchLoader:
        dataset = self._experiment.dataset
        data = dataset.test() if hasattr(dataset, "test") else dataset.validation()
        return self._evaluation(data, self._experiment.options.test)

    def _evaluation(self, data: Any, options: ValidationOptions | TestOptions) -> BatchLoader:
        return BatchLoader(
            data,
            batch_size=options.batch_size,
            shuffle=options.data.shuffle,
            num_workers=options.data.num_workers,
            **self._shared(),
        )

    def _shared(self) -> dict[str, Any]:
        trainer = self.trainer
        assert trainer is not None
        return {
            "seed": self._experiment.seed,
            "rank": trainer.global_rank,
            "world_size": trainer.world_size,
            "pin_memory": trainer.strategy.root_device.type == "cuda",
        }


def task_names(experiment: type) -> list[str]:
    """The tasks of an experiment class: its public methods that need no argument, in alphabetical order."""
    found = []
    for name, member in inspect.getmembers(experiment, inspect.isfunction):
        parameters = list(inspect.signature(member).parameters.values())[1:]
        free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        if not name.startswith("_") and all(p.default is not p.empty or p.kind in free for p in parameters):
            found.append(name)
    return found


def load_weights(algorithm: LightningModule, checkpoint: LoadedCheckpoint) -> None:
    """Put a checkpoint's weights into `algorithm`: its own `load_weights`, or its state dict for a module without that
    method."""
    own = getattr(algorithm, "load_weights", None)
    if callable(own):
        own(checkpoint)
        return
    state = algorithm.state_dict()
    for key in [*state, *checkpoint.weights]:
        ours, theirs = state.get(key), checkpoint.weights.get(key)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            there = "is missing" if theirs is None else f"has shape {tuple(theirs.shape)}"
            here = "has no such weight" if ours is None else f"needs {tuple(ours.shape)}"
            raise UserError(
                f"checkpoint {checkpoint.path} does not fit {type(algorithm).__name__}: '{key}' {there}, the algorithm {here}; "
                "use the configuration it was trained with"
            )
    algorithm.load_state_dict(checkpoint.weights)


def _compile(algorithm: LightningModule, mode: bool | str) -> None:
    """Compile in place, so that the names of the weights stay: the module's `network` if it has one, else its
    `forward`."""
    target = getattr(algorithm, "network", algorithm)
    target.compile(mode="default" if mode is True else str(mode))


def _limit(batches: int | float | None) -> int | float:
    return 1.0 if batches is None else batches


def _rewind(log: Path, step: int) -> None:
    """Cut off the lines of metrics.jsonl that a killed session wrote after `step`; they will be written again."""
    if not log.exists():
        return
    end = 0
    for line in log.read_bytes().splitlines(keepends=True):
        try:
            later = json.loads(line).get("step", 0) > step
        except (ValueError, AttributeError):
            break  # a line cut short by the kill
        if later:
            break
        end += len(line)
    if end < log.stat().st_size:
        os.truncate(log, end)

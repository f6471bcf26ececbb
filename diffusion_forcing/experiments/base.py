"""What every experiment has: tasks, which are its public methods without arguments. Lightning runs the three here.

A user's experiment subclasses `BaseExperiment` and adds methods; `experiment.tasks=[training,my_task]` runs them in
order.
"""

from __future__ import annotations

import copy
import inspect
import logging
import signal
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.checkpoints import latest
from diffusion_forcing.errors import UserError, check_choice, first_line
from diffusion_forcing.experiments import devices
from diffusion_forcing.experiments.callbacks import (
    FiniteGuard,
    Metrics,
    RunLogger,
    TrainingProgress,
    ValidationRandomness,
)
from diffusion_forcing.experiments.checkpointing import (
    Checkpoints,
    SafetensorsCheckpointIO,
    check_fits,
    compile_network,
    load_weights,
)
from diffusion_forcing.experiments.devices import TruePrecision, matmul_precision
from diffusion_forcing.experiments.loader import BatchLoader, ResumableLoader, seed_all
from diffusion_forcing.experiments.options import ExperimentOptions, TestOptions, TrainingOptions, precision_name
from diffusion_forcing.experiments.processes import Interrupted, is_main_process
from diffusion_forcing.terminal import forgiving_output, tell


class BaseExperiment:
    """Tasks training, validation and test for any LightningModule. Subclasses add tasks, callbacks and options.

    Made of finished parts and plain values; nothing is read, moved or seeded before a task runs.
    """

    Options: type[ExperimentOptions] = ExperimentOptions
    shared_tasks: frozenset[str] = frozenset({"training", "distill", "validation", "test"})
    """Tasks that all processes share. The main process runs the others alone; the rest wait at the next shared one."""

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
        """`dataset`: has `.training()` and `.validation()`, perhaps `.test()` and `.prepare()`; map-style datasets.

        `run`: where results go (`tracking.Run` or `NullRun`). `load`: a checkpoint to take weights from. `resume`: a
        run's folder, or one of its checkpoints, to continue; `run` is then that run. `debug`: see `debug.py`. An
        algorithm that has an attribute `seed` gets this one.
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
        """Optimiser steps of the weights in the algorithm."""
        self.rehearsing = False
        """True in the pass over one batch of debug=True, whose run is thrown away."""
        self._data_ready = False
        self._weights_ready = False
        self._printed: set[str] = set()

    def training(self) -> None:
        """Train until max_steps, max_epochs or max_time; with `resume`, as if the run had never stopped."""
        resumed = self._checkpoint_to_resume()
        self._prepare(weights=resumed is None)
        if self.options.training.compile:
            compile_network(self.algorithm, self.options.training.compile)
        if hasattr(self.algorithm, "seed"):
            self.algorithm.seed = self.seed  # type: ignore[assignment]
        # Sharding cannot be undone: the trained weights go into a copy that never was sharded.
        unsharded = copy.deepcopy(self.algorithm) if self.options.training.strategy == "fsdp" else None
        parts = for_training(
            self.options,
            dataset=self.dataset,
            run=self.run,
            seed=self.seed,
            debug=self.debug,
            more_callbacks=[*self._callbacks(), *self._debug_callbacks()],
            say=self._say_once,
        )
        # Where to start.
        first = 0
        if resumed is not None:
            state = parts.storage.preload(resumed)
            check_fits(self.algorithm, state["state_dict"], resumed)
            parts.checkpoints.last = resumed
            first = int(state["global_step"])
            self._say(f"resuming run {self.run.id} at step {first}")
        # Train.
        try:
            parts.trainer.fit(self.algorithm, datamodule=parts.loaders, ckpt_path=resumed)
        except Interrupted:
            self.run.finish("interrupted")
            self._say(self._how_to_resume(parts.trainer.global_step, parts.checkpoints.last))
            raise
        except BaseException as failure:
            if not getattr(failure, "everywhere", False):
                end_further_processes(parts.trainer)
            if resumed is None or not _while_restoring(failure):
                raise
            raise UserError(
                f"cannot resume from {resumed}: its state cannot be restored ({type(failure).__name__}: {first_line(failure)}); resume "
                "with the configuration and versions it was trained with, or start a new run from its weights with load="
            ) from failure
        finally:
            parts.loaders.close()
        # What was trained.
        self.step = parts.trainer.global_step
        if unsharded is not None:
            last = Path(parts.trainer.strategy.broadcast(str(parts.checkpoints.last)))
            unsharded.load_state_dict(parts.storage.preload(last)["state_dict"])
            self.algorithm = unsharded
        if resumed is not None and self.step == first:
            self._say(
                f"nothing left to train: the run has taken {self.step} steps; raise experiment.training.max_steps to go on"
            )
        else:
            self._say(f"trained to step {self.step}; checkpoint {parts.checkpoints.last}")

    def distill(self) -> None:
        """Train a student that samples in `distillation.steps` steps; its teacher, from which it starts, is the checkpoint of `load`."""
        if self.load is None and self.resume is None and not self.step:
            raise UserError(
                "experiment.tasks=[distill] needs a teacher; pass load=CHECKPOINT, or train it first (tasks=[training,distill])"
            )
        distill: Any = getattr(self.algorithm, "distill", None)
        if distill is None:
            raise UserError(f"{type(self.algorithm).__name__} cannot be distilled; choose an algorithm of this package")
        if self.options.training.strategy == "fsdp":
            raise UserError("experiment.tasks=[distill] keeps its teacher whole; pass experiment.training.strategy=ddp")
        self._prepare()
        options = self.options.distillation
        distill(grid=options.grid, steps=options.steps)
        self.training()

    def validation(self) -> None:
        """Run `validation_step` over `dataset.validation()` with the weights that were trained, loaded or resumed."""
        self._evaluate("validation", self.options.validation)

    def test(self) -> None:
        """Run `test_step` over `dataset.test()`, or over `dataset.validation()` for a dataset without one."""
        self._evaluate("test", self.options.test)

    @classmethod
    def one_batch(cls, options: ExperimentOptions) -> ExperimentOptions:
        """`options` for a fast pass of every task over one batch. Subclasses shorten their own tasks too."""
        training, validation, test = options.training, options.validation, options.test
        validates = validation.val_every_n_step or validation.val_every_n_epoch
        return replace(
            options,
            training=replace(
                training,
                max_steps=1,
                compile=False,
                log_every_n_steps=1,
                optim=replace(training.optim, accumulate_grad_batches=1),
            ),
            validation=replace(
                validation,
                compile=False,
                limit_batch=1,
                val_every_n_step=1 if validates else None,
                val_every_n_epoch=None,
            ),
            test=replace(test, compile=False, limit_batch=1),
        )

    def run_task(self, name: str) -> None:
        """Run the task `name`: a public method without arguments. UserError with the list for another name.

        Every task starts with the random state of the run's seed, so its numbers do not depend on the tasks before it.
        """
        tasks = task_names(type(self))
        check_choice("experiment.tasks", name, tasks)
        if not is_main_process() and name not in self.shared_tasks:
            return
        seed_all(self.seed)
        with forgiving_output(), matmul_precision(self.options.matmul_precision):
            getattr(self, name)()

    def _callbacks(self) -> list[Callback]:
        """Lightning callbacks of a subclass."""
        return []

    def _debug_callbacks(self) -> list[Callback]:
        """Lightning callbacks that debug=True adds to training."""
        if not self.debug:
            return []
        from diffusion_forcing.experiments.debug import FiniteLayers, Histograms

        if self.rehearsing:
            return [FiniteLayers()]
        if self.options.training.strategy == "fsdp":
            self._say("debug=True: no histograms with experiment.training.strategy=fsdp, which splits weights; use ddp")
            return [FiniteLayers()]
        return [FiniteLayers(), Histograms(self.run.folder)]

    def _prepare(self, *, weights: bool = True, data: bool = True) -> None:
        """Make sure the data is there, and load the weights of `load` or `resume` into the algorithm; each once."""
        if data and not self._data_ready:
            if hasattr(self.dataset, "prepare"):
                self.dataset.prepare()
            self._data_ready = True
        # Trained weights must not be replaced later, nor those that a resumed training brings.
        needed, self._weights_ready = weights and not self._weights_ready, True
        source = (self.load if self.resume is None else self._checkpoint_to_resume()) if needed else None
        if source is None:
            return
        loaded = native.load(source)
        load_weights(self.algorithm, loaded)
        self.step = loaded.step
        self._say(f"loaded {source} (step {loaded.step})")
        carry = getattr(self.algorithm, "carry_optimizer", None)
        if loaded.optimizer is not None and "training" in self.options.tasks and callable(carry):
            continued = carry(loaded)
            self._say(
                "its optimiser state is used too" if continued else "its optimiser state does not match: left out"
            )

    def _say(self, text: str) -> None:
        """Print one line on stderr, in the main process only; nothing in a rehearsal."""
        if is_main_process() and not self.rehearsing:
            tell(text)

    def _say_once(self, text: str) -> None:
        """`_say`, unless the same line was printed before."""
        if text not in self._printed:
            self._printed.add(text)
            self._say(text)

    def _note_untrained(self, task: str) -> None:
        if not self.step:
            self._say(f"{task}: the weights are not trained (no load=, no resume=, no training before)")

    def _evaluate(self, task: str, options: TestOptions) -> None:
        self._prepare()
        if options.compile:
            compile_network(self.algorithm, options.compile)
        self._note_untrained(task)
        loaders = Loaders(self.options, self.dataset, seed=self.seed)
        evaluation = for_evaluation(
            options,
            options=self.options,
            loaders=loaders,
            run=self.run,
            step=self.step,
            debug=self.debug,
            more_callbacks=self._callbacks(),
            say=self._say_once,
        )
        evaluate = evaluation.validate if task == "validation" else evaluation.test
        try:
            evaluate(self.algorithm, datamodule=loaders, verbose=False)
        finally:
            loaders.close()
        self.run.summary({key: float(value) for key, value in evaluation.callback_metrics.items()})

    def _checkpoint_to_resume(self) -> Path | None:
        if self.resume is None or native.is_checkpoint(self.resume):
            return self.resume
        found = latest(self.resume) if self.resume.is_dir() else None
        if found is None:
            raise UserError(f"cannot resume {self.resume}: it has no checkpoint; start a new run (leave resume= out)")
        return found

    def _how_to_resume(self, step: int, last: Path | None) -> str:
        if last is None:
            return f"interrupted at step {step}, before anything could be saved; start again without resume="
        by_default = (Path.cwd() / "outputs").resolve() in self.run.folder.resolve().parents
        run = self.run.id if by_default else self.run.folder
        return f"interrupted at step {step}; saved {last}; go on with resume={run}"


def end_further_processes(ended: Trainer) -> None:
    """Kill the processes that Lightning started for `ended`: they wait for this one in vain."""
    launcher = ended.strategy.launcher
    kill = getattr(launcher, "kill", None)
    if callable(kill):
        kill(signal.SIGKILL)  # nothing less reaches a process that waits for another


def _while_restoring(error: BaseException) -> bool:
    """Whether `error` was raised while Lightning restored a checkpoint, not in training."""
    if not isinstance(error, (LookupError, TypeError, ValueError, AttributeError, RuntimeError)):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return any(Path(frame.filename).name == "checkpoint_connector.py" for frame in frames)


def task_names(experiment: type) -> list[str]:
    """The tasks of an experiment class: its public methods that need no argument, in alphabetical order."""
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = []
    for name, member in inspect.getmembers(experiment, inspect.isfunction):
        parameters = list(inspect.signature(member).parameters.values())[1:]
        if not name.startswith("_") and all(p.default is not p.empty or p.kind in free for p in parameters):
            found.append(name)
    return found


# ---------------------------------------------------------------------------------- Lightning's Trainer from the options

_SILENCED = (  # Lightning's remarks about what is meant to be so
    ".*does not have many workers.*",
    ".*`isinstance.treespec, LeafSpec.`.*",
    ".*You passed in a `val_dataloader` but have no.*",
    ".*The number of training batches .* is smaller than the logging interval.*",
    ".*The `srun` command is available on your system.*",
)
_ONLY_CUDA = ("16-mixed", "16-true")


class Loaders(LightningDataModule):
    """A dataset as loaders, made when Lightning asks for them, once it knows the number of processes."""

    def __init__(self, options: ExperimentOptions, dataset: Any, *, seed: int) -> None:
        super().__init__()
        self.training: BatchLoader | None = None
        self.evaluation: BatchLoader | None = None
        self._made: list[BatchLoader] = []
        self._options = options
        self._dataset = dataset
        self._seed = seed

    @property
    def indices(self) -> list[int]:
        """Dataset indices of the newest training batch."""
        return [] if self.training is None else self.training.indices

    def train_dataloader(self) -> BatchLoader:
        options = self._options.training
        more = {"drop_last": options.data.shuffle, "even": True}
        self.training = self._loader(ResumableLoader, self._dataset.training(), options, **more)
        return self.training

    def val_dataloader(self) -> BatchLoader:
        self.evaluation = self._loader(BatchLoader, self._dataset.validation(), self._options.validation)
        return self.evaluation

    def test_dataloader(self) -> BatchLoader:
        data = self._dataset.test() if hasattr(self._dataset, "test") else self._dataset.validation()
        self.evaluation = self._loader(BatchLoader, data, self._options.test)
        return self.evaluation

    def close(self) -> None:
        """End the loaders' worker processes."""
        for loader in self._made:
            loader.close()

    def _loader(
        self, kind: type[BatchLoader], data: Any, options: TrainingOptions | TestOptions, **more: Any
    ) -> BatchLoader:
        assert self.trainer is not None
        loader = kind(
            data,
            batch_size=options.batch_size,
            shuffle=options.data.shuffle,
            num_workers=options.data.num_workers,
            seed=self._seed,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
            **more,
        )
        self._made.append(loader)
        return loader


class Shares(Callback):
    """Sets `share` of an algorithm that has it: which rows of each batch are in this process, None for all."""

    def __init__(self, loaders: Loaders) -> None:
        self._loaders = loaders

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        self._set(pl_module, self._loaders.training)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        self._set(pl_module, self._loaders.evaluation)

    def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        self._set(pl_module, self._loaders.evaluation)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._set(pl_module, None)

    def _set(self, pl_module: Any, loader: BatchLoader | None) -> None:
        if hasattr(pl_module, "share"):
            pl_module.share = None if loader is None else loader.share


@dataclass(frozen=True, kw_only=True)
class TrainingParts:
    """What one training works with."""

    trainer: Trainer
    checkpoints: Checkpoints
    loaders: Loaders
    storage: SafetensorsCheckpointIO


def for_training(
    options: ExperimentOptions,
    *,
    dataset: Any,
    run: Any,
    seed: int,
    debug: bool,
    more_callbacks: list[Callback],
    say: Callable[[str], None],
) -> TrainingParts:
    """A trainer that logs to `run`, saves in its folder, stops at a loss that is not finite, and resumes exactly."""
    training, validation = options.training, options.validation
    every, accumulated = training.log_every_n_steps, training.optim.accumulate_grad_batches
    loaders, logger, storage = Loaders(options, dataset, seed=seed), RunLogger(run), SafetensorsCheckpointIO()
    guard = FiniteGuard(indices=lambda: loaders.indices, last_checkpoint=lambda: checkpoints.last, every_n_steps=every)

    def before_save() -> None:
        guard.check()
        logger.flush()

    checkpoints = Checkpoints(
        training.checkpointing,
        folder=run.checkpoints,
        before_save=before_save,
        time_limit=None if training.time_limit is None else training.time_limit.total_seconds(),
        say=say,
    )
    metrics = Metrics(logger, guard, every_n_steps=every, log=run.folder / "metrics.jsonl")
    by_step, by_epoch = validation.val_every_n_step, validation.val_every_n_epoch
    trainer = _trainer(
        training.precision,
        options=options,
        run=run,
        say=say,
        plugins=[storage],
        logger=logger,
        callbacks=[
            Shares(loaders),
            devices.UnshardedValidation(),
            ValidationRandomness(seed),
            guard,
            metrics,
            *more_callbacks,
            checkpoints,
            TrainingProgress(lambda: metrics.last_loss),
        ],
        detect_anomaly=debug,
        max_epochs=-1 if training.max_epochs is None else training.max_epochs,
        max_steps=training.max_steps,
        accumulate_grad_batches=accumulated,
        gradient_clip_val=training.optim.gradient_clip_val or None,
        log_every_n_steps=every,
        # Lightning counts batches, our option optimiser steps
        val_check_interval=by_step * accumulated if by_step else 1.0,
        check_val_every_n_epoch=None if by_step else by_epoch or 1,
        limit_val_batches=_limit(validation.limit_batch) if by_step or by_epoch else 0,
    )
    return TrainingParts(trainer=trainer, checkpoints=checkpoints, loaders=loaders, storage=storage)


def for_evaluation(
    task: TestOptions,
    *,
    options: ExperimentOptions,
    loaders: Loaders,
    run: Any,
    step: int,
    debug: bool,
    more_callbacks: list[Callback],
    say: Callable[[str], None],
) -> Trainer:
    """A trainer for one pass of `task` over `loaders`, whose metrics are logged to `run` at `step`."""
    logger = RunLogger(run)
    logger.at(step)
    return _trainer(
        task.precision,
        options=options,
        run=run,
        say=say,
        plugins=[],
        evaluating=True,
        logger=logger,
        callbacks=[Shares(loaders), *more_callbacks],
        detect_anomaly=debug,
        inference_mode=task.inference_mode,
        limit_val_batches=_limit(task.limit_batch),
        limit_test_batches=_limit(task.limit_batch),
    )


def _trainer(
    precision: str | int,
    *,
    options: ExperimentOptions,
    run: Any,
    say: Callable[[str], None],
    plugins: list[Any],
    evaluating: bool = False,
    **settings: Any,
) -> Trainer:
    for logger in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    for message in _SILENCED:
        warnings.filterwarnings("ignore", message)
    name: Any = precision_name("training", precision)
    if name in _ONLY_CUDA and not torch.cuda.device_count():
        say(f"precision {name} needs a CUDA GPU; using 32-true")
        name = "32-true"
    if name in ("64-true", "16-true", "bf16-true"):
        plugins, name = [*plugins, TruePrecision(name)], None
    processes = devices.trainer_options(options, evaluating=evaluating)
    if (count := processes["devices"] * processes["num_nodes"]) > 1:
        kind = "ddp" if evaluating else options.training.strategy.replace("auto", "ddp")
        say(f"{count} processes share each batch ({kind})")
    return Trainer(
        **processes | {"plugins": [*plugins, *processes["plugins"]]},
        precision=name,
        default_root_dir=run.folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **settings,
    )


def _limit(batches: int | float | None) -> int | float:
    return 1.0 if batches is None else batches

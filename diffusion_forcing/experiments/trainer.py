"""Lightning's Trainer, set up from an experiment's options: quiet, with our loaders, callbacks and checkpoints."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from diffusion_forcing.experiments import devices
from diffusion_forcing.experiments.callbacks import (
    FiniteGuard,
    Metrics,
    RunLogger,
    TrainingProgress,
    ValidationRandomness,
)
from diffusion_forcing.experiments.checkpointing import Checkpoints, SafetensorsCheckpointIO
from diffusion_forcing.experiments.devices import TruePrecision
from diffusion_forcing.experiments.loader import BatchLoader, ResumableLoader
from diffusion_forcing.experiments.options import ExperimentOptions, TestOptions, TrainingOptions, precision_name

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

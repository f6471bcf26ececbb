"""Lightning's Trainer set up from an experiment's options: silent, without folders or formats of its own, quick to
start.
"""

from __future__ import annotations

import contextlib
import logging
import resource
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from diffusion_forcing.checkpoints.lightning_io import SafetensorsCheckpointIO
from diffusion_forcing.experiments import parallel as strategies
from diffusion_forcing.experiments.callbacks import FiniteGuard, Metrics, ProgressBar, RunLogger, ValidationRandomness
from diffusion_forcing.experiments.checkpointing import Checkpoints
from diffusion_forcing.experiments.loader import BatchLoader, ResumableLoader
from diffusion_forcing.experiments.options import ExperimentOptions, TestOptions, ValidationOptions, precision
from diffusion_forcing.experiments.parallel import Together

# Where a task outside Lightning's loops computes, and in what precision.

_AUTOCAST = {
    "16-mixed": torch.float16,
    "16-true": torch.float16,
    "bf16-mixed": torch.bfloat16,
    "bf16-true": torch.bfloat16,
}
MEGABYTE = 2**20


def device() -> torch.device:
    """The accelerator there is, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@contextlib.contextmanager
def computing(task: str, value: str | int, where: torch.device) -> Iterator[None]:
    """Networks in the block compute as experiment.<task>.precision=`value` says; 16 bits are 32 where there is no GPU."""
    dtype = _AUTOCAST.get(precision(task, value))
    if dtype is None or (dtype == torch.float16 and where.type != "cuda"):
        yield
        return
    with torch.autocast(where.type, dtype=dtype):
        yield


def peak_memory(where: torch.device) -> float:
    """Most memory held so far, in megabytes: by the GPU's tensors, or by this process."""
    if where.type == "cuda":
        return torch.cuda.max_memory_allocated(where) / MEGABYTE
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEGABYTE


_QUIET = (  # remarks of Lightning's that say nothing to a user of ours
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
        self.indices: Callable[[], list[int]] = lambda: []
        """Dataset indices of the training batch handed out last."""
        self.trained_on: BatchLoader | None = None
        self.evaluated_on: BatchLoader | None = None
        self._made: list[BatchLoader] = []
        self._options = options
        self._dataset = dataset
        self._seed = seed

    def train_dataloader(self) -> ResumableLoader:
        options = self._options.training
        loader = ResumableLoader(
            self._dataset.training(),
            batch_size=options.batch_size,
            shuffle=options.data.shuffle,
            num_workers=options.data.num_workers,
            drop_last=options.data.shuffle,
            even=True,
            **self._shared(),
        )
        self.indices = lambda: loader.indices
        self.trained_on = loader
        self._made.append(loader)
        return loader

    def val_dataloader(self) -> BatchLoader:
        return self._evaluation(self._dataset.validation(), self._options.validation)

    def test_dataloader(self) -> BatchLoader:
        has_own = hasattr(self._dataset, "test")
        return self._evaluation(self._dataset.test() if has_own else self._dataset.validation(), self._options.test)

    def _evaluation(self, data: Any, options: ValidationOptions | TestOptions) -> BatchLoader:
        loader = BatchLoader(
            data,
            batch_size=options.batch_size,
            shuffle=options.data.shuffle,
            num_workers=options.data.num_workers,
            **self._shared(),
        )
        self.evaluated_on = loader
        self._made.append(loader)
        return loader

    def close(self) -> None:
        """End the loaders' worker processes."""
        for loader in self._made:
            loader.close()

    def _shared(self) -> dict[str, Any]:
        assert self.trainer is not None
        return {
            "seed": self._seed,
            "rank": self.trainer.global_rank,
            "world_size": self.trainer.world_size,
            "pin_memory": self.trainer.strategy.root_device.type == "cuda",
        }


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
    """A trainer that logs to `run`, saves into its folder, stops at what is not finite, and can be resumed exactly."""
    training, validation = options.training, options.validation
    every, accumulated = training.log_every_n_steps, training.optim.accumulate_grad_batches
    loaders = Loaders(options, dataset, seed=seed)
    logger = RunLogger(run)

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
    guard = FiniteGuard(
        indices=lambda: loaders.indices(),
        advice=lambda: (
            f"the last good checkpoint is {checkpoints.last}"
            if checkpoints.last
            else "there is no checkpoint yet; try a lower learning rate (experiment.training.lr)"
        ),
        every_n_steps=every,
    )
    metrics = Metrics(logger, guard, every_n_steps=every, log=run.folder / "metrics.jsonl")
    by_step, by_epoch = validation.val_every_n_step, validation.val_every_n_epoch
    storage = SafetensorsCheckpointIO()
    trainer = _trainer(
        training.precision,
        options=options,
        run=run,
        say=say,
        plugins=[storage],
        logger=logger,
        callbacks=[
            Shares(loaders),
            Together(),
            ValidationRandomness(seed),
            guard,
            metrics,
            *more_callbacks,
            checkpoints,
            ProgressBar(lambda: metrics.last_loss),
        ],
        detect_anomaly=debug,
        max_epochs=-1 if training.max_epochs is None else training.max_epochs,
        max_steps=training.max_steps,
        accumulate_grad_batches=accumulated,
        gradient_clip_val=training.optim.gradient_clip_val or None,
        log_every_n_steps=every,
        val_check_interval=by_step * accumulated if by_step else 1.0,
        check_val_every_n_epoch=None if by_step else by_epoch or 1,
        limit_val_batches=_limit(validation.limit_batch) if by_step or by_epoch else 0,
    )
    return TrainingParts(trainer=trainer, checkpoints=checkpoints, loaders=loaders, storage=storage)


def for_evaluation(
    task: ValidationOptions | TestOptions,
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
        evaluating=True,
        logger=logger,
        callbacks=[Shares(loaders), *more_callbacks],
        detect_anomaly=debug,
        inference_mode=task.inference_mode,
        limit_val_batches=_limit(task.limit_batch),
        limit_test_batches=_limit(task.limit_batch),
    )


class Shares(Callback):
    """Tells an algorithm with an attribute `share` what of each batch is in this process; None where it is the only one."""

    def __init__(self, loaders: Loaders) -> None:
        self._loaders = loaders

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        self._tell(pl_module, self._loaders.trained_on)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        self._tell(pl_module, self._loaders.evaluated_on)

    def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        self._tell(pl_module, self._loaders.evaluated_on)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._tell(pl_module, None)

    def _tell(self, pl_module: Any, loader: BatchLoader | None) -> None:
        if hasattr(pl_module, "share"):
            pl_module.share = None if loader is None else loader.share


def _trainer(
    precision_option: str | int,
    *,
    options: ExperimentOptions,
    run: Any,
    say: Callable[[str], None],
    evaluating: bool = False,
    plugins: Sequence[Any] = (),
    **settings: Any,
) -> Trainer:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _QUIET:
        warnings.filterwarnings("ignore", message)
    gpus = torch.cuda.device_count()
    wanted = precision("precision", precision_option)
    if gpus == 0 and wanted in _ONLY_CUDA:
        say(f"precision {wanted} needs a CUDA GPU; using 32-true")
        wanted = "32-true"
    processes = strategies.trainer_options(options, evaluating=evaluating)
    if (count := processes["devices"] * processes["num_nodes"]) > 1:
        kind = "ddp" if evaluating else options.training.strategy.replace("auto", "ddp")
        say(f"{count} processes share each batch ({kind})")
    return Trainer(
        **processes | {"plugins": [*plugins, *processes["plugins"]]},
        precision=wanted,  # type: ignore[arg-type]
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

"""The options of an experiment: the keys of `experiment/base.yaml`, their types, defaults and limits."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import timedelta
from typing import ClassVar, Literal

from diffusion_forcing.errors import UserError, check_choice, check_minimum
from diffusion_forcing.options import Count, Natural, NotNegative, check_limits

_PRECISIONS = {
    "16": "16-mixed",
    "bf16": "bf16-mixed",
    "32": "32-true",
    "64": "64-true",
    **{name: name for name in ("16-mixed", "bf16-mixed", "32-true", "64-true", "16-true", "bf16-true")},
}
_FILENAME = re.compile(r"(?!\.)(?:[^{}/\\\0]|\{(?:step|epoch)(?::0?\d{0,2}d?)?\})+")
_CHECKPOINTING = "experiment.training.checkpointing"


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How batches are read."""

    num_workers: Natural | None = None
    """Processes that load batches ahead; null: none for a dataset that makes whole batches, else up to 4."""
    shuffle: bool = True

    def __post_init__(self) -> None:
        check_limits("experiment.data", self)


@dataclass(frozen=True, kw_only=True)
class OptimOptions:
    """How gradients become a step."""

    accumulate_grad_batches: Count = 1
    """Batches whose gradients are averaged before each optimiser step."""
    gradient_clip_val: NotNegative = 0.0
    """Largest gradient norm; 0: not clipped."""

    def __post_init__(self) -> None:
        check_limits("experiment.training.optim", self)


@dataclass(frozen=True, kw_only=True)
class CheckpointingOptions:
    """When checkpoints are written and which are kept; names and meaning as in Lightning's ModelCheckpoint."""

    every_n_train_steps: Natural | None = 5000
    """Optimiser steps between checkpoints; null or 0: none by steps."""
    every_n_epochs: Natural | None = None
    train_time_interval: str | None = None
    """Wall time between checkpoints, `HH:MM:SS` or `DD:HH:MM:SS`."""
    keep_last: Count = 2
    """The newest checkpoints that are always kept."""
    monitor: str | None = None
    """A metric, such as `validation/loss`: its best checkpoints are kept too."""
    mode: Literal["min", "max"] = "min"
    save_top_k: int = 1
    """How many of the best by `monitor` are kept; -1: all checkpoints. Without `monitor` the newest count as the best.
    """
    save_last: bool | str | None = None
    """Accepted for compatibility: `checkpoints/latest` always points to the newest."""
    save_weights_only: bool = False
    """Leave out what resuming needs."""
    save_on_exception: bool = False
    """Also save the last whole step when training fails (never after a loss that is not finite)."""
    save_on_train_epoch_end: bool | None = None
    """Accepted for compatibility: checkpoints are taken at step boundaries, `every_n_epochs` at an epoch's last step.
    """
    filename: str | None = None
    """Folder name of a checkpoint with `{step}` and `{epoch}`, as `"{epoch}-{step}"`; null: `step-00001000`."""
    auto_insert_metric_name: bool = True
    """Write `{step}` in `filename` as `step=1000`."""
    enable_version_counter: bool = False
    """Put `-v1` behind the name of a checkpoint that is there already, instead of replacing it."""
    verbose: bool = False

    def __post_init__(self) -> None:
        check_limits(_CHECKPOINTING, self)
        check_minimum(f"{_CHECKPOINTING}.save_top_k", self.save_top_k, -1)
        _ = self.interval
        if self.filename is not None:
            _check_filename(self.filename)

    @property
    def interval(self) -> timedelta | None:
        """`train_time_interval` as a duration."""
        return duration(f"{_CHECKPOINTING}.train_time_interval", self.train_time_interval)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The task `training`."""

    precision: str | int = "16-mixed"
    """16-mixed, bf16-mixed, 32-true or 64-true (also 16, bf16, 32, 64); 16-true, bf16-true: weights in 16 bits too.
    Without a GPU, 16-mixed and 16-true are 32-true."""
    compile: bool | str = False
    """Compile the network; or the name of a torch.compile mode."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How processes share the work: ddp keeps the model in each, fsdp splits it; auto: ddp if there are several."""
    devices: Count | Literal["auto"] = "auto"
    """Processes on each machine, one per GPU; auto: all GPUs, else one, or as many as Slurm or torchrun started."""
    lr: NotNegative = 1e-3
    batch_size: Count = 16
    """Samples per batch and process."""
    max_epochs: int | None = 1000
    max_steps: int = -1
    """Optimiser steps; -1: no limit."""
    max_time: str | None = None
    """Wall time, `HH:MM:SS` or `DD:HH:MM:SS`, counted over all sessions of the run."""
    log_every_n_steps: Count = 10
    """Steps between lines of metrics.jsonl; its training/loss is the mean since the line before."""
    data: DataOptions = field(default_factory=DataOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    checkpointing: CheckpointingOptions = field(default_factory=CheckpointingOptions)

    def __post_init__(self) -> None:
        precision_name("training", self.precision)
        check_limits("experiment.training", self)
        check_minimum("experiment.training.max_epochs", self.max_epochs, -1)
        check_minimum("experiment.training.max_steps", self.max_steps, -1)
        _ = self.time_limit

    @property
    def time_limit(self) -> timedelta | None:
        """`max_time` as a duration."""
        return duration("experiment.training.max_time", self.max_time)


@dataclass(frozen=True, kw_only=True)
class TestOptions:
    """The task `test`."""

    __test__ = False  # not a pytest class
    task: ClassVar[str] = "test"

    precision: str | int = "16-mixed"
    compile: bool | str = False
    batch_size: Count = 16
    limit_batch: int | float | None = None
    """Batches that are used: a number (int), a share of all (float in [0, 1]), or null for all."""
    inference_mode: bool = True
    """False where sampling needs gradients (guidance)."""
    data: DataOptions = field(default_factory=lambda: DataOptions(shuffle=False))

    def __post_init__(self) -> None:
        precision_name(self.task, self.precision)
        check_limits(f"experiment.{self.task}", self)
        limit = self.limit_batch
        if limit is not None and (limit < 0 or (isinstance(limit, float) and limit > 1)):
            raise UserError(
                f"experiment.{self.task}.limit_batch={limit} is no limit; pass a number of batches (int), a share in "
                "[0, 1] (float), or null for all"
            )


@dataclass(frozen=True, kw_only=True)
class ValidationOptions(TestOptions):
    """The task `validation`, and the validations during training."""

    task: ClassVar[str] = "validation"

    val_every_n_step: Count | None = 2000
    """Validate during training every so many optimiser steps; null: not by steps."""
    val_every_n_epoch: Count | None = None
    """Validate during training every so many epochs; null: not by epochs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.val_every_n_step is not None and self.val_every_n_epoch is not None:
            raise UserError(
                f"experiment.validation.val_every_n_step={self.val_every_n_step} and "
                f"val_every_n_epoch={self.val_every_n_epoch} are both set; set one of them to null"
            )


@dataclass(frozen=True, kw_only=True)
class DistillationOptions:
    """The task `distill`; everything else about it is training's."""

    steps: Count = 2
    """The most sampling steps that the student takes."""
    grid: int = 32
    """Levels of the teacher's curve, from noise to data, between which the student is made to agree."""

    def __post_init__(self) -> None:
        check_limits("experiment.distillation", self)
        check_minimum("experiment.distillation.grid", self.grid, 2)


@dataclass(frozen=True, kw_only=True)
class ExperimentOptions:
    """One experiment: which tasks, in order, and how each is run."""

    tasks: tuple[str, ...] = ("training",)
    num_nodes: Count = 1
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Of float32 matrix products, in every task: `torch.set_float32_matmul_precision`. high: TF32 on an NVIDIA GPU;
    medium: bfloat16."""
    distillation: DistillationOptions = field(default_factory=DistillationOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    validation: ValidationOptions = field(default_factory=ValidationOptions)
    test: TestOptions = field(default_factory=TestOptions)

    def __post_init__(self) -> None:
        check_limits("experiment", self)


def precision_name(task: str, value: str | int) -> str:
    """experiment.<task>.precision=`value` as Lightning writes it; UserError for one that does not exist."""
    check_choice(f"experiment.{task}.precision", str(value), _PRECISIONS)
    return _PRECISIONS[str(value)]


def duration(key: str, text: str | None) -> timedelta | None:
    """The option `key`, `[[DD:]HH:]MM:SS`, as a duration; UserError for any other text."""
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,8}(:\d{1,8}){1,3}", str(text)):
        raise UserError(f"{key}='{text}' is not a duration; write HH:MM:SS or DD:HH:MM:SS, such as '00:30:00'")
    parts = [int(part) for part in str(text).split(":")]
    days, hours, minutes, seconds = [0] * (4 - len(parts)) + parts
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def _check_filename(template: str) -> None:
    """UserError for a template that is not the name of a folder with the step, and perhaps the epoch, in it."""
    if not _FILENAME.fullmatch(template) or "{step" not in template:
        raise UserError(
            f"{_CHECKPOINTING}.filename='{template}' cannot name the folders of checkpoints; it needs {{step}}, as "
            '"{epoch}-{step:08d}", and no other field, no / and no dot in front'
        )

"""Where tasks compute: devices, precision, and how several processes share the work, as options of Lightning's Trainer.

Each process has its rows of every batch. `ddp` keeps the whole model in each process and averages gradients; `fsdp`
shards weights, gradients and optimiser state over the processes. Both write the same checkpoints: full tensors, in one
folder, which any number of processes can read.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, ParallelStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments.options import ExperimentOptions, precision_name
from diffusion_forcing.experiments.processes import started_by_slurm, started_processes

MEGABYTE = 2**20
_DTYPES = {
    "16-mixed": torch.float16,
    "16-true": torch.float16,
    "bf16-mixed": torch.bfloat16,
    "bf16-true": torch.bfloat16,
    "64-true": torch.float64,
}


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@contextlib.contextmanager
def computing(task: str, precision: str | int, where: torch.device) -> Iterator[None]:
    """For tasks outside Lightning's loops: networks in the block compute as experiment.<task>.precision says.

    16 bits are 32 where there is no GPU; so are 64, whose data and weights only a Lightning trainer converts.
    """
    dtype = _DTYPES.get(precision_name(task, precision), torch.float64)
    if dtype == torch.float64 or (dtype == torch.float16 and where.type != "cuda"):
        yield
        return
    with torch.autocast(where.type, dtype=dtype):
        yield


@contextlib.contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """In the block, float32 matrix products have the precision `name` of `torch.set_float32_matmul_precision`."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class TruePrecision(Precision):
    """64-true, bf16-true and 16-true, while a trainer runs; afterwards the module has 32 bits again.

    64 bits: weights, tables and data. 16 bits: trained matrices and convolutions, under autocast. Data, noise
    schedules, norms, averaged weights, losses and metrics need more digits: 1,000 noise levels are 507 numbers in bf16.
    """

    def __init__(self, precision: str) -> None:
        self.precision = precision  # type: ignore[assignment]
        self.dtype = _DTYPES[precision]
        self._is_double = self.dtype == torch.float64
        self._module = nn.Module()
        self._converted: list[Tensor] = []

    def convert_module(self, module: nn.Module) -> nn.Module:
        self._module = module
        tensors = [*module.parameters(), *module.buffers()]
        if not self._is_double:
            tensors = [tensor for tensor in tensors if tensor.requires_grad and tensor.ndim > 1]
        self._converted = [tensor for tensor in tensors if tensor.dtype == torch.float32]
        self._convert(self.dtype)
        return module

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning restores weights before it converts the module: again, for the digits that 32 bits do not have."""
        if self._is_double:
            self._module.load_state_dict(checkpoint["state_dict"])

    def convert_input(self, data: Any) -> Any:
        def doubled(tensor: Tensor) -> Tensor:
            return tensor.double() if tensor.is_floating_point() else tensor

        return apply_to_collection(data, Tensor, doubled) if self._is_double else data

    @contextlib.contextmanager
    def forward_context(self) -> Iterator[None]:
        if not self._is_double:
            with torch.autocast(self._converted[0].device.type if self._converted else "cpu", dtype=self.dtype):
                yield
            return
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)

    def teardown(self) -> None:
        self._convert(torch.float32)
        self._converted = []

    def _convert(self, dtype: torch.dtype) -> None:
        for tensor in self._converted:
            tensor.data = tensor.data.to(dtype)


def peak_memory(where: torch.device) -> float:
    """Most memory held so far, in megabytes: by the GPU's tensors, or by this process."""
    if where.type == "cuda":
        return torch.cuda.max_memory_allocated(where) / MEGABYTE
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEGABYTE


# ---------------------------------------------------------------------------------------------------- processes

PATIENCE = timedelta(hours=2)
"""How long processes wait for each other: the main one alone prepares data, and runs the tasks before training."""


def trainer_options(options: ExperimentOptions, *, evaluating: bool = False) -> dict[str, Any]:
    """accelerator, devices, num_nodes, strategy and plugins of Lightning's Trainer. Evaluation never shards the model."""
    devices, gpus = devices_per_node(options), torch.cuda.device_count()
    if gpus and devices > gpus:
        raise UserError(
            f"experiment.training.devices is {devices} and this machine has {gpus} GPUs; pass {gpus} or fewer"
        )
    strategy: Strategy | str = "auto"
    if options.training.strategy == "fsdp" and not evaluating:
        strategy = ShardedStrategy(timeout=PATIENCE)
    elif options.training.strategy == "ddp" or devices * options.num_nodes > 1:
        strategy = ReplicatedStrategy(timeout=PATIENCE)
    plugins: list[Any] = []
    if started_by_slurm():
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(devices))  # Lightning insists on it
        plugins.append(SLURMEnvironment(auto_requeue=False))  # launch/slurm.py requeues, from our own checkpoint
    elif started_processes() is None and "SLURM_NTASKS" in os.environ:
        plugins.append(LightningEnvironment())  # a shell or script that Slurm started: Lightning starts the processes
    return {
        "accelerator": "auto",
        "devices": devices,
        "num_nodes": options.num_nodes,
        "strategy": strategy,
        "plugins": plugins,
    }


def devices_per_node(options: ExperimentOptions) -> int:
    """Processes on each machine; UserError if srun or torchrun started another number of them."""
    wanted, started = options.training.devices, started_processes()
    if started is None:
        return wanted if isinstance(wanted, int) else max(1, torch.cuda.device_count())
    nodes, here = started
    by = "Slurm" if started_by_slurm() else "torchrun"
    for key, value, count in (("num_nodes", options.num_nodes, nodes), ("training.devices", wanted, here)):
        if isinstance(value, int) and value != count:
            raise UserError(f"experiment.{key} is {value}, but {by} started {count}; pass experiment.{key}={count}")
    return here


class ExactMeans:
    """A mixin for Lightning strategies: integers are averaged over processes as real numbers.

    Lightning (2.6) averages a metric's sum and its weight, the number of samples, separately, the weight as an integer:
    5 samples in 2 processes would count as 2 in each, and the metric be a quarter too high.
    """

    def reduce(self, tensor: Any, group: Any | None = None, reduce_op: Any = "mean") -> Any:
        is_mean = reduce_op is None or str(reduce_op).lower() in ("mean", "avg")
        if is_mean and isinstance(tensor, Tensor) and not tensor.is_floating_point():
            tensor = tensor.double()
        return super().reduce(tensor, group, reduce_op)  # type: ignore[misc]


class ReplicatedStrategy(ExactMeans, DDPStrategy):
    """`experiment.training.strategy=ddp`: the whole model in each process."""


class ShardedStrategy(ExactMeans, ModelParallelStrategy):
    """`experiment.training.strategy=fsdp`: fully sharded data parallel (FSDP2), on GPUs or on the CPU (gloo).

    A step gathers all weights at its beginning and frees them at its end, not layer by layer, because our fused layers
    read each other's weights.
    """

    def __init__(self, *, timeout: timedelta) -> None:
        super().__init__(save_distributed_checkpoint=False, timeout=timeout)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        assert self.model is not None and self.accelerator is not None
        self.accelerator.setup(trainer)
        self.model = self.precision_plugin.convert_module(self.model)
        self.model_to_device()
        shard_(self.model, self.device_mesh["data_parallel"])
        self.barrier()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        ParallelStrategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import (
            StateDictOptions,
            set_model_state_dict,
            set_optimizer_state_dict,
        )
        from torch.distributed.fsdp import FullyShardedDataParallel, OptimStateKeyType

        assert self.model is not None
        options = StateDictOptions(full_state_dict=True)
        state = self.checkpoint_io.load_checkpoint(Path(checkpoint_path))
        set_model_state_dict(self.model, dict(state["state_dict"]), options=options)
        for optimizer, saved in zip(self.optimizers, state.get("optimizer_states", ()), strict=True):
            named = FullyShardedDataParallel.rekey_optim_state_dict(saved, OptimStateKeyType.PARAM_NAME, self.model)
            set_optimizer_state_dict(self.model, optimizer, named, options=options)
        return state


class UnshardedValidation(Callback):
    """Gathers a sharded module's weights while it validates, so that callbacks can use its networks too."""

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        if hasattr(pl_module, "unshard"):
            pl_module.unshard()

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if hasattr(pl_module, "reshard"):
            pl_module.reshard()


def shard_(module: torch.nn.Module, mesh: Any) -> None:
    """Shard `module` over the processes of `mesh`, in place; its steps gather the weights, as its `forward` does."""
    try:
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    except ImportError as failure:
        raise UserError(
            f"experiment.training.strategy=fsdp needs PyTorch 2.6 or newer, this is {torch.__version__}; pass ddp"
        ) from failure
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()  # a convolution's may be channels last
    fully_shard(module, mesh=mesh)
    for step in ("training_step", "validation_step"):
        register_fsdp_forward_method(module, step)


def full(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one; every process must call it."""
    gather = getattr(tensor, "full_tensor", None)
    gathered: Tensor = gather() if callable(gather) else tensor
    return gathered

"""How many processes train, and how they share the work: as options of Lightning's Trainer.

Each process has its rows of every batch. `ddp` keeps the whole model in each and averages gradients; `fsdp` splits weights, gradients and
the optimiser's state among them. Whatever trains writes the same checkpoints: whole weights in one folder, read by any number of processes.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, ParallelStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments.options import ExperimentOptions
from diffusion_forcing.experiments.processes import started_by_slurm, started_processes

# Means over processes that come out right where they do not divide.
#
# A metric's mean is its weighted sum over the sum of its weights, the batches' sizes. Lightning (2.6) averages both over processes, the second
# as a whole number: 5 samples in 2 processes count as 2 each, and the metric is a quarter too high.


class ExactMeans:
    """In front of a Lightning strategy: whole numbers are averaged as real ones."""

    def reduce(self, tensor: Any, group: Any | None = None, reduce_op: Any = "mean") -> Any:
        mean = reduce_op is None or str(reduce_op).lower() in ("mean", "avg")
        if mean and isinstance(tensor, torch.Tensor) and not tensor.is_floating_point():
            tensor = tensor.double()
        return super().reduce(tensor, group, reduce_op)  # type: ignore[misc]


# Fully sharded data parallel training (FSDP2): each process keeps a part of the weights, of their gradients and of the optimiser's state.
#
# At the beginning of a step the weights are put together, all at once (our fused layers read each other's, so they cannot come one by one),
# and after it taken apart. Lightning's strategy for models that are cut by hand, with the cutting done here for any LightningModule, and our
# checkpoints instead of its own: whole tensors, written by the main process, so that a checkpoint does not know how many processes wrote it.
# Works on the CPU too (gloo), where it is tested.

_METHODS = ("training_step", "validation_step")


class ShardedStrategy(ExactMeans, ModelParallelStrategy):
    """`experiment.training.strategy=fsdp`."""

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
        whole = StateDictOptions(full_state_dict=True)
        state = self.checkpoint_io.load_checkpoint(Path(checkpoint_path))
        set_model_state_dict(self.model, dict(state["state_dict"]), options=whole)
        for optimizer, saved in zip(self.optimizers, state.get("optimizer_states", ()), strict=True):
            named = FullyShardedDataParallel.rekey_optim_state_dict(saved, OptimStateKeyType.PARAM_NAME, self.model)
            set_optimizer_state_dict(self.model, optimizer, named, options=whole)
        return state


class Together(Callback):
    """While it validates, a sharded module's weights are whole, so that callbacks may use its networks too."""

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        if hasattr(pl_module, "unshard"):
            pl_module.unshard()

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if hasattr(pl_module, "reshard"):
            pl_module.reshard()


def shard_(module: torch.nn.Module, mesh: Any) -> None:
    """Split `module` over the processes of `mesh`, in place. Its steps count as its `forward`, where the parts come together."""
    try:
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    except ImportError as failure:
        raise UserError(
            f"experiment.training.strategy=fsdp needs PyTorch 2.6 or newer, this is {torch.__version__}; pass ddp"
        ) from failure
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()  # a convolution's may lie channels last
    fully_shard(module, mesh=mesh)
    for method in _METHODS:
        register_fsdp_forward_method(module, method)


def whole(tensor: Tensor) -> Tensor:
    """`tensor` put together from its parts, where it is split; to be called in all processes."""
    together = getattr(tensor, "full_tensor", None)
    found: Tensor = together() if callable(together) else tensor
    return found


PATIENCE = timedelta(hours=2)
"""How long processes wait for one another: data is prepared, and tasks before training run, in the main one alone."""


def devices_per_node(options: ExperimentOptions) -> int:
    """Processes on each machine; UserError where those that were started are others than asked for."""
    wanted, started = options.training.devices, started_processes()
    if started is None:
        return wanted if isinstance(wanted, int) else max(1, torch.cuda.device_count())
    nodes, here = started
    by = "Slurm" if started_by_slurm() else "torchrun"
    if nodes != options.num_nodes:
        raise UserError(
            f"{by} started processes on {nodes} machines, and experiment.num_nodes is {options.num_nodes}; "
            f"pass experiment.num_nodes={nodes}, or ask {by} for as many machines"
        )
    if isinstance(wanted, int) and wanted != here:
        raise UserError(
            f"{by} started {here} processes a machine, and experiment.training.devices is {wanted}; "
            f"pass experiment.training.devices={here} or leave it out"
        )
    return here


def trainer_options(options: ExperimentOptions, *, evaluating: bool = False) -> dict[str, Any]:
    """accelerator, devices, num_nodes, strategy and plugins for Lightning's Trainer. Evaluation never splits the model."""
    devices = devices_per_node(options)
    gpus = torch.cuda.device_count()
    if gpus and devices > gpus:
        raise UserError(
            f"experiment.training.devices is {devices} and this machine has {gpus} GPUs; pass {gpus} or fewer"
        )
    plugins: list[Any] = []
    if started_by_slurm():
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(devices))  # Lightning insists on it
        plugins.append(SLURMEnvironment(auto_requeue=False))  # our own checkpoint, and launch/requeue.py requeues
    elif started_processes() is None and "SLURM_NTASKS" in os.environ:
        plugins.append(LightningEnvironment())  # in a shell or a script that Slurm started, processes are ours to start
    return {
        "accelerator": "auto",
        "devices": devices,
        "num_nodes": options.num_nodes,
        "strategy": _strategy(options, devices, evaluating),
        "plugins": plugins,
    }


def _strategy(options: ExperimentOptions, devices: int, evaluating: bool) -> Strategy | str:
    if options.training.strategy == "fsdp" and not evaluating:
        return ShardedStrategy(timeout=PATIENCE)
    if options.training.strategy == "ddp" or devices * options.num_nodes > 1:
        return ReplicatedStrategy(timeout=PATIENCE)
    return "auto"


class ReplicatedStrategy(ExactMeans, DDPStrategy):
    """The whole model in each process (DDP)."""

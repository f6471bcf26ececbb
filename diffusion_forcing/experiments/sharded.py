"""Fully sharded data parallel training (FSDP2): each process keeps a part of the weights, of their gradients and of the optimiser's state.

At the beginning of a step the weights are put together, all at once (our fused layers read each other's, so they cannot come one by one),
and after it taken apart. Lightning's strategy for models that are cut by hand, with the cutting done here for any LightningModule, and our
checkpoints instead of its own: whole tensors, written by the main process, so that a checkpoint does not know how many processes wrote it.
Works on the CPU too (gloo), where it is tested.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments.exact_means import ExactMeans

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

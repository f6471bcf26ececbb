"""How many processes train, and how they share the work: as options of Lightning's Trainer.

Each process has its rows of every batch. `ddp` keeps the whole model in each and averages gradients; `fsdp` splits weights, gradients and
the optimiser's state among them. Whatever trains writes the same checkpoints: whole weights in one folder, read by any number of processes.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy

from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments.exact_means import ExactMeans
from diffusion_forcing.experiments.options import ExperimentOptions
from diffusion_forcing.experiments.processes import started_by_slurm, started_processes

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
        from diffusion_forcing.experiments.sharded import ShardedStrategy

        return ShardedStrategy(timeout=PATIENCE)
    if options.training.strategy == "ddp" or devices * options.num_nodes > 1:
        return ReplicatedStrategy(timeout=PATIENCE)
    return "auto"


class ReplicatedStrategy(ExactMeans, DDPStrategy):
    """The whole model in each process (DDP)."""

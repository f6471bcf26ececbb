"""The three parts of a small experiment that draws from each process's own random state, and waits to be preempted."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from tests.experiments.toy import Samples


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    count: int = 24


class Data:
    Options = DataOptions

    def __init__(self, options: DataOptions) -> None:
        self.options = options

    def training(self) -> Samples:
        return Samples(self.options.count)

    def validation(self) -> Samples:
        return Samples(5)


@dataclass(frozen=True, kw_only=True)
class SlowOptions:
    hold: tuple[int, ...] = ()


class Slow(LightningModule):
    """Before each step in `hold` it waits until it is asked to stop."""

    Options = SlowOptions

    def __init__(self, options: SlowOptions) -> None:
        super().__init__()
        self.options = options
        self.network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        while self.global_step in self.options.hold and not asked_to_stop():
            time.sleep(0.05)
        return ((self.network(batch + 0.1 * torch.randn_like(batch)) - batch) ** 2).mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("validation/loss", ((self.network(batch) - batch) ** 2).mean(), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.05)


def asked_to_stop() -> bool:
    """Whether whoever handles the warning of Slurm's has received it."""
    handler = signal.getsignal(signal.SIGUSR1)
    return getattr(getattr(handler, "__self__", None), "received", None) is not None

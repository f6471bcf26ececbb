"""The dataset: sine waves of random phase and amplitude, generated on access.

A dataset has `training()` and `validation()`, which return map-style datasets (`__len__`, `__getitem__`), and optionally `test()` and `prepare()`
(download, generate; called once before the first task).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from diffusion_forcing.errors import UserError


@dataclass(frozen=True, kw_only=True)
class MyDatasetOptions:
    """The keys of configurations/dataset/my_dataset.yaml."""

    count: int = 1024  # training waves; a quarter as many for validation
    tokens: int = 8  # per wave
    samples: int = 8  # of the wave per token
    period: float = 16.0  # samples

    def __post_init__(self) -> None:
        if self.tokens < 2:
            raise UserError(f"dataset.tokens must be at least 2, for a context and a future; got {self.tokens}")
        if self.count < 4 or self.samples < 1 or self.period <= 0:
            raise UserError("dataset.count must be at least 4, samples at least 1, period above 0")


class MyDataset:
    """Waves (tokens, samples), float32, in [-1, 1]."""

    Options = MyDatasetOptions

    def __init__(self, options: MyDatasetOptions) -> None:
        self.options = options

    def training(self) -> TensorDataset:
        return TensorDataset(self.waves(self.options.count, seed=0))

    def validation(self) -> TensorDataset:
        return TensorDataset(self.waves(self.options.count // 4, seed=1))

    def waves(self, count: int, *, seed: int) -> Tensor:
        """(count, tokens, samples), drawn with an own generator, so that the data is the same in every run."""
        options, generator = self.options, torch.Generator().manual_seed(seed)
        phase, amplitude = torch.rand(2, count, 1, generator=generator)
        t = torch.arange(options.tokens * options.samples)
        x = (0.5 + 0.5 * amplitude) * torch.sin(2 * math.pi * (t / options.period + phase))
        return x.reshape(count, options.tokens, options.samples)

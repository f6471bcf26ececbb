"""The dataset: sine waves of random phase and height, made when they are asked for.

A dataset has `training()` and `validation()`, which give map-style datasets (`__len__`, `__getitem__`); also `test()` and `prepare()`
(download, generate; called once before the first task) where it needs them.
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

    count: int = 1024  # waves to train on; a quarter as many to validate
    tokens: int = 8  # in a wave
    samples: int = 8  # of the wave, in a token
    period: float = 16.0  # samples

    def __post_init__(self) -> None:
        if self.tokens < 2:
            raise UserError(f"dataset.tokens is {self.tokens}; a forecast needs a past and a future: 2 or more")
        if self.count < 4 or self.samples < 1 or self.period <= 0:
            raise UserError("dataset: count is 4 or more, samples 1 or more, period above 0")


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
        """(count, tokens, samples). What draws has its own generator, so that the data is the same in every run."""
        options, generator = self.options, torch.Generator().manual_seed(seed)
        phase, height = torch.rand(2, count, 1, generator=generator)
        t = torch.arange(options.tokens * options.samples)
        x = (0.5 + 0.5 * height) * torch.sin(2 * math.pi * (t / options.period + phase))
        return x.reshape(count, options.tokens, options.samples)

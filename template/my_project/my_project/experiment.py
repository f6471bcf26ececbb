"""The experiment: training and validation as in every experiment, and its own task.

A task is a public method without arguments. `experiment.tasks=[training,my_task]` runs both, in this order.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments.base import BaseExperiment
from diffusion_forcing.experiments.options import ExperimentOptions
from my_project.algorithm import MyAlgorithm
from my_project.dataset import MyDataset


@dataclass(frozen=True, kw_only=True)
class MyExperimentOptions(ExperimentOptions):
    """The keys of configurations/experiment/my_experiment.yaml: those of every experiment, and ours."""

    shown: int = 8  # forecasts in the image

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shown < 1:
            raise UserError(f"experiment.shown must be at least 1, got {self.shown}")


class MyExperiment(BaseExperiment):
    """Tasks: training, validation, test, and my_task."""

    Options = MyExperimentOptions
    options: MyExperimentOptions
    algorithm: MyAlgorithm
    dataset: MyDataset

    def my_task(self) -> None:
        """Forecast the second half of each validation wave; report the error, that of repeating the last token, and an image."""
        self._prepare()  # the data, and the weights of load= or resume=
        (truth,) = self.dataset.validation().tensors
        length = truth.shape[1] // 2
        algorithm = self.algorithm.cpu().eval()
        start = time.perf_counter()
        forecast = algorithm.forecast(truth[:, :length], generator=torch.Generator().manual_seed(self.seed))
        seconds = time.perf_counter() - start
        repeated = truth[:, length - 1 : length].expand_as(truth[:, length:])
        self.run.summary(
            {
                "my_task/rmse": (forecast - truth)[:, length:].square().mean().sqrt().item(),
                "my_task/rmse_of_repeating_the_last_token": (repeated - truth[:, length:])
                .square()
                .mean()
                .sqrt()
                .item(),
                "my_task/seconds": round(seconds, 3),
            }
        )
        rows = [row.flatten(1)[: self.options.shown] for row in (truth, forecast)]
        self.run.image("my_task", draw_pairs(*(row.numpy() for row in rows)), caption="Pairs of rows: truth, forecast")
        self._say(f"my_task: {len(truth)} forecasts in {seconds:.1f} s")


def draw_pairs(truth: NDArray[np.float32], forecast: NDArray[np.float32], *, height: int = 8) -> NDArray[np.uint8]:
    """(n, t) and (n, t) in [-1, 1] as a grey image: row by row, each truth above its forecast."""
    pairs = np.stack([truth, forecast], axis=1).reshape(-1, truth.shape[1])
    grey = (255 * (pairs.clip(-1, 1) + 1) / 2).astype(np.uint8)
    return grey.repeat(height, axis=0).repeat(height, axis=1)

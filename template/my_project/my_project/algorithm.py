"""The algorithm: Diffusion Forcing over the dataset's tokens, with a small causal transformer.

An algorithm is a LightningModule: `training_step` returns the loss, `configure_optimizers` the optimiser. The method itself (a noise level for
every token; a rollout, token by token) comes from diffusion_forcing.diffusion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import lightning
import torch
from torch import Tensor

from diffusion_forcing.diffusion import (
    DiffusionForcing,
    Sampler,
    build_parameterization,
    build_schedule,
    draw_noise_levels,
)
from diffusion_forcing.errors import UserError
from diffusion_forcing.networks import Transformer


@dataclass(frozen=True, kw_only=True)
class MyAlgorithmOptions:
    """The keys of configurations/algorithm/my_algorithm.yaml. tokens and samples come from the dataset."""

    tokens: int
    samples: int
    lr: float = 1e-3
    network_size: int = 32
    num_layers: int = 2
    sampling_timesteps: int = 10
    scheduling_matrix: Literal["autoregressive", "pyramid", "full_sequence"] = "autoregressive"
    debug: bool = False

    def __post_init__(self) -> None:
        if self.sampling_timesteps < 1:
            raise UserError(f"algorithm.sampling_timesteps must be at least 1, got {self.sampling_timesteps}")


class MyAlgorithm(lightning.LightningModule):
    """Learns sequences of tokens (b, tokens, samples) and continues them."""

    Options = MyAlgorithmOptions

    def __init__(self, options: MyAlgorithmOptions) -> None:
        super().__init__()
        self.options = options
        network = Transformer(
            options.samples,
            network_size=options.network_size,
            num_layers=options.num_layers,
            dim_feedforward=4 * options.network_size,
            causal=True,
        )
        self.forcing = DiffusionForcing(
            network, build_schedule("cosine"), build_parameterization("pred_x0", clip_noise=20.0), weighting="fused_snr"
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("validation/loss", self.loss(batch))

    def loss(self, batch: list[Tensor]) -> Tensor:
        """The mean loss of a batch, with a noise level for every token."""
        (x,) = batch
        k = draw_noise_levels("random_all", *x.shape[:2], timesteps=self.forcing.schedule.timesteps, device=x.device)
        return self.forcing.loss(x, k).per_element.mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.options.lr)

    @torch.no_grad()
    def forecast(self, context: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Continue (b, t, samples) clean tokens to (b, options.tokens, samples)."""
        options = self.options
        sampler = Sampler(
            self.forcing, sampling_timesteps=options.sampling_timesteps, scheduling_matrix=options.scheduling_matrix
        )
        return sampler.rollout(context, options.tokens, window=options.tokens, generator=generator)

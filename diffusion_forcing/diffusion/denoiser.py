"""A denoiser predicts the clean token and its noise for every token of a sequence. Guidance wraps one denoiser in another.

`denoise(x, k, conditions, memory, k_to=…) -> (Prediction, memory)` with tokens x: (b, t, *c) at levels k: (b, t) in −1…K−1, −1 being
clean. `DiffusionForcing` is the plain denoiser; the wrappers here and in `guidance.py` change what it sees or what it answers, and know
nothing of each other.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diffusion_forcing.diffusion.parameterization import Prediction, add_noise
from diffusion_forcing.diffusion.schedules import NoiseSchedule, per_token

Denoised = tuple[Prediction, Any]


class Denoiser(Protocol):
    """The call that sampling makes for each row of a scheduling matrix.

    inputs: conditions (b, t, d) or None, then the memory that stands for the tokens before x, or None. k_to: (b, t), the levels that the
    step leads to, which gradient guidance needs. Returns the prediction, and the memory after x.
    """

    def __call__(self, x: Tensor, k: Tensor, *inputs: Any, k_to: Tensor | None = None) -> Denoised: ...


class NoisyContext:
    """Shows clean tokens with real noise, at a level of 0…K−1. noise: standard normal (b, t, *c)."""

    def __init__(self, denoise: Denoiser, schedule: NoiseSchedule, *, level: int, noise: Tensor) -> None:
        self.denoise, self.schedule, self.level, self.noise = denoise, schedule, level, noise

    def __call__(self, x: Tensor, k: Tensor, *inputs: Any, k_to: Tensor | None = None) -> Denoised:
        # Branches of guidance are stacked in x: (n·b, t, *c).
        noise = self.noise.repeat(len(x) // len(self.noise), *(1,) * (x.ndim - 1))
        return self.denoise(*noisy_context(self.schedule, x, k, level=self.level, noise=noise), *inputs, k_to=k_to)


def noisy_context(schedule: NoiseSchedule, x: Tensor, k: Tensor, *, level: int, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens x: (b, t, *c) and levels k: (b, t) in which the clean tokens (k = −1) are noised to `level`."""
    clean = k < 0
    noised = add_noise(schedule, x, torch.full_like(k, level), noise)
    return torch.where(per_token(clean, x), noised, x), torch.where(clean, level, k)


class MemoryOnly(nn.Module):
    """A network that has `remember(x, k, conditions, memory) -> memory`, called for the memory alone: its output is x."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, k: Tensor, conditions: Tensor | None = None, memory: Any = None) -> tuple[Tensor, Any]:
        network: Any = self.network
        return x, network.remember(x, k, conditions, memory)

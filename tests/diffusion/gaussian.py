"""Networks whose right answers are known in closed form, so that sampling can be checked against mathematics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffusion_forcing.diffusion import DiffusionForcing, NoiseSchedule, build_parameterization, build_schedule


class ExactGaussian(nn.Module):
    """The exact denoiser of data ~ N(mean, std²), every element by itself: x̂₀ = E[x | x_k] = slope·x_k + offset.

    With std 0 it is certain of the data. `calls` are the (x, k, conditions) it was shown.
    """

    def __init__(self, schedule: NoiseSchedule, mean: float, std: float, *, objective: str = "pred_x0") -> None:
        super().__init__()
        self.schedule, self.mean, self.std, self.objective = schedule, mean, std, objective
        self.calls: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def slope(self, k: Tensor) -> Tensor:
        power = self.schedule.alphas_cumprod[k]
        return power.sqrt() * self.std**2 / (power * self.std**2 + 1 - power)

    def offset(self, k: Tensor) -> Tensor:
        return self.mean * (1 - self.slope(k) * self.schedule.sqrt_alphas_cumprod[k])

    def forward(
        self, x: Tensor, k: Tensor, conditions: Tensor | None = None, memory: Any = None
    ) -> tuple[Tensor, None]:
        self.calls.append((x.detach().clone(), k.clone(), conditions))
        x0 = self.slope(k)[..., None] * x + self.offset(k)[..., None]
        signal, noise = (
            getattr(self.schedule, name)[k][..., None]
            for name in ("sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod")
        )
        eps = (x - signal * x0) / noise
        match self.objective:
            case "pred_noise":
                return eps, None
            case "pred_v":
                return signal * eps - noise * x0, None
        return x0, None


class Certain(nn.Module):
    """A network that always answers `answer`: (b, t, c)."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(
        self, x: Tensor, k: Tensor, conditions: Tensor | None = None, memory: Any = None
    ) -> tuple[Tensor, None]:
        return self.answer.expand_as(x), None


def forcing_of(
    mean: float = 0.0,
    std: float = 1.0,
    *,
    objective: str = "pred_x0",
    schedule: NoiseSchedule | None = None,
    **settings: Any,
) -> DiffusionForcing:
    """DiffusionForcing over the exact denoiser of N(mean, std²)."""
    schedule = build_schedule("linear") if schedule is None else schedule
    return DiffusionForcing(
        ExactGaussian(schedule, mean, std, objective=objective),
        schedule,
        build_parameterization(objective, clip_noise=20.0),
        **settings,
    )


def levels(*values: int) -> Tensor:
    """(1, t) training levels."""
    return torch.tensor([values])


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

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


class RandomWalk(nn.Module):
    """The exact denoiser of random walks x_t = c_t + Σ steps ~ N(0, 1) up to t, every channel by itself, its mean c given as conditions
    (b, t, 1), or 0: x̂₀ = c + ΣA(AΣA + N)⁻¹(x_k − Ac), A = diag √ᾱ_k, N = diag 1−ᾱ_k, Σ the walk's covariance min(s, t).

    causal: token t's answer is that of the tokens up to t alone. `calls` are the (x, k, conditions) it was shown.
    """

    def __init__(self, schedule: NoiseSchedule, *, causal: bool = False) -> None:
        super().__init__()
        self.schedule, self.causal = schedule, causal
        self.calls: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def forward(
        self, x: Tensor, k: Tensor, conditions: Tensor | None = None, memory: Any = None
    ) -> tuple[Tensor, None]:
        self.calls.append((x.detach().clone(), k.clone(), conditions))
        mean = torch.zeros_like(x[..., :1]) if conditions is None else conditions
        power = self.schedule.alphas_cumprod.double()[k]
        ends = range(1, x.shape[1] + 1) if self.causal else (x.shape[1],)
        answers = [self.answer(x[:, :end].double(), mean[:, :end].double(), power[:, :end]) for end in ends]
        x0 = torch.cat([answer[:, -1:] for answer in answers], dim=1) if self.causal else answers[0]
        return x0.to(x.dtype), None

    @staticmethod
    def answer(x: Tensor, mean: Tensor, power: Tensor) -> Tensor:
        t = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)
        covariance, signal = torch.minimum(t[:, None], t), power.sqrt()
        seen = signal[:, :, None] * covariance * signal[:, None, :] + torch.diag_embed(1 - power)
        return mean + covariance @ (signal[..., None] * torch.linalg.solve(seen, x - signal[..., None] * mean))


def walk_of(*, causal: bool = False, name: str = "cosine", **settings: Any) -> DiffusionForcing:
    """DiffusionForcing over the exact denoiser of random walks."""
    schedule = build_schedule(name)
    return DiffusionForcing(
        RandomWalk(schedule, causal=causal), schedule, build_parameterization("pred_x0", clip_noise=20.0), **settings
    )


class Pair(nn.Module):
    """The exact denoiser of tokens of two numbers ~ N(0, 1) each, correlated by `rho`, every token by itself."""

    def __init__(self, schedule: NoiseSchedule, rho: float) -> None:
        super().__init__()
        self.schedule = schedule
        self.covariance = torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64)

    def forward(
        self, x: Tensor, k: Tensor, conditions: Tensor | None = None, memory: Any = None
    ) -> tuple[Tensor, None]:
        power = self.schedule.alphas_cumprod.double()[k][..., None, None]
        seen = power * self.covariance + (1 - power) * torch.eye(2, dtype=torch.float64)
        answer = self.covariance @ torch.linalg.solve(seen, x.double()[..., None]) * power.sqrt()
        return answer[..., 0].to(x.dtype), None


def pair_of(rho: float) -> DiffusionForcing:
    """DiffusionForcing over the exact denoiser of correlated pairs."""
    schedule = build_schedule("cosine")
    return DiffusionForcing(Pair(schedule, rho), schedule, build_parameterization("pred_x0", clip_noise=20.0))

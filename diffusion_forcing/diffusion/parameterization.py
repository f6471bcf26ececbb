"""What the network predicts, and how the clean token x̂₀ and its noise ε̂ follow from it (docs/method.md §3).

x_k = √ᾱ_k·x + √(1−ᾱ_k)·ε. Each class is one choice of what the network predicts: its training target, and (x̂₀, ε̂) from the network's
output.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from diffusion_forcing.diffusion.schedules import NoiseSchedule, per_token
from diffusion_forcing.errors import check_choice


class Prediction(NamedTuple):
    """x0, eps: (b, t, *c), the predicted clean tokens and their noise; output: the network's own output."""

    x0: Tensor
    eps: Tensor
    output: Tensor


def add_noise(schedule: NoiseSchedule, x: Tensor, k: Tensor, eps: Tensor) -> Tensor:
    """x_k = √ᾱ_k·x + √(1−ᾱ_k)·ε for tokens x: (b, t, *c) at levels k: (b, t) in 0…K−1."""
    return schedule.signal(k, x) * x + schedule.noise(k, x) * eps


def x0_from_eps(schedule: NoiseSchedule, x_k: Tensor, k: Tensor, eps: Tensor) -> Tensor:
    """x̂₀ = x_k/√ᾱ − √(1/ᾱ−1)·ε̂."""
    return schedule.at("sqrt_recip_alphas_cumprod", k, x_k) * x_k - schedule.at("sigmas", k, x_k) * eps


def eps_from_x0(schedule: NoiseSchedule, x_k: Tensor, k: Tensor, x0: Tensor) -> Tensor:
    """ε̂ = (x_k/√ᾱ − x̂₀)/√(1/ᾱ−1)."""
    return (schedule.at("sqrt_recip_alphas_cumprod", k, x_k) * x_k - x0) / schedule.at("sigmas", k, x_k)


class Parameterization(Protocol):
    """`target` is what training regresses; `resolve` turns the network's output into a Prediction."""

    name: str

    def target(self, schedule: NoiseSchedule, x: Tensor, k: Tensor, eps: Tensor) -> Tensor: ...

    def resolve(self, schedule: NoiseSchedule, x_k: Tensor, k: Tensor, output: Tensor) -> Prediction: ...


class PredictNoise:
    """The network predicts ε, clamped to ±clip_noise where it is used."""

    name = "pred_noise"

    def __init__(self, clip_noise: float) -> None:
        self.clip_noise = clip_noise

    def target(self, schedule: NoiseSchedule, x: Tensor, k: Tensor, eps: Tensor) -> Tensor:
        return eps

    def resolve(self, schedule: NoiseSchedule, x_k: Tensor, k: Tensor, output: Tensor) -> Prediction:
        eps = output.clamp(-self.clip_noise, self.clip_noise)
        return Prediction(x0_from_eps(schedule, x_k, k, eps), eps, output)


class PredictX0:
    """The network predicts the clean token."""

    name = "pred_x0"

    def target(self, schedule: NoiseSchedule, x: Tensor, k: Tensor, eps: Tensor) -> Tensor:
        return x

    def resolve(self, schedule: NoiseSchedule, x_k: Tensor, k: Tensor, output: Tensor) -> Prediction:
        return Prediction(output, eps_from_x0(schedule, x_k, k, output), output)


class PredictV:
    """The network predicts v = √ᾱ·ε − √(1−ᾱ)·x (Salimans & Ho 2022), so x̂₀ = √ᾱ·x_k − √(1−ᾱ)·v."""

    name = "pred_v"

    def target(self, schedule: NoiseSchedule, x: Tensor, k: Tensor, eps: Tensor) -> Tensor:
        return schedule.signal(k, x) * eps - schedule.noise(k, x) * x

    def resolve(self, schedule: NoiseSchedule, x_k: Tensor, k: Tensor, output: Tensor) -> Prediction:
        x0 = schedule.signal(k, x_k) * x_k - schedule.noise(k, x_k) * output
        return Prediction(x0, eps_from_x0(schedule, x_k, k, x0), output)


class PredictEDM:
    """The network predicts F of D = c_skip·x_σ + c_out·F, x_σ = x + σ·ε (Karras et al. 2022, table 1): of unit variance at every level.

    It tends to the clean token where there is much noise, and to the noise where there is little. c_skip = σ_d²/(σ² + σ_d²),
    c_out = σ·σ_d/√(σ² + σ_d²); sigma_data: σ_d, the deviation of the data. In the variance-preserving scaling here x_σ = x_k·√(1 + σ²).
    """

    name = "pred_edm"

    def __init__(self, sigma_data: float = 0.5) -> None:
        self.sigma_data = sigma_data

    def target(self, schedule: NoiseSchedule, x: Tensor, k: Tensor, eps: Tensor) -> Tensor:
        skip, out = self._scales(schedule, k, x)
        return (x - skip * (x + schedule.at("sigmas", k, x) * eps)) / out

    def resolve(self, schedule: NoiseSchedule, x_k: Tensor, k: Tensor, output: Tensor) -> Prediction:
        skip, out = self._scales(schedule, k, x_k)
        x_sigma = schedule.at("sqrt_recip_alphas_cumprod", k, x_k) * x_k
        x0 = skip * x_sigma + out * output
        return Prediction(x0, eps_from_x0(schedule, x_k, k, x0), output)

    def _scales(self, schedule: NoiseSchedule, k: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """c_skip and c_out at levels k."""
        sigma = schedule.at("sigmas", k, like)
        total = sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt()


OBJECTIVES = ("pred_noise", "pred_x0", "pred_v", "pred_edm")


def build_parameterization(objective: str, *, clip_noise: float) -> Parameterization:
    """The parameterization named `objective`, one of `OBJECTIVES`."""
    check_choice("objective", objective, OBJECTIVES)
    match objective:
        case "pred_noise":
            return PredictNoise(clip_noise)
        case "pred_x0":
            return PredictX0()
        case "pred_v":
            return PredictV()
    return PredictEDM()


def with_observed(schedule: NoiseSchedule, x: Tensor, observed: Tensor, k: Tensor, noise: Tensor) -> Tensor:
    """x: (b, t, *c) at levels k: (b, t), −1 clean, with `observed`, like x, at the same levels wherever it is not NaN.

    A token has one noise level, so what is observed of it is shown as noisy as the rest, with fresh noise every time (replacement; Song et
    al. 2021). That alone lets the rest come out as if it hardly knew. A row is therefore repeated, the rest noised again in between
    (`noise_further`), until both agree (RePaint; Lugmayr et al. 2022).
    """
    known = torch.isfinite(observed)
    clean = torch.where(known, observed, 0.0).to(x.dtype)
    noisy = add_noise(schedule, clean, k.clamp(min=0), noise)
    return torch.where(known, torch.where(per_token(k < 0, x), clean, noisy), x)


def noise_further(schedule: NoiseSchedule, x: Tensor, k: Tensor, k_to: Tensor, noise: Tensor) -> Tensor:
    """A draw from q(x_k_to | x_k), k ≤ k_to, of tokens x: (b, t, *c) at levels k: √(ᾱ'/ᾱ)·x + √(1 − ᾱ'/ᾱ)·noise. −1 is clean."""
    ratio = (schedule.signal_power(k_to, x) / schedule.signal_power(k, x)).clamp(max=1)
    return ratio.sqrt() * x + (1 - ratio).sqrt() * noise

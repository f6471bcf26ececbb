"""Noise schedules: how much of a token is left at each training level.

A schedule is K variances β_k; everything else (ᾱ, SNR, posterior) follows from them. Computed in float64, kept in float32 (docs/method.md §2).
Levels are k ∈ {0 … K−1}; k = −1 is a clean token, ᾱ_{−1} = 1.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_forcing.errors import UserError, check_choice, check_minimum

MAX_BETA = 0.999  # no single step may destroy everything (Nichol & Dhariwal 2021)


def linear_betas(timesteps: int) -> Tensor:
    """β evenly spaced from 1e-4 to 2e-2 at K = 1000, rescaled for other K (Ho et al. 2020). Float64 (K,)."""
    scale = 1000 / timesteps
    return torch.linspace(scale * 1e-4, scale * 2e-2, timesteps, dtype=torch.float64).clamp(0, MAX_BETA)


def cosine_betas(timesteps: int, s: float = 0.008) -> Tensor:
    """ᾱ(u) ∝ cos²((u+s)/(1+s)·π/2) (Nichol & Dhariwal 2021). Float64 (K,)."""
    u = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    return _betas_of(torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2)


def sigmoid_betas(timesteps: int, start: float = -3, end: float = 3, tau: float = 1) -> Tensor:
    """ᾱ(u) falls along a sigmoid from `start` to `end` (Jabri et al. 2022). Float64 (K,)."""
    u = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    # the two ends in float32, as the released models were trained: it moves ᾱ of the last level by 3e-5 of itself
    first, last = (torch.tensor(edge / tau, dtype=torch.float32).sigmoid() for edge in (start, end))
    return _betas_of((last - ((u * (end - start) + start) / tau).sigmoid()) / (last - first))


def edm_betas(timesteps: int, sigma_min: float = 0.002, sigma_max: float = 5.0, rho: float = 7.0) -> Tensor:
    """ᾱ = 1/(1 + σ²) on a grid of noise σ in units of the data, σ^(1/ρ) evenly spaced (Karras et al. 2022, eq. 5). Float64 (K,).

    x_k = (x + σ·ε)/√(1 + σ²): EDM's noised token, scaled to keep the variance.
    """
    if not 0 < sigma_min < sigma_max or not rho > 0:
        raise UserError(
            f"sigma_min {sigma_min}, sigma_max {sigma_max}, rho {rho}: 0 < sigma_min < sigma_max and rho > 0 are needed"
        )
    ends = (sigma_min ** (1 / rho), sigma_max ** (1 / rho))
    sigmas = torch.linspace(*ends, timesteps, dtype=torch.float64) ** rho
    return _betas_of(torch.cat([torch.ones(1, dtype=torch.float64), 1 / (1 + sigmas**2)]))


def _betas_of(alphas_cumprod: Tensor) -> Tensor:
    """β_k = 1 − ᾱ_{k+1}/ᾱ_k of a curve sampled at K + 1 points, clipped to [0, 0.999]."""
    alphas_cumprod = alphas_cumprod / alphas_cumprod[0]
    return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(0, MAX_BETA)


BETA_SCHEDULES = {"linear": linear_betas, "cosine": cosine_betas, "sigmoid": sigmoid_betas, "edm": edm_betas}


class NoiseSchedule(nn.Module):
    """The tables that follow from β, each float32 of shape (K,), and their values at levels k.

    They are buffers, so they move with the module, and not in its state: they follow from the configuration.
    """

    betas: Tensor
    alphas_cumprod: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    posterior_variance: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor
    snr: Tensor
    clipped_snr: Tensor

    def __init__(self, betas: Tensor, *, snr_clip: float = 5.0) -> None:
        super().__init__()
        betas = betas.double()
        alphas = 1 - betas
        alphas_cumprod = alphas.cumprod(0)
        previous = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
        snr = alphas_cumprod / (1 - alphas_cumprod)
        self.timesteps = len(betas)
        self.snr_clip = snr_clip
        tables = {
            "betas": betas,
            "alphas_cumprod": alphas_cumprod,
            "sqrt_alphas_cumprod": alphas_cumprod.sqrt(),
            "sqrt_one_minus_alphas_cumprod": (1 - alphas_cumprod).sqrt(),
            "sqrt_recip_alphas_cumprod": (1 / alphas_cumprod).sqrt(),
            "sqrt_recipm1_alphas_cumprod": (1 / alphas_cumprod - 1).sqrt(),
            "posterior_variance": betas * (1 - previous) / (1 - alphas_cumprod),
            "posterior_mean_coef1": betas * previous.sqrt() / (1 - alphas_cumprod),
            "posterior_mean_coef2": (1 - previous) * alphas.sqrt() / (1 - alphas_cumprod),
            "snr": snr,
            "clipped_snr": snr.clamp(max=snr_clip),
        }
        for name, table in tables.items():
            self.register_buffer(name, table.float(), persistent=False)

    @property
    def sigmas(self) -> Tensor:
        """(K,): noise over signal at each level, √(1/ᾱ − 1), σ in EDM."""
        return self.sqrt_recipm1_alphas_cumprod

    def at(self, name: str, k: Tensor, like: Tensor) -> Tensor:
        """The table `name` at levels k: (b, t) in 0…K−1, shaped to broadcast over `like`: (b, t, *c)."""
        return per_token(getattr(self, name)[k], like)

    def signal(self, k: Tensor, like: Tensor) -> Tensor:
        """√ᾱ_k, the factor of the clean token in x_k, at levels k: (b, t) in 0…K−1."""
        return self.at("sqrt_alphas_cumprod", k, like)

    def noise(self, k: Tensor, like: Tensor) -> Tensor:
        """√(1−ᾱ_k), the factor of the noise in x_k, at levels k: (b, t) in 0…K−1."""
        return self.at("sqrt_one_minus_alphas_cumprod", k, like)

    def signal_power(self, k: Tensor, like: Tensor) -> Tensor:
        """ᾱ_k at levels k: (b, t) in −1…K−1, with ᾱ_{−1} = 1."""
        return per_token(torch.where(k < 0, 1.0, self.alphas_cumprod[k.clamp(min=0)]), like)


def per_token(values: Tensor, like: Tensor) -> Tensor:
    """values: (b, t), one a token, as (b, t, 1, …), to broadcast over tokens `like`: (b, t, *c)."""
    return values.reshape(*values.shape, *(1,) * (like.ndim - values.ndim))


def build_schedule(
    name: str, timesteps: int = 1000, *, snr_clip: float = 5.0, arguments: dict[str, Any] | None = None
) -> NoiseSchedule:
    """The schedule called `name` (linear, cosine, sigmoid, edm) with K = `timesteps` levels; `arguments` go to its curve."""
    check_choice("beta_schedule", name, BETA_SCHEDULES)
    check_minimum("timesteps", timesteps, 1)
    try:
        betas = BETA_SCHEDULES[name](timesteps, **(arguments or {}))
    except TypeError as error:
        raise UserError(f"schedule_fn_kwargs {arguments} do not fit beta_schedule '{name}': {error}") from error
    return NoiseSchedule(betas, snr_clip=snr_clip)

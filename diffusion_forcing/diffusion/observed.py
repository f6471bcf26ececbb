"""Sampling where part of a token is observed: some variates of a moment, some pixels of a frame. Any element may be known.

A token has one noise level, so what is observed is shown to the network as noisy as the rest of its token, with fresh noise every time
(replacement; Song et al. 2021). That alone lets the rest come out as if it hardly knew. A row is therefore repeated several times, the rest
noised again in between, until both agree (RePaint; Lugmayr et al. 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_forcing.diffusion.parameterization import add_noise
from diffusion_forcing.diffusion.schedules import NoiseSchedule, per_token


def with_observed(schedule: NoiseSchedule, x: Tensor, observed: Tensor, k: Tensor, noise: Tensor) -> Tensor:
    """x: (b, t, *c) at levels k: (b, t), −1 clean, with `observed`, like x, at the same levels wherever it is not NaN."""
    known = torch.isfinite(observed)
    clean = torch.where(known, observed, 0.0).to(x.dtype)
    noisy = add_noise(schedule, clean, k.clamp(min=0), noise)
    return torch.where(known, torch.where(per_token(k < 0, x), clean, noisy), x)


def noise_further(schedule: NoiseSchedule, x: Tensor, k: Tensor, k_to: Tensor, noise: Tensor) -> Tensor:
    """A draw from q(x_k_to | x_k), k ≤ k_to, of tokens x: (b, t, *c) at levels k: √(ᾱ'/ᾱ)·x + √(1 − ᾱ'/ᾱ)·noise. −1 is clean."""
    ratio = (schedule.signal_power(k_to, x) / schedule.signal_power(k, x)).clamp(max=1)
    return ratio.sqrt() * x + (1 - ratio).sqrt() * noise

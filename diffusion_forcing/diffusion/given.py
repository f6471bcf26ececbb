"""Sampling where part of a token is given: some variates of a moment, some pixels of a frame. Any element may be clean.

A token has one noise level, so what is given is shown to the network as noisy as the rest of its token, with fresh noise every time
(replacement; Song et al. 2021). That alone lets the rest come out as if it hardly knew: a row is therefore walked several times, the rest
noised again in between, until both agree (RePaint; Lugmayr et al. 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_forcing.diffusion.parameterization import add_noise
from diffusion_forcing.diffusion.schedules import NoiseSchedule


def impose(schedule: NoiseSchedule, x: Tensor, given: Tensor, k: Tensor, noise: Tensor) -> Tensor:
    """x: (b, t, *c) at levels k: (b, t), −1 clean; where `given`, like x, is not NaN it takes the place of x, at the same level."""
    known = torch.isfinite(given)
    clean = torch.where(known, given, 0.0).to(x.dtype)
    noisy = add_noise(schedule, clean, k.clamp(min=0), noise)
    shown = torch.where((k < 0).reshape(*k.shape, *(1,) * (x.ndim - 2)), clean, noisy)
    return torch.where(known, shown, x)


def noise_further(schedule: NoiseSchedule, x: Tensor, k: Tensor, k_to: Tensor, noise: Tensor) -> Tensor:
    """A draw from q(x_k_to | x_k), k ≤ k_to, of tokens x: (b, t, *c) at levels k: √(ᾱ'/ᾱ)·x + √(1 − ᾱ'/ᾱ)·noise. −1 is clean."""
    ratio = (schedule.signal_power(k_to, x) / schedule.signal_power(k, x)).clamp(max=1)
    return ratio.sqrt() * x + (1 - ratio).sqrt() * noise

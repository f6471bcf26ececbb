"""Training noise levels: every token draws its own. That is the method (Algorithm 1, METHOD §4)."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_forcing.errors import UserError, did_you_mean

NOISE_LEVELS = ("random_all", "shared")


def draw_noise_levels(
    kind: str, batch: int, time: int, *, timesteps: int, generator: torch.Generator | None = None, device: torch.device
) -> Tensor:
    """Levels (b, t) in 0…K−1. `random_all`: one draw a token (Diffusion Forcing); `shared`: one draw a sequence
    (full-sequence diffusion)."""
    match kind:
        case "random_all":
            return torch.randint(0, timesteps, (batch, time), generator=generator, device=device)
        case "shared":
            return (
                torch.randint(0, timesteps, (batch, 1), generator=generator, device=device).expand(batch, time).clone()
            )
    raise UserError(
        f"noise_level '{kind}' is not known; allowed: {', '.join(NOISE_LEVELS)}{did_you_mean(kind, NOISE_LEVELS)}"
    )


def mask_absent(k: Tensor, present: Tensor, timesteps: int) -> Tensor:
    """Levels k: (b, t) with tokens that are not there (`present`: (b, t) False) at K−1, pure noise."""
    return torch.where(present, k, timesteps - 1)

"""How much each token's error counts, by its signal-to-noise ratio (docs/method.md §4).

min-SNR (Hang et al. 2023) looks at the token alone. Fused SNR looks at its history too: a noisy token after a clean past is nearly
known, so the past's SNR is carried along by a running mean and fused with the token's own. The RNN line can also look at the history
alone (`cum_snr`), or at neither (`uniform`).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from diffusion_forcing.diffusion.schedules import NoiseSchedule
from diffusion_forcing.errors import UserError

Objective = Literal["pred_noise", "pred_x0", "pred_v", "pred_edm"]
Weighting = Literal["min_snr", "fused_snr", "cum_snr", "uniform"]


def loss_weight(schedule: NoiseSchedule, k: Tensor, objective: str, weighting: str, *, decay: float) -> Tensor:
    """Weights (b, t) of tokens at levels k: (b, t). decay: of the history's SNR from one token to the next.

    `pred_edm` has weight 1 at every level: its target has unit variance everywhere (Karras et al. 2022, table 1).
    """
    if objective == "pred_edm":
        return torch.ones(k.shape, device=k.device)
    match weighting:
        case "min_snr":
            return min_snr_weight(schedule, k, objective)
        case "fused_snr":
            return fused_snr_weight(schedule, k, objective, decay=decay)
        case "cum_snr":
            return cum_snr_weight(schedule, k, decay=decay)
        case "uniform":
            return uniform_weight(schedule, k)
    raise UserError(f"weighting {weighting!r} is unknown; choose one of {', '.join(get_args(Weighting))}")


def uniform_weight(schedule: NoiseSchedule, k: Tensor) -> Tensor:
    """Weights (b, t), all snr_clip/2: the RNN line's scale where no SNR is looked at."""
    return torch.full(k.shape, schedule.snr_clip / 2, device=k.device)


def cum_snr_weight(schedule: NoiseSchedule, k: Tensor, *, decay: float) -> Tensor:
    """Weights (b, t) of tokens at levels k: (b, t) from their history alone: snr_clip·h_{t−1}, the first token as in `uniform_weight`.

    h is the running mean of clippedSNR/snr_clip; a token after a noisy past counts little, whatever is predicted.
    """
    weight = schedule.snr_clip * running_mean_of_history(schedule.clipped_snr[k] / schedule.snr_clip, decay)
    return torch.cat([uniform_weight(schedule, k[..., :1]), weight[..., 1:]], dim=-1)


def min_snr_weight(schedule: NoiseSchedule, k: Tensor, objective: str) -> Tensor:
    """Weights (b, t) of tokens at levels k: (b, t) from their own SNR."""
    return _weight(schedule.snr[k], schedule.clipped_snr[k], objective)


def _weight(snr: Tensor, clipped: Tensor, objective: str) -> Tensor:
    """ε: clip/SNR · x₀: clip · v: clip/(SNR+1), clip being the clipped SNR."""
    match objective:
        case "pred_noise":
            # float32 rounds a tiny SNR to 0 (cosine's last level; the released code divides 0 by 0 there): weight 1.
            return torch.where(snr > 0, clipped / torch.where(snr > 0, snr, 1.0), 1.0)
        case "pred_x0":
            return clipped
        case "pred_v":
            return clipped / (snr + 1)
    raise UserError(f"objective '{objective}' has no loss weight; allowed: pred_noise, pred_x0, pred_v")


def running_mean_of_history(values: Tensor, decay: float) -> Tensor:
    """h'_t = h_{t−1} with h_0 = values_0, h_t = decay·h_{t−1} + (1−decay)·values_t and h'_0 = 0; along the last axis."""
    history = torch.zeros_like(values)
    mean = values[..., 0]
    for t in range(1, values.shape[-1]):
        history[..., t] = mean
        mean = decay * mean + (1 - decay) * values[..., t]
    return history


def fused_snr_weight(schedule: NoiseSchedule, k: Tensor, objective: str, *, decay: float) -> Tensor:
    """Weights (b, t) of tokens at levels k: (b, t) from their own and their history's SNR, fused.

    `decay` is that from one token to the next (`NoisingOptions.token_decay`).
    """
    clip = schedule.snr_clip
    # SNR of the token itself and of its history, as shares of the clip.
    own, own_clipped = schedule.snr[k] / clip, schedule.clipped_snr[k] / clip
    past = decay * running_mean_of_history(own_clipped, decay)
    fused, fused_clipped = (1 - (1 - past) * (1 - share) for share in (own, own_clipped))
    return _weight(fused * clip, fused_clipped * clip, objective)

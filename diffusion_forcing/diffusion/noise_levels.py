"""Training noise levels: every token draws its own. That is the method (Algorithm 1, docs/method.md §4); baselines draw otherwise.

| noise_level | levels of a sequence | in the loss | sampled |
|---|---|---|---|
| `random_all` | one for each token: Diffusion Forcing | all | by any matrix |
| `shared` | one | all | by any matrix, with a clean past |
| `full_sequence` | one | all | `full_sequence`, with a past at the level of the rest: full-sequence diffusion |
| `teacher_forcing` | clean past, one noised token, then pure noise | that token | `autoregressive`: next-token prediction |

−1 is a clean token. It is shown as sampling shows its past (`DiffusionForcing.stabilize`), and is not in the loss.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from diffusion_forcing.diffusion.noise import integers
from diffusion_forcing.errors import check_choice

NoiseLevel = Literal["random_all", "shared", "full_sequence", "teacher_forcing"]
NOISE_LEVELS = ("random_all", "shared", "full_sequence", "teacher_forcing")
CLEAN = -1
MATRICES = {"full_sequence": "full_sequence", "teacher_forcing": "autoregressive"}
"""The only scheduling matrix whose rows look like the training of these kinds."""


def draw_noise_levels(
    kind: str,
    batch: int,
    time: int,
    *,
    timesteps: int,
    context: int = 0,
    teacher_forced: bool = False,
    generator: torch.Generator | None = None,
    device: torch.device,
) -> Tensor:
    """Levels (b, t) in −1…K−1, by `kind`.

    context: sampling always begins with so many known tokens; `full_sequence` and `teacher_forcing` train them clean. teacher_forced:
    of `teacher_forcing`, whether the network is shown a clean past beside the noised tokens (`algorithms/objectives.py`): then every token draws
    its own level; else one token of each sequence does.
    """
    check_choice("noise_level", kind, NOISE_LEVELS)

    def draw(count: int) -> Tensor:
        return integers(0, timesteps, (batch, count), generator=generator, device=device)

    token = torch.arange(time, device=device)
    if kind == "random_all":
        return draw(time)
    if kind == "teacher_forcing":
        if teacher_forced:
            return torch.where(token < context, CLEAN, draw(time))
        # A clean past, one noised token, and pure noise after it.
        target = integers(min(context, time - 1), time, (batch, 1), generator=generator, device=device)
        after_past = torch.where(token == target, draw(1), timesteps - 1)
        return torch.where(token < target, CLEAN, after_past)
    return torch.where(token < (context if kind == "full_sequence" else 0), CLEAN, draw(1))


def loss_mask(kind: str, k: Tensor, *, teacher_forced: bool = False) -> Tensor:
    """(b, t): the factor of the error of tokens at levels k: (b, t), drawn by `kind`: 0 for clean ones, else 1.

    Where `teacher_forcing` trains one token of a sequence, its factor is t, so that the mean over tokens has the usual size.
    """
    clean = k < 0
    if kind != "teacher_forcing" or teacher_forced:
        return (~clean).float()
    target = clean.sum(dim=1, keepdim=True)
    return (torch.arange(k.shape[1], device=k.device) == target).float() * k.shape[1]


def mask_absent(k: Tensor, present: Tensor, timesteps: int) -> Tensor:
    """Levels k: (b, t) with tokens that are not there (`present`: (b, t) False) at K−1, pure noise."""
    return torch.where(present, k, timesteps - 1)

"""Training noise levels: every token draws its own. That is the method (Algorithm 1, docs/method.md §4); its baselines are other draws.

| noise_level | levels of a sequence | what counts | sampled |
|---|---|---|---|
| `random_all` | every token its own: Diffusion Forcing | all | by any matrix |
| `shared` | one | all | by any matrix, the past clean as always |
| `full_sequence` | one | all | `full_sequence`, the past given at the level of the rest: full-sequence diffusion |
| `teacher_forcing` | the past clean, one token noised, what follows pure noise | that token | `autoregressive`: next-token prediction |

−1 is a clean token. It is shown as sampling shows its past (`DiffusionForcing.stabilize`) and counts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffusion_forcing.diffusion.noise import integers, normal, uniform
from diffusion_forcing.errors import UserError, did_you_mean

NoiseLevel = Literal["random_all", "shared", "full_sequence", "teacher_forcing"]
NOISE_LEVELS = ("random_all", "shared", "full_sequence", "teacher_forcing")
CLEAN = -1
MATRICES = {"full_sequence": "full_sequence", "teacher_forcing": "autoregressive"}
"""The one scheduling matrix whose rows hold levels as the training's, for those that know no others."""


def draw_noise_levels(
    kind: str,
    batch: int,
    time: int,
    *,
    timesteps: int,
    given: int = 0,
    each: bool = False,
    generator: torch.Generator | None = None,
    device: torch.device,
) -> Tensor:
    """Levels (b, t) in −1…K−1, by `kind`.

    given: the first so many tokens are always known when sampling begins; the two baselines train them clean. each: of teacher_forcing,
    where the network is shown a clean past beside the noised tokens (`DiffusionForcing.loss(clean_past=True)`): every token draws its own
    level and counts; without, one token of each sequence does.
    """
    match kind:
        case "random_all":
            return integers(0, timesteps, (batch, time), generator=generator, device=device)
        case "shared" | "full_sequence":
            k = integers(0, timesteps, (batch, 1), generator=generator, device=device).expand(batch, time).clone()
            if kind == "full_sequence":
                k[:, :given] = CLEAN
            return k
        case "teacher_forcing":
            token = torch.arange(time, device=device)
            if each:
                own = integers(0, timesteps, (batch, time), generator=generator, device=device)
                return torch.where(token < given, CLEAN, own)
            next_one = integers(min(given, time - 1), time, (batch, 1), generator=generator, device=device)
            own = integers(0, timesteps, (batch, 1), generator=generator, device=device)
            behind = torch.where(token == next_one, own, timesteps - 1)
            return torch.where(token < next_one, CLEAN, behind)
    raise UserError(
        f"noise_level '{kind}' is not known; allowed: {', '.join(NOISE_LEVELS)}{did_you_mean(kind, NOISE_LEVELS)}"
    )


@dataclass(frozen=True, kw_only=True)
class LevelDensity:
    """Which noise σ the frames of a world model are trained at: ln σ is normal, with other means for frames that serve as past and as target.

    past: (mean, deviation) of ln σ of frames that others look back to, cut at past_max; target: the same of frames that are denoised; pure:
    share of targets at the last level, pure noise, where sampling begins.
    """

    past: tuple[float, float] = (-3.0, 1.0)
    past_max: float = 0.3
    target: tuple[float, float] = (-0.4, 1.4)
    pure: float = 0.2

    def draw_past(self, sigmas: Tensor, shape: Sequence[int], *, generator: torch.Generator | None) -> Tensor:
        """Levels of `shape` (b, …) like those of a rollout's past. sigmas: (K,), rising."""
        drawn = normal(shape, generator=generator, device=sigmas.device)
        return _level_of((self.past[0] + self.past[1] * drawn).exp().clamp(max=self.past_max), sigmas)

    def draw_target(self, sigmas: Tensor, shape: Sequence[int], *, generator: torch.Generator | None) -> Tensor:
        """Levels of `shape` (b, …) like those that a frame passes while it is sampled."""
        drawn = normal(shape, generator=generator, device=sigmas.device)
        levels = _level_of((self.target[0] + self.target[1] * drawn).exp(), sigmas)
        pure = uniform(shape, generator=generator, device=sigmas.device) < self.pure
        return torch.where(pure, len(sigmas) - 1, levels)

    def draw_mixture(self, sigmas: Tensor, shape: Sequence[int], *, generator: torch.Generator | None) -> Tensor:
        """Levels of `shape` (b, …), each with probability ½ of a past and of a target: any combination occurs, as in Diffusion Forcing, but the
        ones that sampling meets occur most."""
        past = uniform(shape, generator=generator, device=sigmas.device) < 0.5
        as_past = self.draw_past(sigmas, shape, generator=generator)
        return torch.where(past, as_past, self.draw_target(sigmas, shape, generator=generator))


def _level_of(sigma: Tensor, sigmas: Tensor) -> Tensor:
    """The first level with at least the noise σ, the last where none has."""
    return torch.searchsorted(sigmas, sigma).clamp(max=len(sigmas) - 1)


def counted(kind: str, k: Tensor, *, each: bool = False) -> Tensor:
    """(b, t): how often the error of tokens at levels k: (b, t), drawn by `kind`, counts. Clean ones never do; the one token that
    teacher_forcing noises counts for all, so that the mean over tokens has the size it has elsewhere."""
    clean = k < 0
    if kind != "teacher_forcing" or each:
        return (~clean).float()
    next_one = clean.sum(dim=1, keepdim=True)
    return (torch.arange(k.shape[1], device=k.device) == next_one).float() * k.shape[1]


def mask_absent(k: Tensor, present: Tensor, timesteps: int) -> Tensor:
    """Levels k: (b, t) with tokens that are not there (`present`: (b, t) False) at K−1, pure noise."""
    return torch.where(present, k, timesteps - 1)

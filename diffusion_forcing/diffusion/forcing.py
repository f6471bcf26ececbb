"""Diffusion Forcing: the loss (Algorithm 1) and one denoising row (Algorithm 2). Read this first.

Every token of a sequence has its own noise level. Training draws them independently, so the one network learns every combination;
sampling then chooses the combination: clean past and noisy next token is next-token prediction, all equal is full-sequence
diffusion, and everything between is a row of a scheduling matrix.

Tokens are x: (b, t, *c), levels k: (b, t) in −1…K−1, −1 being clean. A network is a callable
`network(x, k, conditions, memory) -> (output, memory)` that knows no schedule; `memory` stands for tokens before x.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffusion_forcing.diffusion.composition import Composition, Views
from diffusion_forcing.diffusion.guidance import Guidance
from diffusion_forcing.diffusion.loss_weighting import Weighting, loss_weight
from diffusion_forcing.diffusion.noise import normal
from diffusion_forcing.diffusion.parameterization import Parameterization, Prediction, add_noise, x0_from_eps
from diffusion_forcing.diffusion.schedules import NoiseSchedule
from diffusion_forcing.errors import UserError

Network = Callable[[Tensor, Tensor, Tensor | None, Any], tuple[Tensor, Any]]


class Loss(NamedTuple):
    """per_element: (b, t, *c), weighted, not reduced; x0: (b, t, *c), the clean tokens as predicted."""

    per_element: Tensor
    x0: Tensor


class DiffusionForcing(nn.Module):
    """A network, a schedule and what the network predicts, together: `loss` to train, `step` to sample.

    weighting: `min_snr`, `uniform`, or `fused_snr` and `cum_snr` with `cum_snr_decay` already raised to the power frame_stack·frame_skip.
    clip_noise: all Gaussian noise is clamped to ± this. stabilization_level: clean context is shown to the network as if its
    level were stabilization_level − 1.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        parameterization: Parameterization,
        *,
        weighting: Weighting = "min_snr",
        cum_snr_decay: float = 0.98,
        clip_noise: float = 20.0,
        stabilization_level: int = 10,
    ) -> None:
        super().__init__()
        if not 1 <= stabilization_level <= schedule.timesteps:
            raise UserError(
                f"stabilization_level is {stabilization_level}; it must lie in 1…{schedule.timesteps} (1: context as good as clean)"
            )
        self.network = network
        self.schedule = schedule
        self.parameterization = parameterization
        self.weighting = weighting
        self.cum_snr_decay = cum_snr_decay
        self.clip_noise = clip_noise
        self.stabilization_level = stabilization_level

    # ------------------------------------------------------------------------------------------------ training: Algorithm 1

    def loss(
        self,
        x: Tensor,
        k: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        conditions: Tensor | None = None,
        memory: Any = None,
        clean_past: bool = False,
        seen: Callable[[Tensor], Tensor] | None = None,
    ) -> Loss:
        """The weighted squared error of clean tokens x: (b, t, *c) noised at levels k: (b, t) in −1…K−1, −1 staying clean.

        noise: standard normal (b, t, *c) to use instead of a draw; clamped either way. memory: what stands before x, as for `predict`.
        clean_past: what each token sees before it is clean, whatever its own level (next-token prediction of all tokens at once); for
        networks with `behind_clean`.
        seen: what the network sees of the noised tokens, where that is not all of them.
        """
        eps = self.clamp_noise(normal(x.shape, generator=generator, device=x.device) if noise is None else noise)
        clean = k < 0
        k = torch.where(clean, self.stabilization_level - 1, k)
        eps = torch.where(_over(clean, x), 0.0, eps)  # as `stabilize` shows a clean token
        x_k = add_noise(self.schedule, x, k, eps)
        if seen is not None:
            x_k = seen(x_k)
        if clean_past:
            prediction = self._behind_clean(x, x_k, k, conditions, memory)
            weight = self._weight_behind_clean(k)
        else:
            prediction, _ = self.predict(x_k, k, conditions, memory)
            weight = self.loss_weight(k)
        target = self.parameterization.target(self.schedule, x, k, eps)
        return Loss(_over(weight, x) * (prediction.output - target) ** 2, prediction.x0)

    def _behind_clean(self, x: Tensor, x_k: Tensor, k: Tensor, conditions: Tensor | None, memory: Any) -> Prediction:
        """What the network makes of each token of x_k at its level k, (b, t), when all tokens before it are those of x, clean."""
        network: Any = self.network
        shown, shown_k = self.stabilize(x, torch.full_like(k, -1))
        output = network.behind_clean(shown, shown_k, x_k, k, conditions, memory)
        return self.parameterization.resolve(self.schedule, x_k, k, output.to(x_k.dtype))

    def _weight_behind_clean(self, k: Tensor) -> Tensor:
        """(b, t): `loss_weight` of each token where all tokens before it are clean."""
        token = torch.arange(k.shape[1], device=k.device)
        past = token < token[:, None]  # (own, other)
        rows = torch.where(past, self.stabilization_level - 1, k[..., None].expand(*k.shape, k.shape[1]))
        return self.loss_weight(rows.flatten(0, 1)).unflatten(0, k.shape).diagonal(dim1=-2, dim2=-1)

    def loss_weight(self, k: Tensor) -> Tensor:
        """Weights (b, t) of tokens at levels k: (b, t), by docs/method.md §4."""
        return loss_weight(self.schedule, k, self.parameterization.name, self.weighting, decay=self.cum_snr_decay)

    # ------------------------------------------------------------------------------------------------ sampling: Algorithm 2

    def step(
        self,
        x: Tensor,
        k_from: Tensor,
        k_to: Tensor,
        *,
        eta: float = 0.0,
        ancestral: bool = False,
        guidance: Guidance | None = None,
        composition: Composition | None = None,
        conditions: Tensor | None = None,
        memory: Any = None,
        noise: Tensor | None = None,
        context_noise: Tensor | None = None,
        history_noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Tokens x: (b, t, *c) one row cleaner: each from its level k_from to its k_to ≤ k_from, both (b, t) in −1…K−1.

        DDIM with `eta` (0 deterministic, 1 as noisy as DDPM), or the DDPM posterior (`ancestral`). A token whose level does not
        change comes back bit for bit. guidance moves ε̂ along the gradient of a return; composition adds several ε̂ up. memory: what stands
        for earlier tokens, remembered under the same composition. noise: standard normal (b, t, *c) to use instead of a draw;
        context_noise: the same for what DDPM puts on clean context; history_noise: the same for the past a composition noises.
        """
        clean = k_from < 0
        shown, k = self.stabilize(x, k_from, noisy=ancestral, noise=context_noise, generator=generator)
        views = self._views(composition, x, clean, history_noise, generator)
        if guidance is None:
            prediction, _ = self.predict(shown, k, conditions, memory, views)
            x0, eps = prediction.x0, prediction.eps
        else:
            prediction, gradient = guidance.gradient(self, shown, k, clean, conditions, memory, generator, views)
            x0, eps = prediction.x0, prediction.eps
            if not guidance.after_row:
                strength = (1 - self.schedule.signal_power(k_to, x)).sqrt()
                eps = eps - strength * gradient
                x0 = x0_from_eps(self.schedule, shown, k, eps)
        if ancestral:
            moved = self._posterior(x0, shown, k, k_to, noise, generator)
        else:
            moved = self.ddim(x0, eps, k, k_to, eta, noise, generator)
        if guidance is not None and guidance.after_row:
            moved = moved + self.row_constant(k, k_to, 1.0 if ancestral else eta, x) * gradient
        still = (k_from == k_to).reshape(*k_from.shape, *(1,) * (x.ndim - k_from.ndim))
        return torch.where(still, x, moved)

    def predict(
        self,
        x_k: Tensor,
        k: Tensor,
        conditions: Tensor | None = None,
        memory: Any = None,
        views: Views | None = None,
    ) -> tuple[Prediction, Any]:
        """What the network makes of tokens x_k: (b, t, *c) at levels k: (b, t) in 0…K−1, and the memory after them.

        views: what the branches of a composition see, whose predictions are added up.
        """
        if views is not None:
            return views.predict(self, x_k, k, conditions, memory)
        output, memory = self.network(x_k, k, conditions, memory)
        # a network under autocast may answer in half precision; what follows is not computed in it
        return self.parameterization.resolve(self.schedule, x_k, k, output.to(x_k.dtype)), memory

    def stabilize(
        self,
        x: Tensor,
        k: Tensor,
        *,
        noisy: bool = False,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Tokens and levels as the network sees them: a clean token (k = −1) is shown as √ᾱ_j·x at level j = stabilization_level − 1.

        The model is told that its history is slightly noisy, so its own small errors do not compound (paper §3.3, docs/method.md §5). With
        `noisy` the noise is really there: `noise`, standard normal like x, or a draw.
        """
        clean = k < 0
        shown_k = torch.where(clean, self.stabilization_level - 1, k)
        level = self.schedule.at("sqrt_alphas_cumprod", shown_k, x)
        shown = level * x
        if noisy:
            eps = self._draw(x, noise, generator)
            shown = shown + self.schedule.at("sqrt_one_minus_alphas_cumprod", shown_k, x) * eps
        return torch.where(clean.reshape(*k.shape, *(1,) * (x.ndim - k.ndim)), shown, x), shown_k

    def remember(
        self,
        x: Tensor,
        *,
        conditions: Tensor | None = None,
        memory: Any = None,
        composition: Composition | None = None,
        history_noise: Tensor | None = None,
    ) -> Any:
        """The memory after clean tokens x: (b, t, *c), shown at the stabilization level, behind what `memory` holds.

        UserError from a network that keeps none: its past cannot be finished before its future.
        """
        clean = torch.full(x.shape[:2], -1, device=x.device)
        shown, k = self.stabilize(x, clean)
        memory = self.predict(shown, k, conditions, memory, self._views(composition, x, clean < 0, history_noise))[1]
        if memory is None:
            why = getattr(self.network, "why_no_memory", "") or "this network keeps no memory of the past"
            raise UserError(f"{why}; sample it with cache=none")
        return memory

    def clamp_noise(self, noise: Tensor) -> Tensor:
        """Noise within ±clip_noise."""
        return noise.clamp(-self.clip_noise, self.clip_noise)

    def _views(
        self,
        composition: Composition | None,
        x: Tensor,
        clean: Tensor,
        history_noise: Tensor | None,
        generator: torch.Generator | None = None,
    ) -> Views | None:
        if composition is None:
            return None
        noise = self._draw(x, history_noise, generator) if composition.noises_history else None
        return composition.views(x, clean, noise)

    def _draw(self, like: Tensor, noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
        return self.clamp_noise(
            normal(like.shape, generator=generator, device=like.device, dtype=like.dtype) if noise is None else noise
        )

    def ddim(
        self,
        x0: Tensor,
        eps: Tensor,
        k: Tensor,
        k_to: Tensor,
        eta: float,
        noise: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """√ᾱ'·x̂₀ + √(1−ᾱ'−σ²)·ε̂ + σ·noise with σ = η·√((1−ᾱ/ᾱ')·(1−ᾱ')/(1−ᾱ)), 0 on the step to clean (Song et al. 2021)."""
        power = self.schedule.at("alphas_cumprod", k, x0)
        power_to = self.schedule.signal_power(k_to, x0)
        if eta == 0:
            return power_to.sqrt() * x0 + (1 - power_to).sqrt() * eps
        # a token that stays (k_to = k, or clean context shown at its stabilization level) has no σ; its result is not used
        variance = ((1 - power / power_to) * (1 - power_to) / (1 - power)).clamp(min=0)
        sigma = eta * variance.sqrt()
        direction = (1 - power_to - sigma**2).clamp(min=0).sqrt()
        return power_to.sqrt() * x0 + direction * eps + sigma * self._draw(x0, noise, generator)

    def row_constant(self, k: Tensor, k_to: Tensor, eta: float, like: Tensor) -> Tensor:
        """(1−ᾱ) − √(1−ᾱ'−σ²)·√(1−ᾱ): how far a DDIM step carries a gradient that moved ε̂ by −√(1−ᾱ)·∇J, with ᾱ'/ᾱ taken for 1 (docs/method.md §10)."""
        power, power_to = self.schedule.at("alphas_cumprod", k, like), self.schedule.signal_power(k_to, like)
        variance = eta**2 * ((1 - power / power_to) * (1 - power_to) / (1 - power)).clamp(min=0)
        return (1 - power) - (1 - power_to - variance).clamp(min=0).sqrt() * (1 - power).sqrt()

    def _posterior(
        self, x0: Tensor, x_k: Tensor, k: Tensor, k_to: Tensor, noise: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """A draw from q(x_k' | x_k, x̂₀), the DDPM posterior, for any k' < k: from the tables where k' = k − 1 (Ho et al. 2020)."""
        schedule = self.schedule
        power, power_to = schedule.at("alphas_cumprod", k, x0), schedule.signal_power(k_to, x0)
        ratio = (power / power_to).clamp(max=1)
        next_level = (k_to == k - 1).reshape(*k.shape, *(1,) * (x0.ndim - k.ndim))
        mean_x0 = torch.where(
            next_level, schedule.at("posterior_mean_coef1", k, x0), power_to.sqrt() * (1 - ratio) / (1 - power)
        )
        mean_x_k = torch.where(
            next_level, schedule.at("posterior_mean_coef2", k, x0), ratio.sqrt() * (1 - power_to) / (1 - power)
        )
        variance = torch.where(
            next_level, schedule.at("posterior_variance", k, x0), (1 - ratio) * (1 - power_to) / (1 - power)
        )
        return mean_x0 * x0 + mean_x_k * x_k + variance.clamp(min=0).sqrt() * self._draw(x0, noise, generator)


def _over(per_token: Tensor, like: Tensor) -> Tensor:
    """(b, t) with an axis of 1 for each of `like`'s others: (b, t, *c)."""
    return per_token.reshape(*per_token.shape, *(1,) * (like.ndim - per_token.ndim))

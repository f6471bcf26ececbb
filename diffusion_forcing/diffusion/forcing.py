"""Diffusion Forcing: the loss (Algorithm 1) and one denoising step (Algorithm 2). Read this first.

Every token of a sequence has its own noise level. Training draws each token's level by itself (`noise_levels.draw_noise_levels`: one
`torch.randint(0, K, (b, t))`), so one network learns every combination.
Sampling chooses the combination: a clean past and one noisy token is next-token prediction, one level for all is full-sequence diffusion,
and everything between is a row of a scheduling matrix.

Tokens are x: (b, t, *c), levels k: (b, t) in −1…K−1, −1 being clean (the paper's k is ours + 1). A network is a callable
`network(x, k, conditions, memory) -> (output, memory)` that knows no schedule; `memory` stands for the tokens before x.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffusion_forcing.diffusion.denoiser import Denoised, Denoiser
from diffusion_forcing.diffusion.loss_weighting import Weighting, loss_weight
from diffusion_forcing.diffusion.noise import offset_normal
from diffusion_forcing.diffusion.parameterization import Parameterization, add_noise
from diffusion_forcing.diffusion.schedules import NoiseSchedule, per_token
from diffusion_forcing.errors import UserError, check_range

Network = Callable[[Tensor, Tensor, Tensor | None, Any], tuple[Tensor, Any]]


class Loss(NamedTuple):
    """per_element: (b, t, *c), weighted, not reduced; x0: (b, t, *c), the predicted clean tokens; memory: the network's after x."""

    per_element: Tensor
    x0: Tensor
    memory: Any = None


class DiffusionForcing(nn.Module):
    """A network, a noise schedule and what the network predicts: `loss` to train, `step` to sample. Calling it denoises.

    weighting: `min_snr`, `uniform`, or `fused_snr` and `cum_snr` with `cum_snr_decay` from one token to the next.
    clip_noise: all Gaussian noise is clamped to ± this. stabilization_level: clean tokens are shown to the network as if their level
    were stabilization_level − 1. offset_noise: of images, the share of noise that is one number a channel and frame (`noise.offset_normal`).
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
        offset_noise: float = 0.0,
    ) -> None:
        super().__init__()
        check_range("stabilization_level", stabilization_level, 1, schedule.timesteps)
        self.network = network
        self.schedule = schedule
        self.parameterization = parameterization
        self.weighting = weighting
        self.cum_snr_decay = cum_snr_decay
        self.clip_noise = clip_noise
        self.stabilization_level = stabilization_level
        self.offset_noise = offset_noise

    # ------------------------------------------------------------------------------------------------ training: Algorithm 1

    def loss(
        self,
        x: Tensor,
        k: Tensor,
        *,
        conditions: Tensor | None = None,
        memory: Any = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Loss:
        """Algorithm 1: the weighted squared error for clean tokens x: (b, t, *c) noised at levels k: (b, t).

        A token with k = −1 is shown as `stabilize` shows a clean one. Its error is returned like any other: multiply by `loss_mask(k)`.
        conditions: (b, t, d). memory: stands for the tokens before x. noise: standard normal like x, instead of a draw; clamped.
        """
        self._check_levels(k)
        clean = k < 0
        k = torch.where(clean, self.stabilization_level - 1, k)
        # Noise every token at its own level. Clean tokens are scaled as `stabilize` shows them.
        eps = torch.where(per_token(clean, x), 0.0, self.gaussian_noise(x, noise, generator))
        x_k = add_noise(self.schedule, x, k, eps)
        # Predict (no −1 is left in k, so `stabilize` changes nothing), and weigh the squared error.
        prediction, after = self(x_k, k, conditions, memory)
        target = self.parameterization.target(self.schedule, x, k, eps)
        return Loss(per_token(self.loss_weight(k), x) * (prediction.output - target) ** 2, prediction.x0, after)

    def loss_weight(self, k: Tensor) -> Tensor:
        """Weights (b, t) of tokens at levels k: (b, t) in 0…K−1 (docs/method.md §4)."""
        return loss_weight(self.schedule, k, self.parameterization.name, self.weighting, decay=self.cum_snr_decay)

    # ------------------------------------------------------------------------------------------------ sampling: Algorithm 2

    def step(
        self,
        x: Tensor,
        k: Tensor,
        k_to: Tensor,
        *,
        denoise: Denoiser | None = None,
        conditions: Tensor | None = None,
        memory: Any = None,
        eta: float = 0.0,
        ancestral: bool = False,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """One row of Algorithm 2: tokens x: (b, t, *c), each from its level k to its level k_to ≤ k, both (b, t) in −1…K−1.

        DDIM with `eta` (0 deterministic, 1 as noisy as DDPM), or the DDPM posterior (`ancestral`). A token whose level does not change
        comes back bit for bit. denoise: a wrapper of this denoiser, for guidance. noise: standard normal like x, instead of a draw.
        """
        self._check_levels(k)
        self._check_levels(k_to)
        # Predict. Guidance, where there is any, is inside `denoise`.
        prediction, _ = (denoise or self)(x, k, conditions, memory, k_to=k_to)
        # DDPM or DDIM step.
        if ancestral:
            x_next = self._posterior(prediction.x0, x, k, k_to, noise, generator)
        else:
            x_next = self.ddim(prediction.x0, prediction.eps, k, k_to, eta, noise, generator)
        return torch.where(per_token(k == k_to, x), x, x_next)

    def forward(self, x: Tensor, k: Tensor, *inputs: Any, k_to: Tensor | None = None) -> Denoised:
        """The plain denoiser: x̂₀ and ε̂ of tokens x: (b, t, *c) at levels k: (b, t) in −1…K−1, and the memory after them.

        k_to: given in a denoising step, whose memory is dropped.
        """
        shown, k = self.stabilize(x, k)
        output, memory = self.network(shown, k, *inputs)
        if getattr(self.network, "static_outputs", False) and not torch.is_grad_enabled():
            # The network's next call overwrites what this one gave (CUDA graphs). A denoising step drops its memory.
            output = output.clone()
            memory = memory.copied() if memory is not None and k_to is None else memory
        # A network under autocast may answer in half precision; nothing that follows is computed in it.
        return self.parameterization.resolve(self.schedule, shown, k, output.to(shown.dtype)), memory

    def stabilize(self, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and levels as the network sees them: a clean token (k = −1) becomes √ᾱ_j·x at level j = stabilization_level − 1.

        The history is labelled slightly noisy, so that the model's own small errors do not compound (paper §3.3).
        """
        clean = k < 0
        k = torch.where(clean, self.stabilization_level - 1, k)
        return torch.where(per_token(clean, x), self.schedule.signal(k, x) * x, x), k

    def prefill(
        self,
        x: Tensor,
        *,
        denoise: Denoiser | None = None,
        conditions: Tensor | None = None,
        memory: Any = None,
    ) -> Any:
        """The memory after clean tokens x: (b, t, *c) that follow what `memory` holds.

        UserError from a network that keeps no memory, because its past depends on its future.
        """
        clean = torch.full(x.shape[:2], -1, device=x.device)
        _, memory = (denoise or self)(x, clean, conditions, memory)
        if memory is None:
            reason = getattr(self.network, "why_no_memory", "") or "this network keeps no memory of the past"
            raise UserError(f"{reason}; sample it with cache=none")
        return memory

    def ddim(
        self,
        x0: Tensor,
        eps: Tensor,
        k: Tensor,
        k_to: Tensor,
        eta: float = 0.0,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """√ᾱ'·x̂₀ + √(1−ᾱ'−σ²)·ε̂ + σ·noise, σ = η·√((1−ᾱ/ᾱ')·(1−ᾱ')/(1−ᾱ)), 0 on the step to clean (Song et al. 2021, eq. 12)."""
        power_to = self.schedule.signal_power(k_to, x0)
        # Without σ the step is deterministic and draws nothing.
        if eta == 0:
            return power_to.sqrt() * x0 + (1 - power_to).sqrt() * eps
        # σ; a token that stays where it is has none, and its result is not used.
        power = self.schedule.at("alphas_cumprod", k.clamp(min=0), x0)
        variance = ((1 - power / power_to) * (1 - power_to) / (1 - power)).clamp(min=0)
        sigma = eta * variance.sqrt()
        # Clean part, direction to x_k, fresh noise.
        direction = (1 - power_to - sigma**2).clamp(min=0).sqrt()
        return power_to.sqrt() * x0 + direction * eps + sigma * self.gaussian_noise(x0, noise, generator)

    def _posterior(
        self, x0: Tensor, x_k: Tensor, k: Tensor, k_to: Tensor, noise: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """A draw from q(x_k' | x_k, x̂₀) for any k' < k: from the tables where k' = k − 1 (Ho et al. 2020, eq. 6–7)."""
        schedule, level = self.schedule, k.clamp(min=0)
        power, power_to = schedule.at("alphas_cumprod", level, x0), schedule.signal_power(k_to, x0)
        ratio = (power / power_to).clamp(max=1)

        def table_or(name: str, value: Tensor) -> Tensor:
            """`value`, or what the table holds for a step to the next level."""
            return torch.where(per_token(k_to == k - 1, x0), schedule.at(name, level, x0), value)

        mean_x0 = table_or("posterior_mean_coef1", power_to.sqrt() * (1 - ratio) / (1 - power))
        mean_x_k = table_or("posterior_mean_coef2", ratio.sqrt() * (1 - power_to) / (1 - power))
        variance = table_or("posterior_variance", (1 - ratio) * (1 - power_to) / (1 - power))
        # A draw from the posterior.
        deviation = variance.clamp(min=0).sqrt()
        return mean_x0 * x0 + mean_x_k * x_k + deviation * self.gaussian_noise(x0, noise, generator)

    # ------------------------------------------------------------------------------------------------ shared

    def _check_levels(self, k: Tensor) -> None:
        """UserError for levels outside −1…K−1. On a CPU alone: to look at them, a GPU would have to be waited for."""
        if k.device.type != "cpu" or not k.numel():
            return
        low, high = (int(level) for level in k.aminmax())
        if low < -1 or high >= self.schedule.timesteps:
            raise UserError(
                f"noise levels {low}…{high} are outside -1…{self.schedule.timesteps - 1} (-1: clean, "
                f"{self.schedule.timesteps - 1}: pure noise); pass one level a token in that range"
            )

    def gaussian_noise(
        self, like: Tensor, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """`noise`, or a standard normal draw like `like`, clamped to ±clip_noise."""
        if noise is None:
            return self.draw_noise(like.shape, generator=generator, device=like.device, dtype=like.dtype)
        return self.clamp_noise(noise)

    def draw_noise(
        self,
        shape: Sequence[int],
        *,
        device: torch.device,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Pure noise tokens of `shape` (b, t, *c), clamped to ±clip_noise."""
        noise = offset_normal(shape, self.offset_noise, generator=generator, device=device, dtype=dtype)
        return self.clamp_noise(noise)

    def clamp_noise(self, noise: Tensor) -> Tensor:
        """Noise within ±clip_noise."""
        return noise.clamp(-self.clip_noise, self.clip_noise)

    def over(self, network: nn.Module, *, loss_weight: Callable[[Tensor], Tensor] | None = None) -> DiffusionForcing:
        """The same method over another network: an average of the weights, or a wrapper. loss_weight: instead of this one's.

        It shares the schedule and the hooks of this one: move this one to another device, not the copy.
        """
        other = copy.copy(self)
        other._modules = {**self._modules, "network": network}
        if loss_weight is not None:
            other.loss_weight = loss_weight  # type: ignore[method-assign, assignment]
        return other

    def wrapped(self, wrap: Callable[[nn.Module], nn.Module]) -> DiffusionForcing:
        """The same method over what `wrap` makes of its network."""
        return self.over(wrap(self.network))
